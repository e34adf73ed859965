"""Names that a user types: looked up, and the nearest one named where there is none. Importing this loads no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import TypeVar

V = TypeVar("V")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the nearest of `known`, whatever its case; empty if none is near."""
    by_lower = {word.lower(): word for word in known}
    near = get_close_matches(name.lower(), by_lower, n=1)
    return f"; did you mean {by_lower[near[0]]!r}?" if near else ""


def named(what: str, name: str, choices: Mapping[str, V], others: str = "") -> V:
    """What `choices` holds under `name`.

    Args:
        what: the choices are, for the message.
        name: asked for.
        choices: by name.
        others: what else the message says there is.

    Raises:
        ValueError: there is none of this name; the message lists them and names the nearest.
    """
    if name in choices:
        return choices[name]
    listed = ", ".join(choices)
    raise ValueError(f"no {what} {name!r}, there are {listed}{others}{did_you_mean(name, choices)}")
