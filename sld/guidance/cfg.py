"""Classifier-free guidance (Ho and Salimans, arXiv 2207.12598)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple, Self, final

import torch
from torch import Tensor

from sld.guidance.base import Start, Stateless, per_image
from sld.guidance.checks import require_scale
from sld.guidance.traceable import Traceable


class CFGPredictions(NamedTuple):
    """Predictions (b, c, h, w) without and with the text."""

    uncond: Tensor
    text: Tensor


class CFGParams(NamedTuple):
    """The hyper-parameter of classifier-free guidance as a tensor, 0-d or (b, 1, 1, 1)."""

    guidance_scale: Tensor


def guided(uncond: Tensor, direction: Tensor, scale: Tensor) -> Tensor:
    """Return the prediction that lies `scale` times a direction away from the unconditional one.

    Args:
        uncond, direction: (b, c, h, w).
        scale: s_g, 0-d or (b, 1, 1, 1).

    Returns:
        (b, c, h, w).
    """
    return uncond + direction * scale  # Eq. 3


def classifier_free(uncond: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    """Return the prediction of classifier-free guidance, whose direction is that of the text. Shapes as in `guided`."""
    return guided(uncond, text - uncond, scale)


@final
@dataclass(frozen=True)
class ClassifierFreeGuidance(Traceable[CFGPredictions, Stateless, CFGParams]):
    """Classifier-free guidance (Ho and Salimans, arXiv 2207.12598, as Eq. 3 of arXiv 2211.05105).

    A negative prompt adds no condition: it is encoded in place of the empty text and arrives as `uncond`.

    Attributes:
        scale: s_g, for all images or one for each; finite and >= 0. Unlike diffusers, which switches guidance off at
            s_g <= 1, the equation is applied at every scale.

    Raises:
        ValueError: a scale is out of range.
    """

    scale: float | tuple[float, ...] = 7.5

    rows_type: ClassVar[type[NamedTuple]] = CFGPredictions

    def __post_init__(self) -> None:
        for scale in self.scale if isinstance(self.scale, tuple) else (self.scale,):
            require_scale("ClassifierFreeGuidance: scale", scale)

    def idle(self, i: int, steps: int) -> frozenset[str]:
        """Return uncond at scale 1, where it cancels up to rounding, text at scale 0, and nothing at other scales."""
        scales = set(self.scale) if isinstance(self.scale, tuple) else {self.scale}
        if scales == {1}:
            return frozenset({"uncond"})
        return frozenset({"text"} if scales == {0} else ())

    def start(self, steps: int) -> Start:
        """Return the whole run, shared with all rules that apply classifier-free guidance at the same scale."""
        return Start(steps, ("classifier-free", self.scale))

    def of_image(self, k: int) -> Self:
        return replace(self, scale=self.scale[k]) if isinstance(self.scale, tuple) else self

    def params(
        self, steps: int, batch: int, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
    ) -> CFGParams:
        if isinstance(self.scale, tuple):
            return per_image([CFGParams(torch.tensor(s, dtype=dtype, device=device)) for s in self.scale], batch)
        return CFGParams(torch.tensor(self.scale, dtype=dtype, device=device))

    def init(self, x: Tensor) -> Stateless:
        return Stateless()

    def __call__(
        self, rows: CFGPredictions, state: Stateless, i: Tensor | int, params: CFGParams
    ) -> tuple[Tensor, Stateless]:
        return classifier_free(rows.uncond, rows.text, params.guidance_scale), state
