"""The interface of rules that can be traced."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor

from sld.guidance.base import Guidance, Params, Rows, State


class Traceable(Guidance[Rows, State, Params]):
    """A rule that can be traced: it has the rows uncond and text, and answers three questions about itself.

    The answers given here fit a rule whose parameters have a field `guidance_scale`, without warm-up and masks.
    """

    def s_g(self, params: Params) -> Tensor:
        """Return the scale of the text's direction, 0-d or (b, 1, 1, 1)."""
        return cast(Any, params).guidance_scale

    def opened(self, params: Params) -> Params:
        """Return the parameters of the same run without any warm-up."""
        return params

    def masks(self, rows: Rows, params: Params) -> tuple[Tensor, ...]:
        """Return mu of every condition but uncond and text, each (b, c, h, w) in [0, 1]: the elements it acts on.

        Empty for a rule without masks.
        """
        return ()


def traceable(rule: Guidance[Any, Any, Any]) -> Traceable[Any, Any, Any]:
    """Return the rule itself if it can be traced.

    Raises:
        ValueError: it cannot; says what it lacks.
    """
    name = type(rule).__name__
    if not {"uncond", "text"} <= set(rule.conditions):
        raise ValueError(f"{name} has no guidance to trace: it needs the rows uncond and text")
    if not isinstance(rule, Traceable):
        raise ValueError(f"{name} cannot be traced: let it inherit sld.guidance.Traceable in place of Guidance")
    return rule
