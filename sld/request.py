"""A picture as data: the settings that decide its content, and its sidecar in JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

import sld
from sld.choices import Count, Reading, SamplerName, Seed, Share, Side, Spacing
from sld.data import put, read
from sld.guidance import MEDIUM, READINGS, Guidance, SLDConfig, from_data, to_data
from sld.pipeline import Pipeline
from sld.samplers import Sampler, Schedule, make_sampler
from sld.speed.reuse import Reuse
from sld.spelling import named
from sld.starting import StartFiles
from sld.step import Space


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
        deep_every: an approximation, see `Reuse`.
        start: the picture that it starts from; None for noise alone.

    Raises:
        ValueError: there is no such reading, or an approximation is out of range.
    """

    prompt: str
    concept: str
    height: Side
    width: Side
    negative: str = ""
    seed: Seed = 0
    guidance: SLDConfig = MEDIUM
    sampler: SamplerName = "pndm"
    spacing: Spacing | None = None
    steps: Count = 50
    eta: Share | None = None
    space: Space = "raw"
    reading: Reading = "code"
    rule: Guidance[Any, Any, Any] | None = None
    deep_every: Count = 1
    start: StartFiles | None = None

    def __post_init__(self) -> None:
        named("reading of SLD", self.reading, READINGS)
        self.reuse  # noqa: B018 (which looks at its numbers)

    @property
    def reuse(self) -> Reuse:
        """Which evaluations reuse features of earlier ones."""
        return Reuse(self.deep_every)

    def make_sampler(self, schedule: Schedule) -> Sampler[Any, Any]:
        """The sampler on a model's schedule.

        Raises:
            ValueError: there is no such sampler, or it cannot be made so.
        """
        strength = 1.0 if self.start is None else self.start.strength
        return make_sampler(self.sampler, schedule, self.steps, self.spacing, self.eta, strength)

    def to_dict(self) -> dict[str, Any]:
        """Return nested plain values, as stored in JSON. Those that most requests lack are present only if set."""
        values = asdict(replace(self, rule=None))
        for name, usual in (("reading", "code"), ("deep_every", 1), ("start", None)):
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
            changes["rule"] = from_data(values["rule"], put(where, "rule"))
        return read(cls, {**values, **changes}, where)

    def without_safety(self) -> Request:
        """Return the same request with plain classifier-free guidance."""
        plain = replace(self.guidance, safety_scale=0.0, momentum_scale=0.0)
        return replace(self, guidance=plain, reading="code", rule=None)

    @property
    def guarded(self) -> bool:
        """Whether the guidance is more than plain classifier-free guidance."""
        return self.rule is not None or self.guidance.safety_scale > 0


def about(request: Request, pipe: Pipeline) -> dict[str, Any]:
    """Return the content of a sidecar: the request, and the model, settings and versions that made the picture."""
    return {
        "request": request.to_dict(),
        "model": pipe.config.name,
        "sha256": pipe.sha256,
        "dtype": str(pipe.unet.dtype).removeprefix("torch."),
        "device": str(pipe.device),
        "numerics": pipe.numerics,
        **pipe.unusual,
        "versions": {"sld": sld.__version__, "torch": torch.__version__},
    }


def first_edition(exact_batch: bool) -> str:
    """Say what the `exact_batch` of a record means, which the first edition wrote in place of numerics."""
    nearest = "invariant" if exact_batch else "fast"
    return f"exact_batch was {str(exact_batch).lower()} in the first edition (nearest to numerics {nearest})"
