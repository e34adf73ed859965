"""A check that a value has the types that its annotations say, with its ranges and names, all the way down."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from sld.data import OneOf, Range


def require_typed(value: Any) -> None:
    """Refuse a dataclass with a field, here or in a dataclass below, that is not what its annotation says.

    Raises:
        AssertionError: names the field.
    """
    kinds = get_type_hints(type(value), include_extras=True)
    for field in fields(value):
        part = getattr(value, field.name)
        assert fits(part, kinds[field.name]), f"{type(value).__name__}.{field.name} is {part!r}"


def fits(value: Any, kind: Any) -> bool:
    """Return whether a value has a type, as an annotation writes it. Numbers are no truth values and not NaN."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        notes = kind.__metadata__
        return fits(value, arguments[0]) and all(
            value in (note if isinstance(note, Range) else note.names)
            for note in notes
            if isinstance(note, Range | OneOf)
        )
    if origin in (Union, UnionType):
        return any(fits(value, one) for one in arguments)
    if origin is Literal:
        return value in arguments and not (isinstance(value, bool) and True not in arguments)
    if origin is tuple:
        kinds = arguments[:1] * len(value) if isinstance(value, tuple) and arguments[1:] == (...,) else arguments
        return isinstance(value, tuple) and len(kinds) == len(value) and all(map(fits, value, kinds))
    if origin is not None and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(fits(part, arguments[1]) for part in value.values())
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind is Any or kind is NoneType:
        return kind is Any or value is None
    if is_dataclass(value):
        require_typed(value)
    return isinstance(value, origin or kind) if isinstance(origin or kind, type) else True
