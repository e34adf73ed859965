"""Parser of command lines into frozen dataclasses. Only this file uses argparse.

A command's options are a dataclass. Each field is an `option`, an `argument`, a `group` of options that several
commands share, or `from_file`: a table that only a TOML file has. The type of a field says how its text is read and
what is refused, as in `sld.data`. All values that leave this file are typed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Generic, NamedTuple, NoReturn, TypeVar, cast, get_args, get_origin, get_type_hints

from sld.data import parse, read
from sld.reading import read_toml
from sld.spelling import did_you_mean, shown

T = TypeVar("T")


@dataclass(frozen=True)
class Command(Generic[T]):
    """A command of `sld`.

    Attributes:
        name: the word that the user types.
        options: the dataclass that its command line becomes.
        run: runs the command with its options. It raises ValueError or OSError for errors of the user.
        help: for the list of commands.
        description: for its own help.
    """

    name: str
    options: type[T]
    run: Callable[[T], None]
    help: str
    description: str


class _Option(NamedTuple):
    """The form of a field on the command line and in a file.

    Attributes:
        help: its meaning. A default is added unless the text ends with one in parentheses.
        flags: in place of the one that the field's name gives.
        metavar: name of the value in the help.
        positional: whether it has no flag.
        in_file: whether a TOML file may give it.
        repeated: whether the flag may be repeated, each time with one value of a list.
        settings: whether it is the path of the TOML file.
    """

    help: str
    flags: tuple[str, ...] = ()
    metavar: str | None = None
    positional: bool = False
    in_file: bool = True
    repeated: bool = False
    settings: bool = False


class _Group(NamedTuple):
    title: str | None
    description: str | None


class _Table(NamedTuple):
    """Mark of a field that only a TOML file gives."""


def option(default: T, help: str, **how: Any) -> T:
    """Return a field for an option with a flag; `how` is any of `_Option`'s attributes."""
    return field(default=default, metadata={"how": _Option(help, **how)})


def required(help: str, **how: Any) -> Any:
    """Return a field for an option that must be given."""
    return field(metadata={"how": _Option(help, **how)})


def argument(help: str = "", *, default: Any = MISSING, **how: Any) -> Any:
    """Return a field for an argument without a flag. A tuple takes any number; a default makes it optional."""
    return field(default=default, metadata={"how": _Option(help, positional=True, in_file=False, **how)})


def group(defaults: T, title: str | None = None, description: str | None = None) -> T:
    """Return a field for a group of options, with their defaults. A title makes a heading in the help."""
    return field(default=defaults, metadata={"how": _Group(title, description)})


def from_file(default: Callable[[], T]) -> T:
    """Return a field that only a TOML file gives. `default` makes its value if the file does not."""
    return field(default_factory=default, metadata={"how": _Table()})


class _Leaf(NamedTuple):
    """A field that holds a value, with its group."""

    name: str
    kind: Any
    default: Any
    how: _Option | _Table
    group: _Group | None

    @property
    def flags(self) -> tuple[str, ...]:
        how = self.how
        own = how.flags if isinstance(how, _Option) else ()
        return own or ("--" + self.name.replace("_", "-"),)


def parse_arguments(
    program: str, description: str, version: str, commands: Sequence[Command[Any]], arguments: Sequence[str] | None
) -> tuple[Command[Any], Any]:
    """Return the command that the arguments name, with its options.

    Args:
        program, description, version: for the help.
        commands: all commands.
        arguments: of the command line, without the program; None for this process's.

    Raises:
        ValueError: an argument, or a value in the file of settings, is unknown, missing or refused.
        SystemExit: with status 0, after --help or --version.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    asked = next((word for word in arguments if not word.startswith("-")), None)
    parser = _Parser(prog=program, description=description)
    parser.add_argument("--version", action="version", version=version)
    choose = parser.add_subparsers(required=True, metavar="command", dest="command", parser_class=_Parser)
    for command in commands:
        one = choose.add_parser(command.name, help=command.help, description=command.description)
        if command.name == asked:  # declaring the options of all commands would take longer than all the rest
            _declare(one, list(_leaves(command.options)))
    given = vars(parser.parse_args(arguments))
    command = next(c for c in commands if c.name == given["command"])
    leaves = {leaf.name: leaf for leaf in _leaves(command.options)}
    values = {name: _value(leaves[name], text) for name, text in given.items() if name != "command"}
    file = next((values.get(leaf.name) for leaf in leaves.values() if _is_settings(leaf)), None)
    if file is None:
        return command, _build(command.options, values)
    settings = read_settings(file, leaves)
    try:
        return command, _build(command.options, {**settings, **values})
    except ValueError as error:
        raise ValueError(f"{file}{', with the options given' if len(values) > 1 else ''}: {error}") from error


class _Parser(argparse.ArgumentParser):
    """Parser with errors in one line, which name the nearest flag or command."""

    def error(self, message: str) -> NoReturn:
        for flag in message.removeprefix("unrecognized arguments: ").split():
            if message.startswith("unrecognized") and flag.startswith("-"):
                known = [name for name in self._option_string_actions if name.startswith("--")]
                raise ValueError(f"there is no option {flag} here{did_you_mean(flag.partition('=')[0], known)}")
        raise ValueError(message)

    def parse_known_args(self, *args: Any, **options: Any) -> Any:
        space, rest = super().parse_known_args(*args, **options)  # for a command: all arguments must be known
        if rest:
            self.error(f"unrecognized arguments: {' '.join(rest)}")
        return space, rest

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            known = list(action.choices)
            raise ValueError(f"no command {value!r}, there are {', '.join(known)}{did_you_mean(str(value), known)}")


def _declare(parser: argparse.ArgumentParser, leaves: Sequence[_Leaf]) -> None:
    """Declare the fields to argparse. It returns texts only; types and defaults are handled here."""
    groups: dict[_Group | None, Any] = {None: parser}
    for leaf in leaves:
        how = leaf.how
        if not isinstance(how, _Option):
            continue
        if leaf.group not in groups:
            assert leaf.group is not None
            groups[leaf.group] = parser.add_argument_group(leaf.group.title, leaf.group.description)
        more: dict[str, Any] = {"help": _help(leaf), "default": argparse.SUPPRESS}
        if how.positional:
            if get_origin(leaf.kind) is tuple:
                more["nargs"] = "*"
            elif leaf.default is not MISSING:
                more["nargs"] = "?"
            groups[leaf.group].add_argument(leaf.name, metavar=how.metavar, **more)
            continue
        if leaf.kind is bool:
            more["action"] = "store_true"
        elif bool in get_args(leaf.kind):
            more["action"] = argparse.BooleanOptionalAction
        else:
            more |= {"metavar": how.metavar, "action": "append" if how.repeated else "store"}
        groups[leaf.group].add_argument(*leaf.flags, dest=leaf.name, required=leaf.default is MISSING, **more)


def _help(leaf: _Leaf) -> str:
    assert isinstance(leaf.how, _Option)
    text, default = leaf.how.help, leaf.default
    if default is MISSING or default is None or default is False or default == "" or isinstance(default, tuple):
        return text.replace("%", "%%")
    return f"{text} ({default})".strip().replace("%", "%%")


def _leaves(options: type[Any]) -> Iterator[_Leaf]:
    """Yield every field that holds a value. The fields of a group come at its place."""
    return _leaves_of(options, None, None)


def _leaves_of(options: type[Any], defaults: Any, group: _Group | None) -> Iterator[_Leaf]:
    kinds = get_type_hints(options, include_extras=True)
    for one in fields(options):
        how = one.metadata["how"]
        if isinstance(how, _Group):
            yield from _leaves_of(type(one.default), one.default, how if how.title else group)
            continue
        default = one.default if defaults is None else getattr(defaults, one.name)
        if default is MISSING and one.default_factory is not MISSING:
            default = one.default_factory()
        yield _Leaf(one.name, kinds[one.name], default, how, group)


def _is_settings(leaf: _Leaf) -> bool:
    return isinstance(leaf.how, _Option) and leaf.how.settings


def _value(leaf: _Leaf, given: Any) -> Any:
    """Return the typed value of what argparse returned: a truth value, a text, or several texts."""
    assert isinstance(leaf.how, _Option)
    where = (leaf.how.metavar or leaf.name) if leaf.how.positional else leaf.flags[0]
    if isinstance(given, bool):
        return given
    if isinstance(given, list):
        return read(leaf.kind, given, where)
    return parse(leaf.kind, given, where)


def read_settings(path: Path, leaves: Mapping[str, _Leaf]) -> dict[str, Any]:
    """Return the values that a TOML file gives, by the names of the options, with "_" for "-".

    Raises:
        ValueError: the file cannot be read, a name is unknown or a value is refused; the message has file and name.
    """
    settings = read_toml(path)
    known = {name: leaf for name, leaf in leaves.items() if isinstance(leaf.how, _Table) or leaf.how.in_file}
    for name in settings:
        if name not in known:
            near = did_you_mean(name, known) or f"; there are {', '.join(sorted(known))}"
            raise ValueError(f"{path}: option {shown(name)} is unknown{near}")
    return {name: read(known[name].kind, value, f"{path}: {name}") for name, value in settings.items()}


def _build(options: type[T], values: Mapping[str, Any], defaults: T | None = None) -> T:
    """Return the options with these values, and defaults for all others."""
    made: dict[str, Any] = {}
    for one in fields(cast(Any, options)):
        if isinstance(one.metadata["how"], _Group):
            made[one.name] = _build(type(one.default), values, one.default)
        elif one.name in values:
            made[one.name] = values[one.name]
    return options(**made) if defaults is None else cast(T, replace(cast(Any, defaults), **made))
