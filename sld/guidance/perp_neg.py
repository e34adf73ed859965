"""Perp-Neg (Armandpour et al., arXiv 2304.04968): negative prompts, perpendicular to the direction of the text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from torch import Tensor

from sld.guidance.base import Stateless
from sld.guidance.cfg import guided
from sld.guidance.checks import require_scale
from sld.guidance.concepts import ConceptGuidance, ConceptPredictions, require_weight
from sld.guidance.vectors import perpendicular


class PerpNegParams(NamedTuple):
    """The hyper-parameters of Perp-Neg, s_g and every w_k, as tensors, each 0-d or (b, 1, 1, 1)."""

    guidance_scale: Tensor
    weights: tuple[Tensor, ...]


def perp_neg(eps: ConceptPredictions, p: PerpNegParams) -> Tensor:
    """Return the guided prediction (b, c, h, w) from predictions (b, c, h, w), whose concepts are the negatives."""
    d = eps.text - eps.uncond
    direction = d
    for negative, weight in zip(eps.concepts, p.weights, strict=True):
        away = perpendicular(negative - eps.uncond, d)
        direction = direction - away * weight
    return guided(eps.uncond, direction, p.guidance_scale)


@final
@dataclass(frozen=True, kw_only=True)
class Negative:
    """A negative prompt and its weight w, finite and >= 0.

    Raises:
        ValueError: the weight is out of its range.
    """

    text: str
    weight: float = 1.0

    def __post_init__(self) -> None:
        require_weight("Negative: weight", self.weight)


@final
@dataclass(frozen=True)
class PerpNeg(ConceptGuidance[Stateless, PerpNegParams]):
    """Perp-Neg; without a negative it is classifier-free guidance.

    Every negative pushes away from its own direction without the component along the text's. Do not confuse the
    negatives with the pipeline's negative prompt, which replaces the empty text, the origin of all directions.

    Attributes:
        negatives: the negative prompts, any number.
        guidance_scale: s_g, finite and >= 0, for the text and the negatives.

    Raises:
        ValueError: the scale is out of range.
    """

    negatives: tuple[Negative, ...] = ()
    guidance_scale: float = 7.5

    def __post_init__(self) -> None:
        require_scale("PerpNeg: guidance_scale", self.guidance_scale)

    @property
    def concept_texts(self) -> tuple[str, ...]:
        return tuple(negative.text for negative in self.negatives)

    def idle(self, i: int, steps: int) -> frozenset[str]:
        """Return the negatives of weight 0."""
        return frozenset(name for name, n in zip(self.texts, self.negatives, strict=True) if n.weight == 0)

    def params(
        self, steps: int, batch: int, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
    ) -> PerpNegParams:
        def real(value: float) -> Tensor:
            return torch.tensor(value, dtype=dtype, device=device)

        return PerpNegParams(real(self.guidance_scale), tuple(real(negative.weight) for negative in self.negatives))

    def init(self, x: Tensor) -> Stateless:
        return Stateless()

    def __call__(
        self, rows: ConceptPredictions, state: Stateless, i: Tensor | int, params: PerpNegParams
    ) -> tuple[Tensor, Stateless]:
        return perp_neg(rows, params), state
