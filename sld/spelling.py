"""Names and values in messages: look-up with the nearest name, values in few words. Importing this loads no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any, TypeVar

V = TypeVar("V")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the end of a message about an unknown name: the nearest of `known`, in any case; "" if none is near."""
    by_lower = {word.lower(): word for word in known}
    near = get_close_matches(name.lower(), by_lower, n=1)
    return f"; did you mean {by_lower[near[0]]!r}?" if near else ""


def shown(value: Any) -> str:
    """Return a value for a message, as Python writes it, on one line of at most 120 characters."""
    text = repr(value).replace("\n", " ")
    return text if len(text) <= 120 else f"{text[:80]} … ({len(text)} characters)"


def named(what: str, name: Any, choices: Mapping[str, V], others: str = "") -> V:
    """Return the value of `choices` under `name`.

    Args:
        what: what the choices are, for the message.
        name: the name to look up.
        choices: values by name.
        others: text that the message adds to the list of names.

    Raises:
        ValueError: the name is unknown; the message lists all names and the nearest one.
    """
    if isinstance(name, str) and name in choices:
        return choices[name]
    listed = ", ".join(choices)
    near = did_you_mean(name, choices) if isinstance(name, str) else ""
    raise ValueError(f"no {what} {shown(name)}, there are {listed}{others}{near}")
