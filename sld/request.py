"""One picture as data: all that decides its content, as JSON writes it beside the picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

import sld
from sld.config import build
from sld.guidance import MEDIUM, ClassifierFreeGuidance, Guidance, SafeLatentGuidance, SLDConfig, guidance_for
from sld.pipeline import Pipeline, Space
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

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, as stored in JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Request:
        """Inverse of `to_dict`.

        Raises:
            ValueError: a field is missing, unknown or out of range.
        """
        return build(cls, {**values, "guidance": build(SLDConfig, values.get("guidance", asdict(MEDIUM)))})

    def without_safety(self) -> Request:
        """The same picture under plain classifier-free guidance."""
        return replace(self, guidance=replace(self.guidance, safety_scale=0.0, momentum_scale=0.0))


def about(request: Request, pipe: Pipeline) -> dict[str, Any]:
    """What a sidecar holds: the request, and the model, settings and versions that turned it into a picture."""
    return {
        "request": request.to_dict(),
        "model": pipe.config.name,
        "sha256": pipe.sha256,
        "dtype": str(pipe.unet.dtype).removeprefix("torch."),
        "device": str(pipe.device),
        "exact_batch": pipe.exact_batch,
        "versions": {"sld": sld.__version__, "torch": torch.__version__},
    }


def batches(requests: Sequence[Request], size: int | None = None) -> list[list[int]]:
    """Indices of requests that can be sampled together, at most `size` at once; None for no bound."""
    order = sorted(range(len(requests)), key=lambda k: _batch_key(requests[k]))
    groups = [list(group) for _, group in groupby(order, key=lambda k: _batch_key(requests[k]))]
    size = size or max(1, len(requests))
    return [group[i : i + size] for group in groups for i in range(0, len(group), size)]


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
            guidance=_guidance(batch),
            negative=[r.negative for r in batch],
            concept=[r.concept for r in batch],
            size=(first.height, first.width),
            space=first.space,
            noise=None if noise is None else torch.stack([noise[k] for k in members]),
        )
        last = next(states)
        for last in states:  # noqa: B007 (the last one is wanted)
            if progress is not None:
                progress(len(batch))
        made.update(zip(members, pipe.decode(last.x), strict=True))
    return torch.stack([made[k] for k in range(len(requests))])


def _batch_key(request: Request) -> tuple[str, ...]:
    """What requests must have in common to be sampled as one batch."""
    shared = (request.sampler, request.spacing, request.steps, request.eta, request.space)
    return tuple(map(str, (*shared, request.height, request.width, _guarded(request))))


def _guarded(request: Request) -> bool:
    return request.guidance.safety_scale > 0


def _guidance(batch: Sequence[Request]) -> Guidance:
    """One rule for a batch whose members are all guarded or all not."""
    configs = tuple(r.guidance for r in batch)
    if len(set(configs)) == 1:
        return guidance_for(configs[0])
    if _guarded(batch[0]):
        return SafeLatentGuidance(configs)
    return ClassifierFreeGuidance(tuple(c.guidance_scale for c in configs))
