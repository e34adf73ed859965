"""The rule that does not guide: the text's prediction alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple, final

import torch
from torch import Tensor

from sld.guidance.base import Guidance, Stateless


class TextPrediction(NamedTuple):
    """The one prediction (b, c, h, w) that an unguided run needs."""

    text: Tensor


class NoParams(NamedTuple):
    """The hyper-parameters of a rule that has none."""


@final
@dataclass(frozen=True)
class Unguided(Guidance[TextPrediction, Stateless, NoParams]):
    """The prediction for the text as it is. It costs one row of the network per image."""

    rows_type: ClassVar[type[NamedTuple]] = TextPrediction

    def params(
        self, steps: int, batch: int, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
    ) -> NoParams:
        return NoParams()

    def init(self, x: Tensor) -> Stateless:
        return Stateless()

    def __call__(
        self, rows: TextPrediction, state: Stateless, i: Tensor | int, params: NoParams
    ) -> tuple[Tensor, Stateless]:
        return rows.text, state
