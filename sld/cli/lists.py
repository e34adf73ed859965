"""Lists in the notation of the command line: "0-3,7", "violence,shocking", "weapons; drugs"."""

from __future__ import annotations

import re
from typing import Annotated

from sld.data import Written
from sld.spelling import shown


def integers(text: str, what: str, end: int) -> tuple[int, ...]:
    """Return the whole numbers in [0, end) of a list of numbers and ranges, such as "1,5,8-9".

    Args:
        text: the list.
        what: name of the numbers, for messages.
        end: the numbers must be below it.

    Raises:
        ValueError: the text is no such list, or a number is out of range.
    """
    numbers: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,30})(?:-([0-9]{1,30}))?\s*", part)
        if match is None:
            raise ValueError(f'{what} are numbers and ranges such as "7", "0-3" or "1,5,8-9"; got {shown(text)}')
        first, last = int(match[1]), int(match[2] or match[1])
        if last >= end or last < first or last - first >= 1_000_000:
            raise ValueError(
                f"{what} must be in [0, {_power(end)}), ranges rising and under a million long; got {shown(part)}"
            )
        numbers += range(first, last + 1)
    return tuple(numbers)


def _power(end: int) -> str:
    return f"2**{end.bit_length() - 1}" if end.bit_count() == 1 and end > 2**20 else str(end)


def split(text: str, separator: str) -> tuple[str, ...]:
    """Return the parts of a text, stripped of white space, without empty parts."""
    return tuple(part.strip() for part in text.split(separator) if part.strip())


def _seed(text: str) -> int:
    numbers = integers(text, "a seed", 2**64) if text.isdigit() else ()
    if len(numbers) != 1:
        raise ValueError(f"a seed is one whole number in [0, 2**64); got {shown(text)}")
    return numbers[0]


Names = Annotated[tuple[str, ...], Written(lambda text: split(text, ","))]
"""Texts separated by commas; in a file also a list."""

Texts = Annotated[tuple[str, ...], Written(lambda text: split(text, ";"))]
"""Texts separated by semicolons; in a file also a list."""

Seeds = Annotated[tuple[int, ...], Written(lambda text: integers(text, "seeds", 2**64))]
OneSeed = Annotated[int, Written(_seed)]
Ids = Annotated[tuple[int, ...], Written(lambda text: integers(text, "row ids", 10**9))]
