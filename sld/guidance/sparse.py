"""An approximation: a rule whose rows beside uncond and text are computed at every k-th evaluation only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, NamedTuple, Self, final

import torch
from torch import Tensor

from sld.guidance.base import Guidance, Start, require
from sld.guidance.cfg import CFGPredictions
from sld.guidance.concepts import ConceptPredictions


class SparseParams(NamedTuple):
    """Those of the rule, and k."""

    rule: NamedTuple
    every: Tensor


class SparseState(NamedTuple):
    """The rule's state, and how each concept's prediction last differed from the unconditional one, (b, c, h, w)."""

    rule: NamedTuple
    away: tuple[Tensor, ...]


@final
@dataclass(frozen=True)
class Sparse(Guidance[ConceptPredictions, SparseState, SparseParams]):
    """Any rule, with its safety concept or concepts looked at only every k-th evaluation.

    In between e_S is taken for e_0 plus the last e_S - e_0, a difference that changes slowly from step to step. Of
    SLD's three rows this saves a third at k - 1 of k evaluations. It changes pictures: docs/performance.md has the
    price.

    Attributes:
        rule: any rule with the rows uncond and text and at least one more.
        every: k >= 1; 1 changes nothing.

    Raises:
        ValueError: k is out of its range, or the rule has no row to leave out.
    """

    rule: Guidance[Any, Any, Any]
    every: int = 2

    def __post_init__(self) -> None:
        require("Sparse: every", self.every, lambda k: isinstance(k, Integral) and k >= 1, "a whole number >= 1")
        if not set(CFGPredictions._fields) < set(self.rule.conditions):
            raise ValueError(
                f"{type(self.rule).__name__} has the rows {', '.join(self.rule.conditions)}: Sparse needs uncond, text "
                "and a concept to leave out"
            )

    @property
    def conditions(self) -> tuple[str, ...]:
        return self.rule.conditions

    @property
    def texts(self) -> Mapping[str, str]:
        return self.rule.texts

    def named(self, predictions: Sequence[Tensor]) -> ConceptPredictions:
        uncond, text, *concepts = predictions
        return ConceptPredictions(uncond, text, tuple(concepts))

    def idle(self, i: int, steps: int) -> frozenset[str]:
        """Between two looks all concepts; at a look those that are idle until the next one, and what else is.

        Where a concept is looked at, the unconditional prediction is wanted too, for the difference.
        """
        concepts = frozenset(self.conditions) - set(CFGPredictions._fields)
        idle = self.rule.idle(i, steps)
        if i % self.every:
            return idle | concepts
        unread = concepts.intersection(*(self.rule.idle(j, steps) for j in range(i, min(i + self.every, steps))))
        return (idle - concepts) | unread if unread == concepts else (idle & {"text"}) | unread

    def start(self, steps: int) -> Start:
        return self.rule.start(steps)

    def of_image(self, k: int) -> Self:
        return type(self)(self.rule.of_image(k), self.every)

    def params(
        self, steps: int, batch: int, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
    ) -> SparseParams:
        every = torch.tensor(self.every, dtype=torch.int64, device=device)
        return SparseParams(self.rule.params(steps, batch, device, dtype), every)

    def init(self, x: Tensor) -> SparseState:
        return SparseState(self.rule.init(x), tuple(torch.zeros_like(x) for _ in self.conditions[2:]))

    def __call__(
        self, rows: ConceptPredictions, state: SparseState, i: Tensor | int, params: SparseParams
    ) -> tuple[Tensor, SparseState]:
        looks = _looks(i, params)
        new = (concept - rows.uncond for concept in rows.concepts)
        away = tuple(torch.where(looks, now, last) for now, last in zip(new, state.away, strict=True))
        eps_hat, of_rule = self.rule(self._complete(rows, away, looks), state.rule, i, params.rule)
        return eps_hat, SparseState(of_rule, away)

    def moved(
        self,
        rows: ConceptPredictions,
        state: SparseState,
        i: Tensor | int,
        x: Tensor,
        y: Tensor,
        a: Tensor,
        b: Tensor,
        params: SparseParams,
    ) -> SparseState:
        complete = self._complete(rows, state.away, _looks(i, params))
        return state._replace(rule=self.rule.moved(complete, state.rule, i, x, y, a, b, params.rule))

    def _complete(self, rows: ConceptPredictions, away: tuple[Tensor, ...], looks: Tensor) -> Any:
        """The rows as the rule has them."""
        concepts = (torch.where(looks, now, rows.uncond + last) for now, last in zip(rows.concepts, away, strict=True))
        return self.rule.named((rows.uncond, rows.text, *concepts))

    def s_g(self, params: SparseParams) -> Tensor:
        return self.rule.s_g(params.rule)

    def opened(self, params: SparseParams) -> SparseParams:
        return params._replace(rule=self.rule.opened(params.rule))

    def masks(self, rows: ConceptPredictions, params: SparseParams) -> tuple[Tensor, ...]:
        return self.rule.masks(self.rule.named((rows.uncond, rows.text, *rows.concepts)), params.rule)


def _looks(i: Tensor | int, params: SparseParams) -> Tensor:
    return i % params.every == 0
