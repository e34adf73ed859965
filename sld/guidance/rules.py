"""Rules as nested plain values that JSON and TOML can hold, for sweeps and sidecars.

    {"rule": "concepts", "combination": "select", "concepts": [{"text": "weapons"}, {"text": "blood", "weight": 2.0}]}
    {"rule": "composed", "of": {"rule": "sld", "config": "strong"}, "after": [{"rule": "rescale", "phi": 0.7}]}

"rule" holds the name of a rule, every other key is a field of its class. The inner rule of a wrapping, its field
`rule`, therefore has the key "of". A field left out has its default. A field that is None is not written, because TOML
cannot.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, TypeVar, get_type_hints

from sld.data import read
from sld.guidance.afterwards import APG, Afterwards, Composed, Rescale
from sld.guidance.base import Guidance
from sld.guidance.cfg import ClassifierFreeGuidance
from sld.guidance.concepts import Concept, SafeLatentConcepts
from sld.guidance.dynamic import DynamicNegativeGuidance
from sld.guidance.perp_neg import Negative, PerpNeg
from sld.guidance.readings import clamp_as_printed, warmup_inclusive, warmup_without_momentum
from sld.guidance.sega import SEGA, Edit
from sld.guidance.sld import Reading, SafeLatentGuidance, SLDConfig, preset, safe_latent_guidance
from sld.guidance.sparse import Sparse
from sld.guidance.unguided import Unguided
from sld.spelling import did_you_mean, named, shown

RULES: dict[str, type[Guidance[Any, Any, Any]]] = {
    "unguided": Unguided,
    "cfg": ClassifierFreeGuidance,
    "sld": SafeLatentGuidance,
    "concepts": SafeLatentConcepts,
    "sega": SEGA,
    "perp-neg": PerpNeg,
    "dynamic": DynamicNegativeGuidance,
    "composed": Composed,
    "sparse": Sparse,
}
"""The rules that data can name."""

AFTERWARDS: dict[str, type[Afterwards[Any, Any]]] = {"rescale": Rescale, "apg": APG}
"""The changes to a rule's prediction that data can name."""

READINGS: dict[str, Reading] = {
    "code": safe_latent_guidance,
    "clamp as printed": clamp_as_printed,
    "warm-up without momentum": warmup_without_momentum,
    "warm-up inclusive": warmup_inclusive,
}
"""The readings of SLD's paper that data can name."""

T = TypeVar("T")


def to_data(rule: Guidance[Any, Any, Any]) -> dict[str, Any]:
    """Return the rule as nested dicts, lists, strings and numbers.

    Raises:
        ValueError: the rule, or a part of it, has no name in the tables above.
    """
    return _write_named(RULES, rule)


def from_data(data: Any, where: str = "") -> Guidance[Any, Any, Any]:
    """Return the rule that `to_data` wrote as `data`. SLD's `config` may also be the name of a preset.

    Args:
        data: nested plain values.
        where: they stand, for messages.

    Raises:
        ValueError: a name or a field is unknown, missing, of another type or out of range; says which, and what may
            have been meant.
    """
    try:
        return _read_named(RULES, data)
    except ValueError as error:
        raise ValueError(f"{where}: {error}" if where else str(error)) from error


def at_scale(data: Any, guidance_scale: float) -> Any:
    """Return what `from_data` takes with a guidance scale where it gives none, also in the rules within.

    Args:
        data: see `from_data`, which refuses what is wrong in it.
        guidance_scale: s_g.
    """
    if not isinstance(data, Mapping):
        return data
    filled = dict(data)
    rule: type[Any] | None = next((cls for name, cls in RULES.items() if name == data.get("rule")), None)
    for field in fields(rule) if rule else ():
        if field.name in ("guidance_scale", "scale"):
            filled.setdefault(field.name, guidance_scale)
    if isinstance(config := data.get("config"), list):
        filled["config"] = [_config_at_scale(one, guidance_scale) for one in config]
    elif config is not None:
        filled["config"] = _config_at_scale(config, guidance_scale)
    if "of" in data:
        filled["of"] = at_scale(data["of"], guidance_scale)
    return filled


def _config_at_scale(config: Any, guidance_scale: float) -> Any:
    if isinstance(config, str):
        return _write(replace(preset(config), guidance_scale=guidance_scale))
    return {"guidance_scale": guidance_scale, **config} if isinstance(config, Mapping) else config


@dataclass(frozen=True)
class Codec:
    """A pair of functions that turn the value of a field into plain values, and back.

    Without `read` the field's annotation says how plain values are read.
    """

    write: Callable[[Any], Any]
    read: Callable[[Any], Any] | None = None


PLAIN = Codec(lambda value: list(value) if isinstance(value, tuple) else value)
_KEYS = {"rule": "of"}  # keys that are not the field's name: "rule" is the key of the rule's own name


def _codecs(cls: type[Any]) -> dict[str, tuple[str, Codec]]:
    """Field and codec, by key in data."""
    special = _CODECS.get(cls, {})
    return {_KEYS.get(f.name, f.name): (f.name, special.get(f.name, PLAIN)) for f in fields(cls)}


def _write(value: Any) -> dict[str, Any]:
    held = {key: (getattr(value, name), codec) for key, (name, codec) in _codecs(type(value)).items()}
    return {key: codec.write(part) for key, (part, codec) in held.items() if part is not None}


def _read(cls: type[T], what: str, data: Mapping[str, Any]) -> T:
    if not isinstance(data, Mapping):
        raise ValueError(f"{what} must be a table of its fields; got {shown(data)}")
    codecs = _codecs(cls)
    for key in data:
        if key not in codecs:
            listed = f"it has {', '.join(codecs)}" if codecs else "it has none"
            raise ValueError(f"{what} has no field {shown(key)}, {listed}{did_you_mean(key, codecs)}")
    for key, value in data.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{what}: {key} must be a finite number, which files can hold; got {value}")
    kinds = get_type_hints(cls)
    values = {
        name: codec.read(data[key]) if codec.read else read(kinds[name], data[key], f"{what}: {key}")
        for key, (name, codec) in codecs.items()
        if key in data
    }
    try:
        return cls(**values)
    except TypeError as error:  # a field without a default is missing
        raise ValueError(f"{what}: {error}") from None


def _write_named(choices: Mapping[str, type[Any]], value: Any) -> dict[str, Any]:
    return {"rule": _name_of(choices, type(value)), **_write(value)}


def _read_named(choices: Mapping[str, type[T]], data: Any) -> T:
    if not isinstance(data, Mapping):
        raise ValueError(f"a rule must be a table with its name under 'rule'; got {shown(data)}")
    if "rule" not in data:
        raise ValueError(f"{shown(dict(data))} does not say which rule it is: give 'rule', one of {', '.join(choices)}")
    cls = named("rule", data["rule"], choices)
    return _read(cls, f"rule {data['rule']!r}", {key: value for key, value in data.items() if key != "rule"})


def _name_of(choices: Mapping[str, Any], value: Any) -> str:
    for name, choice in choices.items():
        if choice is value:
            return name
    raise ValueError(f"{value!r} has no name in data; those with one are {', '.join(choices)}")


def _write_config(value: SLDConfig | tuple[SLDConfig, ...]) -> Any:
    return [_write(config) for config in value] if isinstance(value, tuple) else _write(value)


def _read_config(value: Any) -> SLDConfig | tuple[SLDConfig, ...]:
    return tuple(map(_read_one_config, value)) if isinstance(value, list) else _read_one_config(value)


def _read_one_config(value: Any) -> SLDConfig:
    return preset(value) if isinstance(value, str) else _read(SLDConfig, "an SLD config", value)


def _each(write: Callable[[Any], Any], of_one: Callable[[Any], Any]) -> Codec:
    return Codec(lambda parts: list(map(write, parts)), lambda parts: tuple(map(of_one, read(tuple[Any, ...], parts))))


_CODECS: dict[type[Any], dict[str, Codec]] = {
    SafeLatentGuidance: {
        "config": Codec(_write_config, _read_config),
        "reading": Codec(partial(_name_of, READINGS), lambda name: named("reading of SLD", name, READINGS)),
    },
    SafeLatentConcepts: {"concepts": _each(_write, partial(_read, Concept, "a concept"))},
    SEGA: {"concepts": _each(_write, partial(_read, Edit, "a concept of SEGA"))},
    PerpNeg: {"negatives": _each(_write, partial(_read, Negative, "a negative"))},
    Composed: {
        "rule": Codec(to_data, from_data),
        "after": _each(partial(_write_named, AFTERWARDS), partial(_read_named, AFTERWARDS)),
    },
    Sparse: {"rule": Codec(to_data, from_data)},
}
