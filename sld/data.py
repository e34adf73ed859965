"""Typed values read from the plain data of JSON, TOML and command lines. Importing this loads no torch.

    read(ModelConfig, json.loads(text), "model.json:")     # a dataclass, and the dataclasses in it
    read(Annotated[int, Range(1)], 0, "steps")             # ValueError: steps must be at least 1; got 0
    parse(int, "50", "--steps")                            # the same from text, as a command line has it

No value is converted silently: text is no number, 1 is no truth value, NaN is no number, a string is no list. But a
tuple is read from a list, and a path from text, in which `~` is the home folder. Annotations may carry a `Range`, a
`OneOf` or a `Written`.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints, overload

from sld.spelling import did_you_mean, shown

T = TypeVar("T")


@dataclass(frozen=True)
class Range:
    """Finite numbers from `low` to `high`. `above` leaves out `low`, and `below` leaves out `high`."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False

    def __contains__(self, value: float) -> bool:
        if not math.isfinite(value):
            return False
        return (self.low < value or (self.low == value and not self.above)) and (
            value < self.high or (value == self.high and not self.below)
        )

    def __str__(self) -> str:
        if math.isinf(self.high):
            low = self.low
            return "a finite number" if math.isinf(low) else f"above {low}" if self.above else f"at least {low}"
        if math.isinf(self.low):
            return f"below {self.high}" if self.below else f"at most {self.high}"
        return f"in {'(' if self.above else '['}{self.low}, {_power(self.high)}{')' if self.below else ']'}"


@dataclass(frozen=True)
class OneOf:
    """Text that is one of these names."""

    names: tuple[str, ...]

    def __init__(self, names: Iterable[str]) -> None:
        object.__setattr__(self, "names", tuple(names))


@dataclass(frozen=True)
class Written:
    """A value that is written as text or as a single number, such as "0-3" for four numbers.

    Attributes:
        read: makes the value from the text. It raises ValueError with a complete message.
    """

    read: Callable[[str], Any]


@overload
def read(kind: type[T], data: Any, where: str = "") -> T: ...
@overload
def read(kind: Any, data: Any, where: str = "") -> Any: ...
def read(kind: Any, data: Any, where: str = "") -> Any:
    """Return the value of type `kind` that plain data describes.

    Args:
        kind: a dataclass, bool, int, float, str, Path, None, Literal, tuple, Mapping, a union of these, any of them
            annotated, or any other class, whose instances are taken as they are.
        data: what a JSON or TOML reader returns. Instances of a dataclass in it are taken as they are.
        where: the place of the data, for messages: "--steps", or "run.toml:" for a whole file.

    Raises:
        ValueError: the data is of another type or out of range, or a name is unknown or missing; says where.
    """
    origin = get_origin(kind)
    if origin is Annotated:
        return _annotated(get_args(kind)[0], kind.__metadata__, data, where)
    if kind is Any:
        return data
    if origin in (Union, UnionType):
        return _union(get_args(kind), data, where)
    if origin is Literal:
        return _named(get_args(kind), data, where)
    if origin is tuple:
        return _tuple(get_args(kind), data, where)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return _mapping(get_args(kind)[1], data, where)
    if kind in _PLAIN:
        return _plain(kind, data, where)
    wanted: Any = origin or kind
    if isinstance(data, wanted):
        return data
    if is_dataclass(wanted):
        return _dataclass(kind, data, where)
    raise _wrong(where, said(kind), data)


def parse(kind: Any, text: str, where: str) -> Any:
    """Return the value of type `kind` that text describes, as on a command line.

    Args:
        kind, where: see `read`.
        text: such as "50" for an int.

    Raises:
        ValueError: see `read`.
    """
    bare = _bare(kind)
    number = next((one for one in (int, float) if one in bare), None)
    if number is None or any(isinstance(note, Written) for note in _notes(kind)):
        return read(kind, text, where)
    try:
        value = number(text)
    except ValueError:
        raise _wrong(where, said(kind), text) from None
    return read(kind, value, where)


def path(text: str | Path, where: str = "") -> Path:
    """Return the path that text names. A `~` at its beginning is the home folder, and `~name` that of another user.

    Raises:
        ValueError: the text is empty or holds a NUL character, or there is no such user.
    """
    if not str(text) or "\0" in str(text):
        raise _wrong(where, "a path", text)
    expanded = os.path.expanduser(text)
    if str(text).startswith("~") and expanded == str(text):
        name = where or "the path"
        raise ValueError(f"{name} is {text}, and there is no such home folder: write ./{text} for a file of this name")
    # "./~" is a file of this name, and stays one, though Path leaves out the "./"
    return Path.cwd() / expanded if str(Path(expanded)).startswith("~") else Path(expanded)


def put(where: str, name: str) -> str:
    """Return the name of the place `name` inside the place `where`, for messages."""
    name = name if name.isprintable() and 0 < len(name) <= 100 else shown(name)
    return f"{where} {name}" if where.endswith(":") else f"{where}.{name}" if where else name


def said(kind: Any) -> str:
    """Return the description of a type's values in words, for messages."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        ranges = [str(note) for note in kind.__metadata__ if isinstance(note, Range)]
        ranges = [f"of {one}" if one.startswith("at ") else one for one in ranges]
        names = [_listed(note.names) for note in kind.__metadata__ if isinstance(note, OneOf)]
        return " ".join(names or [said(arguments[0]), *ranges])
    if origin in (Union, UnionType):
        return " or ".join(said(one) for one in arguments if one is not NoneType)
    if origin is Literal:
        return _listed(arguments)
    if origin is tuple:
        return "a list" if arguments[1:] == (...,) else f"a list of {len(arguments)} values"
    if is_dataclass(kind) or (isinstance(origin, type) and issubclass(origin, Mapping)):
        return "a table of its fields"
    return _PLAIN.get(kind) or f"a {getattr(origin or kind, '__name__', kind)}"


_LARGEST = sys.float_info.max

_PLAIN: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    Path: "a path",
    NoneType: "nothing",
}


def _plain(kind: type, data: Any, where: str) -> Any:
    fits = {
        bool: isinstance(data, bool),
        int: isinstance(data, int) and not isinstance(data, bool),
        float: isinstance(data, int | float) and not isinstance(data, bool) and data == data,
        str: isinstance(data, str),
        Path: isinstance(data, str | Path),
        NoneType: data is None,
    }
    if not fits[kind]:
        raise _wrong(where, _PLAIN[kind], data)
    if kind is float and isinstance(data, int) and abs(data) > _LARGEST:
        raise ValueError(f"{where or 'the value'} must be a number below 1e308; got one of {len(str(data))} digits")
    return path(cast(Any, data), where) if kind is Path else data


def _annotated(kind: Any, notes: tuple[Any, ...], data: Any, where: str) -> Any:
    for note in notes:
        number = isinstance(data, int) and not isinstance(data, bool) and kind is not str
        if isinstance(note, Written) and (number or isinstance(data, str)):
            data = _written(note, str(data), where)
        if isinstance(note, OneOf):
            _named(note.names, data, where)
    value: Any = read(kind, data, where)
    for note in notes:
        if isinstance(note, Range) and value not in note:
            raise _wrong(where, str(note), value)
    return value


def _written(note: Written, text: str, where: str) -> Any:
    try:
        return note.read(text)
    except ValueError as error:
        raise ValueError(f"{where}: {error}" if where and not where.startswith("-") else str(error)) from error


def _named(names: tuple[Any, ...], data: Any, where: str) -> Any:
    if data in names and type(data) in {type(name) for name in names}:
        return data
    near = did_you_mean(data, names) if isinstance(data, str) else ""
    raise ValueError(f"{where or 'the value'} must be {_listed(names)}; got {shown(data)}{near}")


def _union(kinds: tuple[Any, ...], data: Any, where: str) -> Any:
    kinds = tuple(kind for kind in kinds if kind is not NoneType or data is None)
    if data is None and NoneType in kinds:
        return None
    if len(kinds) == 1:
        return read(kinds[0], data, where)
    for kind in kinds:
        try:
            return read(kind, data, where)
        except ValueError:
            continue
    raise _wrong(where, said(Union[kinds]), data)  # noqa: UP007 (of a tuple of types)


def _tuple(kinds: tuple[Any, ...], data: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(data, list | tuple):
        raise _wrong(where, "a list", data)
    if kinds[1:] == (...,):
        kinds = (kinds[0],) * len(data)
    if len(kinds) != len(data):
        raise _wrong(where, f"a list of {len(kinds)} values", data)
    return tuple(read(kind, value, f"{where}[{k}]") for k, (kind, value) in enumerate(zip(kinds, data, strict=True)))


def _mapping(kind: Any, data: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(data, Mapping) or not all(isinstance(name, str) for name in data):
        raise _wrong(where, "a table", data)
    return {name: read(kind, value, put(where, name)) for name, value in data.items()}


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def _dataclass(kind: type[T], data: Any, where: str) -> T:
    if not isinstance(data, Mapping):
        raise _wrong(where or kind.__name__, "a table of its fields", data)
    kinds = _hints(kind)
    known = {field.name: field for field in fields(cast(Any, kind)) if field.init}
    place = where or f"{kind.__name__}:"
    for name in data:
        if name not in known:
            near = did_you_mean(str(name), known) or f"; there are {', '.join(known)}"
            raise ValueError(f"{put(place, str(name))} is unknown{near}")
    for name, field in known.items():
        if name not in data and field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"{put(place, name)} is missing: give {said(kinds[name])}")
    values = {name: read(kinds[name], value, put(place, name)) for name, value in data.items()}
    try:
        return kind(**values)
    except ValueError as error:
        raise ValueError(f"{place.removesuffix(':')}: {error}") from error


def _bare(kind: Any) -> set[Any]:
    """Return the types of a union without their annotations."""
    if get_origin(kind) is Annotated:
        return _bare(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        return set().union(*map(_bare, get_args(kind)))
    return {kind}


def _notes(kind: Any) -> list[Any]:
    """Return the annotations of a type, and those of the types of a union."""
    own = list(kind.__metadata__) if get_origin(kind) is Annotated else []
    inner = get_args(kind)[:1] if own else get_args(kind) if get_origin(kind) in (Union, UnionType) else ()
    return own + [note for one in inner for note in _notes(one)]


def _listed(names: Iterable[Any]) -> str:
    *most, last = map(str, names)
    return f"{', '.join(most)} or {last}" if most else last


def _power(number: float) -> str:
    whole = isinstance(number, int) and number > 2**20 and number.bit_count() == 1
    return f"2**{number.bit_length() - 1}" if whole and isinstance(number, int) else str(number)


def _wrong(where: str, expected: str, data: Any) -> ValueError:
    return ValueError(f"{where or 'the value'} must be {expected}; got {shown(data)}")
