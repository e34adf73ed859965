"""Sweeps read from TOML files into settings of configurations. Importing this loads no torch.

    first = 20                           any option of `sld evaluate`
    baseline = "off"                     what all points are compared with; always a point

    [base]                               what all points share: fields of a configuration
    preset = "strong"

    [[grid]]                             axes that multiply out; one of a single value is only a setting
    warmup_steps = [0, 7, 15]
    threshold = [0.0, 0.025]

    [[zip]]                              axes that run in parallel, and so are one axis
    steps = [10, 20]
    sampler = ["ddim", "pndm"]

    [points.mine]                        one point
    label = "as I like it"
    momentum_scale = 0.0

A value that is too long for a name is a table with a label: `{label = "long", value = "a, b, c"}`, or a rule's table
with one more entry: `{label = "SEGA", rule = "sega", concepts = […]}`. `rule.combination = ["sum", "select"]` varies a
field inside the base's rule.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import product
from math import prod
from numbers import Real
from typing import Any, NamedTuple

from sld.choices import HYPERPARAMETERS
from sld.evaluation.choices import require_settings
from sld.spelling import named, shown

OFF = "off"
"""The baseline of a sweep that names none: the base without safety guidance, with its sampler, steps, concept and so
on."""

MOST = 10_000
"""Points of a sweep. More are a mistake: their tables alone would take hours."""

LONGEST = 100
"""Characters of a label, and of a value that has none."""

_GUARDS = {"preset", "reading", "rule", *HYPERPARAMETERS} - {"guidance_scale"}
"""Fields of the base that "off" leaves out."""


class Value(NamedTuple):
    """A value on an axis, with its label in names, tables and plots."""

    value: Any
    label: str


class Axis(NamedTuple):
    """An axis of a sweep: a field, or several fields that vary together.

    Attributes:
        name: of the field, or of the fields that run in parallel.
        decides: columns of the table that the axis may change.
    """

    name: str
    decides: frozenset[str]


@dataclass(frozen=True)
class Draft:
    """A point as the sweep's file gives it.

    Attributes:
        name: of the configuration, and of its folder.
        label: its name in plots and tables.
        settings: settings as `protocol.configuration` takes them.
        axes: its value on each axis of its table.
    """

    name: str
    label: str
    settings: Mapping[str, Any]
    axes: Mapping[Axis, Value]


# ------------------------------------------------------------------------------------------------------ from the file


def expand(
    base: Mapping[str, Any],
    grids: Sequence[Mapping[str, Any]],
    zips: Sequence[Mapping[str, Any]],
    points: Mapping[str, Mapping[str, Any]],
    baseline: str = OFF,
) -> list[Draft]:
    """Return every point that the tables of a sweep describe, the baseline first.

    Args:
        base: fields that all points share.
        grids: tables of lists. Every combination of values is a point.
        zips: tables of lists of equal length. The values at each position are a point.
        points: fields by name. "label" is the point's name in plots.
        baseline: a point's name, or "off".

    Raises:
        ValueError: a table has another form, a point's field is unknown or cannot have its value, there are no points,
            or no point has the baseline's name.
    """
    for name, tables in (("grid", grids), ("zip", zips)):
        _require_tables(name, tables)
    if not isinstance(base, Mapping) or not isinstance(points, Mapping):
        raise ValueError("base is a table, and points are tables of their own: [base], [points.NAME]")
    axes = [_axes("grid", table) for table in grids]
    if (count := sum(prod(map(len, of_table)) for of_table in axes)) > MOST:
        raise ValueError(f"the sweep has {count} points, and may have {MOST}: give fewer values, or several sweeps")
    drafts = [_draft(base, choice) for of_table in axes for choice in product(*of_table)]
    drafts += [_draft(base, choice) for table in zips for choice in _parallel(table)]
    for name, table in points.items():
        if not isinstance(table, Mapping):
            raise ValueError(f"a point is a table of its fields, as in [points.{name}]; got {shown(table)}")
        settings = {key: value for key, value in table.items() if key != "label"}
        merged = reduce(_put, _flat(settings).items(), dict(base))
        drafts.append(Draft(name, _label(f"points.{name}", table.get("label", name)), merged, {}))
    if not drafts:
        raise ValueError("the sweep has no points: give [[grid]], [[zip]] or [points.NAME] tables")
    for draft in drafts:
        _require_possible(draft)
    by_name = {draft.name: draft for draft in reversed(drafts)}
    if baseline == OFF and OFF not in by_name:
        plain = {key: value for key, value in base.items() if key not in _GUARDS}
        return [Draft(OFF, OFF, {**plain, "preset": OFF}, {}), *drafts]
    first = named("point for a baseline", baseline, dict(reversed(by_name.items())))
    return [first, *(draft for draft in drafts if draft is not first)]


def _require_possible(draft: Draft) -> None:
    """Refuse a point whose settings are wrong for every model."""
    where = f"the point {shown(draft.name)} is not possible:"
    require_settings(draft.name, draft.settings, where)
    if "changes" in draft.settings:
        raise ValueError(f"{where} all points have one model: change it by --unet and the like, or use sld evaluate")
    if "rule" in draft.settings and "guidance_scale" in draft.settings:
        raise ValueError(
            f"{where} guidance_scale has no effect with a rule, which has its own: set rule.guidance_scale"
        )


def _require_tables(name: str, tables: Any) -> None:
    if not isinstance(tables, list | tuple) or not all(isinstance(table, Mapping) and table for table in tables):
        raise ValueError(f"{name} is a list of tables, each under a line [[{name}]]; got {shown(tables)}")


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of a table and of the tables in it, by dotted names. A table with a key "rule" is not split."""
    found: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping) and "rule" not in value:
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


def _put(settings: dict[str, Any], entry: tuple[str, Any]) -> dict[str, Any]:
    """Return the settings with one more, whose name may be dotted."""
    key, _, inner = entry[0].partition(".")
    if not inner:
        return {**settings, key: entry[1]}
    if not isinstance(outer := settings.get(key, {}), Mapping):
        raise ValueError(f"{key} must be a table, since {entry[0]} is given; got {shown(outer)}")
    return {**settings, key: _put(dict(outer), (inner, entry[1]))}


class Choice(NamedTuple):
    """A value on an axis with the fields that it sets, by dotted names.

    `varied` says whether the axis has other values.
    """

    axis: Axis
    value: Value
    sets: Mapping[str, Any]
    varied: bool

    @property
    def said(self) -> str:
        """The choice in words. A number has the name of its axis before it."""
        alone = len(self.sets) == 1 and isinstance(self.value.value, Real)
        return f"{self.axis.name.rpartition('.')[2]} {self.value.label}" if alone else self.value.label


def _axes(where: str, table: Mapping[str, Any]) -> list[list[Choice]]:
    """Return the choices on each axis of a table."""
    found = []
    for key, values in _flat(table).items():
        if not isinstance(values, list) or not values:
            raise ValueError(f"{where}: {key} needs a list of values, as in {key} = [1, 2]; got {shown(values)}")
        axis = Axis(key, _decided(key))
        read = [_value(where, key, value) for value in values]
        found.append([Choice(axis, value, {key: value.value}, len(read) > 1) for value in read])
    return found


def _parallel(table: Mapping[str, Any]) -> list[tuple[Choice]]:
    """Return the choices of parallel axes as choices of one axis, with the numbers of the first axis."""
    axes = _axes("zip", table)
    lengths = {key: len(values) for key, values in _flat(table).items()}
    if len(set(lengths.values())) > 1:
        said = ", ".join(f"{key} has {length}" for key, length in lengths.items())
        raise ValueError(f"zip: axes that run in parallel have equally many values; {said}")
    joint = Axis(", ".join(lengths), frozenset().union(*(_decided(key) for key in lengths)))
    made: list[tuple[Choice]] = []
    for choices in zip(*axes, strict=True):
        value = Value(choices[0].value.value, ", ".join(choice.said for choice in choices))
        sets = {key: v for choice in choices for key, v in choice.sets.items()}
        made.append((Choice(joint, value, sets, choices[0].varied),))
    return made


def _decided(key: str) -> frozenset[str]:
    if key == "preset":
        return frozenset({*HYPERPARAMETERS, "negative"} - {"guidance_scale"})
    if key.partition(".")[0] == "rule":
        return frozenset({"rule"})
    # a warm-up given as a fraction replaces one given in steps
    return frozenset({"warmup_steps", "warmup_fraction"} if key.startswith("warmup_") else {key})


def _value(where: str, key: str, value: Any) -> Value:
    if not isinstance(value, Mapping):
        if len(str(value)) > LONGEST or not str(value).isprintable():
            example = '{label = "short", value = …}'
            raise ValueError(f"{where}: this value of {key} needs a label, as in {example}: {shown(value)}")
        return Value(value, str(value))
    if "label" not in value:
        raise ValueError(f'{where}: a value of {key} that is a table needs a label, as in {{label = "short", …}}')
    rest = {name: part for name, part in value.items() if name != "label"}
    return Value(rest["value"] if set(rest) == {"value"} else rest, _label(f"{where}: {key}", value["label"]))


def _label(where: str, label: Any) -> str:
    if not isinstance(label, str) or not label.isprintable() or not 0 < len(label) <= LONGEST:
        raise ValueError(f"{where}: a label is one line of at most {LONGEST} characters; got {shown(label)}")
    return label


def _draft(base: Mapping[str, Any], choices: Sequence[Choice]) -> Draft:
    settings = reduce(_put, (entry for choice in choices for entry in choice.sets.items()), dict(base))
    varied = [choice for choice in choices if choice.varied] or choices
    label = ", ".join(choice.said for choice in varied)
    name = re.sub(r"[^\w.+-]+", "-", label.replace(", ", ".")).strip("-")
    return Draft(name, label, settings, {choice.axis: choice.value for choice in varied})
