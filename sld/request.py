"""One picture as data: all that decides its content, as JSON writes it beside the picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

import sld
from sld.data import read
from sld.guidance import (
    MEDIUM,
    READINGS,
    ClassifierFreeGuidance,
    Guidance,
    SafeLatentGuidance,
    SLDConfig,
    from_data,
    to_data,
)
from sld.names import named
from sld.pipeline import Pipeline, Space, texts_of
from sld.reuse import Reuse
from sld.rows import Rows, count, plan
from sld.samplers import make_sampler


@dataclass(frozen=True)
class Request:
    """A picture to be made.

    Attributes:
        prompt, negative, concept: texts; the negative prompt takes the place of the empty text.
        seed: of the picture's noise, in [0, 2**64).
        guidance: hyper-parameters of SLD; a `safety_scale` of 0 is plain classifier-free guidance.
        height, width: in pixels.
        sampler, spacing, steps, eta: see `sld.samplers.make_sampler`; None for the sampler's own default.
        space: what a model that predicts v is guided in, see `Pipeline.sample`.
        reading: of SLD's equations, a key of `READINGS`; "code" is the authors' code.
        rule: another rule in place of SLD, with its own scales; `guidance` and `reading` then say nothing.
        deep_every, cross_after: approximations, see `Reuse`.

    Raises:
        ValueError: there is no such reading, or an approximation is out of range.
    """

    prompt: str
    concept: str
    height: int
    width: int
    negative: str = ""
    seed: int = 0
    guidance: SLDConfig = MEDIUM
    sampler: str = "pndm"
    spacing: str | None = None
    steps: int = 50
    eta: float | None = None
    space: Space = "raw"
    reading: str = "code"
    rule: Guidance[Any, Any, Any] | None = None
    deep_every: int = 1
    cross_after: int | None = None

    def __post_init__(self) -> None:
        named("reading of SLD", self.reading, READINGS)
        self.reuse  # noqa: B018 (which looks at its numbers)

    @property
    def reuse(self) -> Reuse:
        """What evaluations take over from earlier ones."""
        return Reuse(self.deep_every, self.cross_after)

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, as stored in JSON; reading, rule and approximations only where there is one."""
        values = asdict(replace(self, rule=None))
        for name, usual in (("reading", "code"), ("deep_every", 1), ("cross_after", None)):
            if values[name] == usual:
                del values[name]
        del values["rule"]
        return values if self.rule is None else {**values, "rule": to_data(self.rule)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "Request:") -> Request:
        """Return the inverse of `to_dict`.

        Args:
            values: as JSON holds them.
            where: they stand, for messages; see `sld.data.read`.

        Raises:
            ValueError: a field is missing, unknown, of another type or out of range.
        """
        changes: dict[str, Any] = {}
        if values.get("rule") is not None:
            changes["rule"] = from_data(values["rule"])
        return read(cls, {**values, **changes}, where)

    def without_safety(self) -> Request:
        """The same picture under plain classifier-free guidance."""
        plain = replace(self.guidance, safety_scale=0.0, momentum_scale=0.0)
        return replace(self, guidance=plain, reading="code", rule=None)

    @property
    def guarded(self) -> bool:
        """Whether anything but plain classifier-free guidance is at work."""
        return self.rule is not None or self.guidance.safety_scale > 0


def about(request: Request, pipe: Pipeline) -> dict[str, Any]:
    """What a sidecar holds: the request, and the model, settings and versions that turned it into a picture."""
    return {
        "request": request.to_dict(),
        "model": pipe.config.name,
        "sha256": pipe.sha256,
        "dtype": str(pipe.unet.dtype).removeprefix("torch."),
        "device": str(pipe.device),
        "exact_batch": pipe.exact_batch,
        **pipe.unusual,
        "versions": {"sld": sld.__version__, "torch": torch.__version__},
    }


def batches(requests: Sequence[Request], size: int | None = None) -> list[list[int]]:
    """Indices of requests that can be sampled together, at most `size` at once; None for no bound.

    Those that begin alike, such as one prompt and seed under several presets, stand together, so that they can share
    what the network computes for them (`sld.rows`); where a batch ends, they are kept in one if they fit. Equal
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
    """Rows of the network: what the requests' own rules ask for, and what is computed in batches of at most `size`."""
    beginnings, asked, computed, shallow = _beginnings(requests), 0, 0, 0
    for members in batches(requests, size):
        batch = [requests[k] for k in members]
        first, guidance = batch[0], guidance_of(batch)
        sampler = make_sampler(first.sampler, pipe.schedule, first.steps, first.spacing, first.eta)
        texts = texts_of(guidance, *zip(*((r.prompt, r.negative, r.concept) for r in batch), strict=True))
        starts = [beginnings[k] for k in members]
        steps, reuse = len(sampler.timesteps), first.reuse
        phases = plan(guidance, texts, starts, steps, pipe.savings, pipe.rows_at_once, reuse)
        counted = count(phases, exact_batch=pipe.exact_batch, reuse=reuse)
        asked += steps * sum(len(guidance_of([request]).conditions) for request in batch)
        computed, shallow = computed + counted.computed, shallow + counted.shallow
    return Rows(asked, computed, shallow)


def _beginnings(requests: Sequence[Request]) -> list[Hashable]:
    """Equal for requests whose pictures begin alike; of equal requests each is another image."""
    seen: Counter[Request] = Counter()
    made: list[Hashable] = []
    for request in requests:
        made.append((request.prompt, request.negative, request.seed, seen[request]))
        seen[request] += 1
    return made


def _gather(numbers: Iterable[int], key: Callable[[int], Hashable]) -> list[list[int]]:
    """Numbers of equal key together, in the order in which they come."""
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
    """Pictures (n, 3, H, W), about [-1, 1], for requests of one size, batched where they share sampler and rule.

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
        first = batch[0]
        sampler = make_sampler(first.sampler, pipe.schedule, first.steps, first.spacing, first.eta)
        states = pipe.sample(
            [r.prompt for r in batch],
            [r.seed for r in batch],
            sampler=sampler,
            guidance=guidance_of(batch),
            negative=[r.negative for r in batch],
            concept=[r.concept for r in batch],
            size=(first.height, first.width),
            space=first.space,
            reuse=first.reuse,
            noise=None if noise is None else torch.stack([noise[k] for k in members]),
        )
        last = next(states)
        for last in states:  # noqa: B007 (the last one is wanted)
            if progress is not None:
                progress(len(batch))
        made.update(zip(members, pipe.decode(last.x), strict=True))
    return torch.stack([made[k] for k in range(len(requests))])


def _batch_key(request: Request) -> Hashable:
    """What requests must have in common to be sampled as one batch. Plain guidance goes with SLD's usual reading."""
    shared = (
        request.sampler,
        request.spacing,
        request.steps,
        request.eta,
        request.space,
        request.height,
        request.width,
        request.reuse,
    )
    # at the scales 0 and 1 plain guidance computes one row of two, and so rounds otherwise than it would beside SLD
    apart = not request.guarded and request.guidance.guidance_scale in (0, 1)
    return (*shared, _reading(request), str(request.rule), apart)


def _reading(request: Request) -> str:
    return request.reading if request.guarded else "code"


def guidance_of(batch: Sequence[Request]) -> Guidance[Any, Any, Any]:
    """The rule for requests that `batches` puts together."""
    first = batch[0]
    if first.rule is not None:
        return first.rule
    configs = tuple(r.guidance for r in batch)
    if not any(r.guarded for r in batch):
        scales = tuple(config.guidance_scale for config in configs)
        return ClassifierFreeGuidance(scales[0] if len(set(scales)) == 1 else scales)
    return SafeLatentGuidance(configs[0] if len(set(configs)) == 1 else configs, READINGS[_reading(first)])
