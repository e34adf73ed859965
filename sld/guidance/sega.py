"""SEGA, semantic guidance (Brack et al., NeurIPS 2023, arXiv 2301.12247): towards or away from several concepts.

The equations follow the authors' code, SemanticStableDiffusionPipeline in diffusers, and are numbered S1 to S6 here.
There are two departures. If some concepts are past their cool-down and all others still in their warm-up, nothing is
added here, where that code divides 0 by 0. And guidance is applied at every scale, where that code switches all of it
off at s_g <= 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Literal, NamedTuple, Self, final

import torch
from torch import Tensor

from sld.guidance.base import Start
from sld.guidance.checks import require, require_scale, require_whole
from sld.guidance.concepts import ConceptGuidance, ConceptPredictions, require_weight
from sld.guidance.quantiles import channel_quantile
from sld.guidance.sld import Momentum, next_momentum, with_momentum
from sld.spelling import named


class EditParams(NamedTuple):
    """The hyper-parameters of one concept as tensors, each 0-d or (b, 1, 1, 1)."""

    sign: Tensor
    scale: Tensor
    threshold: Tensor
    weight: Tensor
    warmup_steps: Tensor
    cooldown_steps: Tensor


class SEGAParams(NamedTuple):
    """The hyper-parameters of SEGA as tensors, each 0-d or (b, 1, 1, 1)."""

    guidance_scale: Tensor
    momentum_scale: Tensor
    momentum_beta: Tensor
    momentum_rest: Tensor
    """1 - momentum_beta, rounded once."""
    concepts: tuple[EditParams, ...]


def edit(g: Tensor, p: EditParams) -> Tensor:
    """Return d_k (b, c, h, w) of one concept: its scaled direction where that is large, zero elsewhere.

    NaN stays NaN.

    Args:
        g: e_k - e0, (b, c, h, w).
        p: the concept's hyper-parameters.
    """
    d = g * p.sign * p.scale  # S1
    magnitude = d.abs()
    return torch.where(magnitude < channel_quantile(magnitude, p.threshold), 0, d)  # S2


def semantic_guidance(
    eps: ConceptPredictions, momentum: Tensor, i: Tensor | int, p: SEGAParams
) -> tuple[Tensor, Tensor]:
    """Return the guided prediction of one step of SEGA, and the next momentum.

    Momentum gathers from the first evaluation on. As long as any concept is in its warm-up, the weighted mean of the
    others acts, without momentum.

    Args:
        eps: predictions (b, c, h, w).
        momentum: nu (b, c, h, w); zeros at i = 0.
        i: index of this network evaluation, from 0. Concept k acts in [warmup_steps, cooldown_steps).
        p: hyper-parameters.

    Returns:
        The guided prediction and the next momentum, both (b, c, h, w).
    """
    nothing = torch.zeros_like(p.guidance_scale)
    warm = [c.warmup_steps <= i for c in p.concepts]
    weights = [torch.where(i >= c.cooldown_steps, 0, c.weight) for c in p.concepts]
    warm_weights = [torch.where(on, w, 0) for on, w in zip(warm, weights, strict=True)]
    share = reduce(torch.add, warm_weights, nothing)
    share = torch.where(share > 0, share, 1)

    g, some = torch.zeros_like(momentum), torch.zeros_like(momentum)
    for e, c, weight, warm_weight in zip(eps.concepts, p.concepts, weights, warm_weights, strict=True):
        d = edit(e - eps.uncond, c)
        g = g + d * weight  # S3
        some = some + d * (warm_weight / share)  # S4
    g = with_momentum(g, momentum, p.momentum_scale)  # S3
    nu = next_momentum(momentum, g, p.momentum_beta, p.momentum_rest)  # S5, which is SLD's Eq. 8
    if warm:
        g = torch.where(reduce(torch.logical_and, warm), g, some)
    return eps.uncond + ((eps.text - eps.uncond) * p.guidance_scale + g), nu  # S6


Direction = Literal["towards", "away"]
SIGNS: dict[str, float] = {"towards": 1.0, "away": -1.0}
"""The factor of e_k - e0, by direction."""


@final
@dataclass(frozen=True, kw_only=True)
class Edit:
    """A concept to go towards or away from; the defaults are those of diffusers, where the direction is "towards".

    Attributes:
        text: the concept in words.
        direction: "away", or "towards".
        scale: s_k, finite and >= 0.
        threshold: lambda_k in [0, 1], the share of each channel's elements on which the concept does not act.
        warmup_steps: delta_k >= 0, in network evaluations.
        cooldown_steps: index of the first network evaluation in which the concept no longer acts; None for no end.
        weight: w_k, finite and >= 0, relative to the other concepts.

    Raises:
        ValueError: a value is out of its range.
    """

    text: str
    direction: Direction = "away"
    scale: float = 5.0
    threshold: float = 0.9
    warmup_steps: int = 10
    cooldown_steps: int | None = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        named("direction", self.direction, SIGNS)
        require_scale("Edit: scale", self.scale)
        require("Edit: threshold", self.threshold, lambda q: 0 <= q <= 1, "in [0, 1]")
        require_whole("Edit: warmup_steps", self.warmup_steps)
        if self.cooldown_steps is not None:
            require_whole("Edit: cooldown_steps", self.cooldown_steps)
        require_weight("Edit: weight", self.weight)

    def params(self, steps: int, device: torch.device | str | None, dtype: torch.dtype) -> EditParams:
        """Return the hyper-parameters as 0-d tensors for a run of `steps` evaluations."""

        def real(value: float) -> Tensor:
            return torch.tensor(value, dtype=dtype, device=device)

        def count(value: int) -> Tensor:
            return torch.tensor(value, dtype=torch.int64, device=device)

        return EditParams(
            sign=real(SIGNS[self.direction]),
            scale=real(self.scale),
            threshold=real(self.threshold),
            weight=real(self.weight),
            warmup_steps=count(self.warmup_steps),
            cooldown_steps=count(steps if self.cooldown_steps is None else self.cooldown_steps),
        )


class SEGASafety(NamedTuple):
    """A safety setting of the paper; the fields are those of `Edit` and `SEGA`."""

    scale: float
    threshold: float
    warmup_steps: int
    momentum_scale: float


SEGA_SAFETY: dict[str, SEGASafety] = {
    "medium": SEGASafety(scale=4, threshold=0.9, warmup_steps=10, momentum_scale=0.3),
    "strong": SEGASafety(scale=7, threshold=0.85, warmup_steps=5, momentum_scale=0.5),
    "max": SEGASafety(scale=10, threshold=0.75, warmup_steps=0, momentum_scale=0.5),
}
"""The paper's safety settings, weakest first."""


@final
@dataclass(frozen=True)
class SEGA(ConceptGuidance[Momentum, SEGAParams]):
    """Semantic guidance; without a concept it is classifier-free guidance.

    Attributes:
        concepts: any number, each with its direction.
        momentum_scale: s_m, in [0, 1].
        momentum_beta: beta_m, in [0, 1).
        guidance_scale: s_g, finite and >= 0. It scales the direction of the text only, not those of the concepts.

    Raises:
        ValueError: a value is out of its range.
    """

    concepts: tuple[Edit, ...] = ()
    momentum_scale: float = 0.1
    momentum_beta: float = 0.4
    guidance_scale: float = 7.5

    def __post_init__(self) -> None:
        require("SEGA: momentum_scale", self.momentum_scale, lambda s: 0 <= s <= 1, "in [0, 1]")
        require("SEGA: momentum_beta", self.momentum_beta, lambda b: 0 <= b < 1, "in [0, 1)")
        require_scale("SEGA: guidance_scale", self.guidance_scale)

    @classmethod
    def safety(cls, name: str, texts: Sequence[str], guidance_scale: float = 7.5) -> Self:
        """Return the rule that goes away from all of `texts`, with the paper's setting `name`.

        The source that we had gives no beta_m for these settings; it is 0.4, the default.

        Raises:
            ValueError: the name is unknown; the message names the nearest.
        """
        setting = named("SEGA safety setting", name, SEGA_SAFETY)
        concepts = tuple(
            Edit(text=text, scale=setting.scale, threshold=setting.threshold, warmup_steps=setting.warmup_steps)
            for text in texts
        )
        return cls(concepts, setting.momentum_scale, guidance_scale=guidance_scale)

    @property
    def concept_texts(self) -> tuple[str, ...]:
        return tuple(concept.text for concept in self.concepts)

    def start(self, steps: int) -> Start:
        """Return the evaluations before the first concept acts, which are plain classifier-free guidance."""
        until = min((concept.warmup_steps for concept in self.concepts), default=steps)
        return Start(until, ("classifier-free", self.guidance_scale))

    def idle(self, i: int, steps: int) -> frozenset[str]:
        """Return the concepts of weight 0 or past their cool-down and, without momentum, those in their warm-up."""

        def out(concept: Edit) -> bool:
            over = concept.cooldown_steps is not None and i >= concept.cooldown_steps
            return over or concept.weight == 0 or (self.momentum_scale == 0 and i < concept.warmup_steps)

        return frozenset(name for name, concept in zip(self.texts, self.concepts, strict=True) if out(concept))

    def params(
        self, steps: int, batch: int, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
    ) -> SEGAParams:
        def real(value: float) -> Tensor:
            return torch.tensor(value, dtype=dtype, device=device)

        return SEGAParams(
            guidance_scale=real(self.guidance_scale),
            momentum_scale=real(self.momentum_scale),
            momentum_beta=real(self.momentum_beta),
            momentum_rest=real(1 - self.momentum_beta),
            concepts=tuple(concept.params(steps, device, dtype) for concept in self.concepts),
        )

    def init(self, x: Tensor) -> Momentum:
        return Momentum(torch.zeros_like(x))

    def __call__(
        self, rows: ConceptPredictions, state: Momentum, i: Tensor | int, params: SEGAParams
    ) -> tuple[Tensor, Momentum]:
        eps_hat, nu = semantic_guidance(rows, state.nu, i, params)
        return eps_hat, Momentum(nu)

    def opened(self, params: SEGAParams) -> SEGAParams:
        begun = (p._replace(warmup_steps=torch.zeros_like(p.warmup_steps)) for p in params.concepts)
        return params._replace(concepts=tuple(begun))

    def masks(self, rows: ConceptPredictions, params: SEGAParams) -> tuple[Tensor, ...]:
        """Return 1 on the elements on which a concept acts, 0 elsewhere."""
        kept = (edit(e - rows.uncond, p) for e, p in zip(rows.concepts, params.concepts, strict=True))
        return tuple((d != 0).to(d.dtype) for d in kept)
