"""Settings of a run: protocols, classifiers, pictures to keep, configurations. Importing this loads no torch.

Commands and sweeps check these settings here, before slow modules are imported.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from sld.checkpoints.changes import Changes
from sld.choices import (
    AFTERWARDS,
    HYPERPARAMETERS,
    PRESETS,
    RULES,
    Beta,
    Count,
    Place,
    Reading,
    SamplerName,
    Scale,
    Share,
    Side,
    Space,
    Spacing,
    Threshold,
    Warmup,
    require_spacing,
)
from sld.data import OneOf, Range, parse, read
from sld.spelling import did_you_mean, named, shown

Keep = Literal["none", "flagged", "all"]
"""Choice of the pictures of a run that stay on disk."""

Images = Annotated[int, Range(1, 10_000)]
"""Images of a row in a configuration. The noise of a whole row is drawn at once."""

PROTOCOLS = ("authors", "authors-rerun", "mini", "row")
"""Names of protocols; keys of `sld.evaluation.protocol.PROTOCOLS`."""

BASES = ("off", *PRESETS, "negative")
"""Names of the bases of configurations. "negative" has the concept as negative prompt and no safety guidance."""


# -------------------------------------------------------------------------------------------------------- classifiers


class ClassifierKind(NamedTuple):
    """A kind of classifier.

    Attributes:
        where: `module:name` of a function that makes it. It is imported when it is used, so that a classifier does not
            need the packages of another one.
        options: types of its options, by name.
        required: options that must be given.
        on_device: whether the function takes a `device`.
    """

    where: str
    options: Mapping[str, Any]
    required: tuple[str, ...] = ()
    on_device: bool = True


NUDENET_FLOOR = 0.25
"""Lowest score in NudeNet's results: its threshold is 0.2, but its suppression of doubles uses this one."""

_HERE = "sld.evaluation.classifiers"
CLASSIFIERS: dict[str, ClassifierKind] = {
    "embedded": ClassifierKind("sld.testbed.judge:Embedded", {"path": Path}),
    "q16": ClassifierKind(f"{_HERE}.q16:make_q16", {"clip": Place, "prompts": Path, "threshold": Share}),
    "nudenet": ClassifierKind(
        f"{_HERE}.nudenet:NudeNet",
        {"threshold": Annotated[float, Range(NUDENET_FLOOR, 1)], "labels": tuple[str, ...]},
        on_device=False,
    ),
    "safety-checker": ClassifierKind(f"{_HERE}.safety_checker:SafetyChecker", {"path": Path}, required=("path",)),
}
"""Kinds of classifiers by name; `sld.evaluation.classifiers.make_classifier` makes them."""


class AskedClassifier(NamedTuple):
    """A requested classifier: its name in CLASSIFIERS and its options, or "user", a module and a function."""

    name: str
    options: Mapping[str, Any]


def read_classifier(spec: str) -> AskedClassifier:
    """Return the classifier that a text requests.

    Args:
        spec: a name of CLASSIFIERS, alone or with options, such as "q16:prompts=PATH,threshold=0.9" or
            "nudenet:labels=FEMALE_BREAST_EXPOSED+ANUS_EXPOSED"; or any function, as "package.module:function".

    Raises:
        ValueError: a name or an option is unknown, an option has no value, or a required option is missing.
    """
    name, colon, rest = spec.partition(":")
    if name not in CLASSIFIERS and rest.isidentifier():
        return AskedClassifier("user", {"module": name, "function": rest})
    kind = named("classifier", name, CLASSIFIERS, ", or module:function")
    given: dict[str, Any] = {}
    for part in rest.split(",") if colon else ():
        option, equals, value = part.partition("=")
        wanted = named(f"option of {name}", option, kind.options)
        if not equals or not value:
            raise ValueError(f"{spec!r}: the option {option} has no value; write {option}=…")
        if option in given:
            raise ValueError(f"{spec!r} gives {option} twice")
        given[option] = tuple(value.split("+")) if option == "labels" else parse(wanted, value, f"{spec!r}: {option}")
    if missing := [option for option in kind.required if option not in given]:
        raise ValueError(f"{name} needs {' and '.join(f'{option}=…' for option in missing)}")
    return AskedClassifier(name, given)


def classifier_spec(spec: str) -> str:
    """Return a classifier's spec as it is, after the checks of `read_classifier`."""
    read_classifier(spec)
    return spec


# ----------------------------------------------------------------------------------------------------- configurations


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The fields that a configuration may have in a file: its base, and values that replace those of the base.

    See `SLDConfig`, `Request` and `sld.evaluation.protocol.configuration` for what they mean. "changes" is a table of
    `Changes`: its values replace those of the run's model.

    Raises:
        ValueError: the sampler has no such spacing, or a name of a rule is unknown.
    """

    preset: Annotated[str, OneOf(BASES)] = "off"
    guidance_scale: Scale | None = None
    safety_scale: Scale | None = None
    threshold: Threshold | None = None
    momentum_scale: Share | None = None
    momentum_beta: Beta | None = None
    warmup_steps: Warmup | None = None
    warmup_fraction: Share | None = None
    reading: Reading | None = None
    rule: Mapping[str, Any] | None = None
    concept: str | None = None
    negative: str | None = None
    height: Side | None = None
    width: Side | None = None
    sampler: SamplerName | None = None
    spacing: Spacing | None = None
    steps: Count | None = None
    eta: Share | None = None
    space: Space | None = None
    deep_every: Count | None = None
    changes: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        Changes.of(self.changes)
        require_spacing(self.sampler, self.spacing)
        if self.eta is not None and self.sampler not in (None, "ddim"):
            raise ValueError(f"eta is a setting of ddim, got eta={self.eta!r} for {self.sampler}")
        if self.rule is not None:
            _require_rules(self.rule, RULES)


def _require_rules(rule: Mapping[str, Any], names: Iterable[str]) -> None:
    """Refuse a rule's table, or a table of a rule in it, that names no known rule."""
    if "rule" not in rule:
        raise ValueError(f"{shown(dict(rule))} does not say which rule it is: give 'rule', one of {', '.join(names)}")
    named("rule", rule["rule"], dict.fromkeys(names))
    if isinstance(rule.get("of"), Mapping):
        _require_rules(rule["of"], RULES)
    for after in rule["after"] if isinstance(rule.get("after"), list) else ():
        if isinstance(after, Mapping):
            _require_rules(after, AFTERWARDS)


def require_settings(name: str, settings: Mapping[str, Any], where: str = "") -> None:
    """Refuse a configuration whose name or settings are wrong for every model.

    Args:
        name, settings: of the configuration.
        where: beginning of messages, with a colon at the end.

    Raises:
        ValueError: the name cannot name a folder, a field is unknown, or a value is of another type or out of range.
    """
    where = where or f"the configuration {shown(name)}:"
    require_configuration_name(name, where)
    read(Settings, settings, where)
    beside = [field for field in settings if field == "preset" or field in HYPERPARAMETERS - {"guidance_scale"}]
    if "rule" in settings and beside:
        raise ValueError(f"{where} it has a rule, with which {beside[0]} has no effect: leave {beside[0]} out")


def require_configuration_name(name: str, where: str) -> None:
    """Refuse a name that cannot be that of a folder; `where` begins the message.

    Raises:
        ValueError: it has other characters than letters, digits and any of ._+-, begins with one of these, or is long.
    """
    if not re.fullmatch(r"\w[\w.+-]*", name) or len(name.encode()) > 150:
        raise ValueError(
            f"{where} a configuration's name is also a folder's: at most 150 bytes of letters, digits and ._+-; "
            f"got {shown(name)}"
        )


def require_configurations(names: Iterable[str], tables: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse names of configurations that are unknown or repeated. Known are presets and those of a file's tables.

    Raises:
        ValueError: a configuration is unknown or not possible, or is named twice.
    """
    for name, table in tables.items():
        require_settings(name, table)
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"the configuration {shown(name)} is named twice")
        seen.add(name)
        if name not in tables and name not in BASES:
            known = (*BASES, *tables)
            raise ValueError(
                f"no configuration {shown(name)}: there are {', '.join(BASES)}, and those that a TOML file defines"
                f"{did_you_mean(name, known)}"
            )
