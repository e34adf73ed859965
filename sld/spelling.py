"""Look-up of names that a user types, with the nearest name in error messages. Importing this loads no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import TypeVar

V = TypeVar("V")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the end of a message about an unknown name: the nearest of `known`, in any case; "" if none is near."""
    by_lower = {word.lower(): word for word in known}
    near = get_close_matches(name.lower(), by_lower, n=1)
    return f"; did you mean {by_lower[near[0]]!r}?" if near else ""


def named(what: str, name: str, choices: Mapping[str, V], others: str = "") -> V:
    """Return the value of `choices` under `name`.

    Args:
        what: what the choices are, for the message.
        name: the name to look up.
        choices: values by name.
        others: text that the message adds to the list of names.

    Raises:
        ValueError: the name is unknown; the message lists all names and the nearest one.
    """
    if name in choices:
        return choices[name]
    listed = ", ".join(choices)
    raise ValueError(f"no {what} {name!r}, there are {listed}{others}{did_you_mean(name, choices)}")
