"""The base class of rules around another rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor

from sld.guidance.base import Guidance, Params, Rows, State
from sld.guidance.traceable import Traceable, traceable
from sld.samplers.process import Level


@dataclass(frozen=True, eq=False)
class Wrapping(Traceable[Rows, State, Params]):
    """A rule around another one, the inner rule.

    Conditions, texts, rows, idle conditions and the answers to a trace are those of the inner rule, unless a subclass
    overrides them. State and parameters of a subclass have a field `rule` with those of the inner rule.

    Attributes:
        rule: the inner rule.
    """

    rule: Guidance[Any, Any, Any]

    @property
    def conditions(self) -> tuple[str, ...]:
        return self.rule.conditions

    @property
    def texts(self) -> Mapping[str, str]:
        return self.rule.texts

    def named(self, predictions: Sequence[Tensor]) -> Rows:
        return self.rule.named(predictions)

    def inner_rows(self, rows: Rows) -> Any:
        """Return the rows in the inner rule's NamedTuple; overridden where `named` is."""
        return rows

    def idle(self, i: int, steps: int) -> frozenset[str]:
        return self.rule.idle(i, steps)

    def moved(
        self, rows: Rows, state: State, i: Tensor | int, x: Tensor, y: Tensor, a: Level, b: Level, params: Params
    ) -> State:
        after = self.rule.moved(self.inner_rows(rows), cast(Any, state).rule, i, x, y, a, b, cast(Any, params).rule)
        return cast(Any, state)._replace(rule=after)

    def s_g(self, params: Params) -> Tensor:
        return traceable(self.rule).s_g(cast(Any, params).rule)

    def opened(self, params: Params) -> Params:
        inner = cast(Any, params).rule
        return cast(Any, params)._replace(rule=traceable(self.rule).opened(inner))

    def masks(self, rows: Rows, params: Params) -> tuple[Tensor, ...]:
        return traceable(self.rule).masks(self.inner_rows(rows), cast(Any, params).rule)
