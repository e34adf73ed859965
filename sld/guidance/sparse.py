"""An approximation: any rule, with its concepts predicted at every k-th evaluation only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self, final

import torch
from torch import Tensor

from sld.guidance.base import Start
from sld.guidance.cfg import CFGPredictions
from sld.guidance.checks import require_whole
from sld.guidance.concepts import ConceptPredictions
from sld.guidance.wrapping import Wrapping
from sld.samplers.process import Level


class SparseParams(NamedTuple):
    """The inner rule's hyper-parameters, and k, 0-d int64."""

    rule: NamedTuple
    every: Tensor


class SparseState(NamedTuple):
    """The inner rule's state, and the last known difference e_k - e_0 of every concept, (b, c, h, w)."""

    rule: NamedTuple
    away: tuple[Tensor, ...]


@final
@dataclass(frozen=True)
class Sparse(Wrapping[ConceptPredictions, SparseState, SparseParams]):
    """Any rule, with its concepts predicted at every k-th evaluation only.

    At the evaluations between, e_S is replaced by e_0 plus the last known e_S - e_0, which changes slowly from step to
    step. These evaluations need two of SLD's three rows. Pictures change: docs/performance.md says how much.

    Attributes:
        rule: any rule with the rows uncond and text and at least one more.
        every: k >= 1; 1 changes nothing.

    Raises:
        ValueError: k is out of its range, or the rule has no concept.
    """

    every: int = 2

    def __post_init__(self) -> None:
        require_whole("Sparse: every", self.every, 1)
        if not set(CFGPredictions._fields) < set(self.rule.conditions):
            raise ValueError(
                f"{type(self.rule).__name__} has the rows {', '.join(self.rule.conditions)}: Sparse needs uncond, text "
                "and a concept to leave out"
            )

    def named(self, predictions: Sequence[Tensor]) -> ConceptPredictions:
        uncond, text, *concepts = predictions
        return ConceptPredictions(uncond, text, tuple(concepts))

    def inner_rows(self, rows: ConceptPredictions) -> Any:
        return self.rule.named((rows.uncond, rows.text, *rows.concepts))

    def idle(self, i: int, steps: int) -> frozenset[str]:
        """Return the conditions that need not be predicted at evaluation i.

        If i is no multiple of k, these are all concepts, and what is idle in the inner rule. If it is one, a concept is
        idle if the inner rule does not use it before the next multiple; any other concept needs the unconditional
        prediction too, for the difference.
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
        filled = self.inner_rows(_filled(rows, away, looks))
        eps_hat, after = self.rule(filled, state.rule, i, params.rule)
        return eps_hat, SparseState(after, away)

    def moved(
        self,
        rows: ConceptPredictions,
        state: SparseState,
        i: Tensor | int,
        x: Tensor,
        y: Tensor,
        a: Level,
        b: Level,
        params: SparseParams,
    ) -> SparseState:
        return super().moved(_filled(rows, state.away, _looks(i, params)), state, i, x, y, a, b, params)


def _looks(i: Tensor | int, params: SparseParams) -> Tensor:
    return i % params.every == 0


def _filled(rows: ConceptPredictions, away: tuple[Tensor, ...], looks: Tensor) -> ConceptPredictions:
    """Return the rows, with concepts that are not looked at replaced by e_0 plus their last difference from it."""
    concepts = (torch.where(looks, now, rows.uncond + last) for now, last in zip(rows.concepts, away, strict=True))
    return rows._replace(concepts=tuple(concepts))
