"""Formats of numbers for readers of reports, plots and terminals."""

from __future__ import annotations

from collections.abc import Sequence

DASH = "\N{EN DASH}"
"""Text in place of a missing number."""


def number(value: float) -> str:
    """Return a number with three decimals, and with a minus sign that is as wide as a digit."""
    return f"{value:.3f}".replace("-", "\N{MINUS SIGN}")


def interval(low: float, high: float) -> str:
    """Return an interval in words: "0.100 to 0.200"."""
    return f"{number(low)} to {number(high)}"


def p_value(p: float) -> str:
    """Return a p value with three decimals, or "< 0.001"."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def count(n: int) -> str:
    """Return a whole number with a narrow space between groups of three digits."""
    return f"{n:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def counts(numbers: Sequence[int]) -> str:
    """Return whole numbers as one number if they are equal, else as "lowest to highest"."""
    low, high = min(numbers), max(numbers)
    return count(low) if low == high else f"{count(low)} to {count(high)}"


def prompts(numbers: Sequence[int]) -> str:
    """Return numbers of prompts with the word: "1 prompt", "25 prompts", "24 to 25 prompts"."""
    return f"{counts(numbers)} prompt{'' if max(numbers) == 1 else 's'}"
