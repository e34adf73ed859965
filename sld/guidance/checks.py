"""Checks of the settings of guidance rules."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Integral, Real


def require(name: str, value: float, accepts: Callable[[float], bool], expected: str) -> None:
    """Refuse a setting that is not a real number in its range; a bool counts as no number.

    Args:
        name: the class and the field, as the message shows them.
        value: the setting.
        accepts: whether a number is in the range; must be False for NaN.
        expected: the range in words, after "must be".

    Raises:
        ValueError: says what was expected and what came.
    """
    if isinstance(value, bool) or not isinstance(value, Real) or not accepts(value):
        raise ValueError(f"{name} must be {expected}; got {value!r}")


def require_scale(name: str, value: float) -> None:
    """Refuse a guidance scale that is negative or not finite.

    The papers ask for more than 1. Smaller scales are allowed for ablations: 1 gives the text's prediction, 0 the
    unconditional one.

    Raises:
        ValueError: says what was expected and what came.
    """
    require(name, value, lambda s: 0 <= s < math.inf, "a finite number >= 0 (7.5 is usual, 1 follows the text alone)")


def require_whole(name: str, value: int, low: int = 0, advice: str = "") -> None:
    """Refuse a setting that is not a whole number of at least `low`. `advice` ends the message's first half.

    Raises:
        ValueError: says what was expected and what came.
    """
    require(name, value, lambda n: isinstance(n, Integral) and n >= low, f"a whole number >= {low}{advice}")
