"""Batches of requests: which requests are sampled together, and their sampling."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from sld.guidance import READINGS, ClassifierFreeGuidance, Guidance, SafeLatentGuidance
from sld.image_to_image import Start, read_start
from sld.pipeline import Pipeline, texts_of
from sld.request import Request
from sld.speed.rows import Rows, count, plan
from sld.state import SampleState


def batches(requests: Sequence[Request], size: int | None = None) -> list[list[int]]:
    """Return indices of requests in batches that can be sampled together, at most `size` each; None for no bound.

    Those that begin alike, such as one prompt and seed under several presets, stand together, so that they can share
    what the network computes for them (`sld.speed.rows`); where a batch ends, they are kept in one if they fit. Equal
    requests are taken for images of different noise.
    """
    size = size or max(1, len(requests))
    beginnings = _beginnings(requests)
    made: list[list[int]] = []
    for members in _gather(range(len(requests)), lambda k: _batch_key(requests[k])):
        batch: list[int] = []
        for alike in _gather(members, lambda k: beginnings[k]):
            if batch and len(batch) + len(alike) > size:
                made.append(batch)
                batch = []
            batch += alike
            while len(batch) > size:
                made.append(batch[:size])
                batch = batch[size:]
        made.append(batch)
    return made


def network_rows(pipe: Pipeline, requests: Sequence[Request], size: int | None = None) -> Rows:
    """Count network rows: those that the requests' rules ask for, and those computed in batches of at most `size`."""
    beginnings, asked, computed, shallow = _beginnings(requests), 0, 0, 0
    for members in batches(requests, size):
        batch = [requests[k] for k in members]
        first, guidance = batch[0], guidance_of(batch)
        sampler = first.make_sampler(pipe.schedule)
        texts = texts_of(guidance, *zip(*((r.prompt, r.negative, r.concept) for r in batch), strict=True))
        starts = [beginnings[k] for k in members]
        steps, reuse = len(sampler.timesteps), first.reuse
        asked += steps * sum(len(guidance_of([request]).conditions) for request in batch)
        if pipe.numerics == "reference":
            computed += steps * len(texts)
            continue
        phases = plan(guidance, texts, starts, steps, pipe.rows_at_once, reuse)
        counted = count(phases, invariant=pipe.numerics == "invariant", reuse=reuse)
        computed, shallow = computed + counted.computed, shallow + counted.shallow
    return Rows(asked, computed, shallow)


def _beginnings(requests: Sequence[Request]) -> list[Hashable]:
    """Return keys that are equal for requests with equal first evaluations. Equal requests are different images."""
    seen: Counter[Request] = Counter()
    made: list[Hashable] = []
    for request in requests:
        made.append((request.prompt, request.negative, request.seed, request.start, seen[request]))
        seen[request] += 1
    return made


def _gather(numbers: Iterable[int], key: Callable[[int], Hashable]) -> list[list[int]]:
    """Return numbers grouped by key, in their order."""
    groups: dict[Hashable, list[int]] = {}
    for k in numbers:
        groups.setdefault(key(k), []).append(k)
    return list(groups.values())


def run(
    pipe: Pipeline,
    requests: Sequence[Request],
    progress: Callable[[int], object] | None = None,
    noise: Sequence[Tensor] | None = None,
) -> Tensor:
    """Return pictures (n, 3, H, W), about [-1, 1], for requests of one size, in batches of one sampler and rule.

    Args:
        pipe: the model.
        requests: in any order; the pictures come in the same.
        progress: called with the number of images after each network evaluation of a batch.
        noise: (c, h, w) for each request, in place of what its seed gives.

    Raises:
        ValueError: a request cannot be met.
    """
    made: dict[int, Tensor] = {}
    for members in batches(requests):
        batch = [requests[k] for k in members]
        states = _sample(pipe, batch, None if noise is None else torch.stack([noise[k] for k in members]))
        last = next(states)
        for last in states:  # noqa: B007 (the last one is wanted)
            if progress is not None:
                progress(len(batch))
        made.update(zip(members, pipe.decode(last.x), strict=True))
    return torch.stack([made[k] for k in range(len(requests))])


def require_possible(pipe: Pipeline, request: Request, what: str) -> None:
    """Start a picture of a request, and stop before the first call of the network.

    Args:
        pipe: the model.
        request: of the picture.
        what: it is, for the message.

    Raises:
        ValueError: the picture cannot be made.
    """
    try:
        next(_sample(pipe, [request]))
    except ValueError as error:
        raise ValueError(f"{what} is not possible: {error}") from error


def _sample(pipe: Pipeline, batch: Sequence[Request], noise: Tensor | None = None) -> Iterator[SampleState]:
    first = batch[0]
    return pipe.sample(
        [r.prompt for r in batch],
        [r.seed for r in batch],
        sampler=first.make_sampler(pipe.schedule),
        guidance=guidance_of(batch),
        negative=[r.negative for r in batch],
        concept=[r.concept for r in batch],
        size=(first.height, first.width),
        space=first.space,
        reuse=first.reuse,
        noise=noise,
        start=start_of(pipe, batch),
    )


def start_of(pipe: Pipeline, batch: Sequence[Request]) -> Start | None:
    """Return the pictures that requests of one batch start from; None for noise alone.

    Raises:
        ValueError: a file is lost, or not the one that its request names.
    """
    first = batch[0]
    if first.start is None:
        return None
    starts = [r.start for r in batch if r.start is not None]
    starts = starts[:1] if len(set(starts)) == 1 else starts  # one picture for all is read once
    masks = [start.mask.require_same() for start in starts if start.mask is not None]
    images = [start.image.require_same() for start in starts]
    size = first.height, first.width
    return read_start(images, pipe.config, first.start.strength, masks or None, size, quiet=True)


def _batch_key(request: Request) -> Hashable:
    """Return the key that requests of one batch have in common. Plain guidance goes with SLD's usual reading."""
    shared = (
        request.sampler,
        request.spacing,
        request.steps,
        request.eta,
        request.space,
        request.height,
        request.width,
        request.reuse,
        None if request.start is None else (request.start.strength, request.start.mask is None),
    )
    # at the scales 0 and 1 plain guidance computes one row of two, and so rounds otherwise than it would beside SLD
    apart = not request.guarded and request.guidance.guidance_scale in (0, 1)
    return (*shared, _reading(request), str(request.rule), apart)


def _reading(request: Request) -> str:
    return request.reading if request.guarded else "code"


def guidance_of(batch: Sequence[Request]) -> Guidance[Any, Any, Any]:
    """Return the rule for requests of one batch."""
    first = batch[0]
    if first.rule is not None:
        return first.rule
    configs = tuple(r.guidance for r in batch)
    if not any(r.guarded for r in batch):
        scales = tuple(config.guidance_scale for config in configs)
        return ClassifierFreeGuidance(scales[0] if len(set(scales)) == 1 else scales)
    return SafeLatentGuidance(configs[0] if len(set(configs)) == 1 else configs, READINGS[_reading(first)])
