"""Files with one mistake in them, as people, editors and broken disks make them; each from a seed."""

from __future__ import annotations

import json
import math
import random
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 7, 63, 10**6, 2**31, 2**63, 2**64, 10**30, -(10**30), 0.5, -0.0, 1e-300, 1e30,
    -1e30, 1e308, math.nan, math.inf, -math.inf, "", " ", "0", "1", "1.5", "true", "false", "no", "off", "none", "nan",
    "inf", "auto", "~", "a\nb", "a\u2028b", "\u00e9", "\u732b", "x" * 3000, "../..", "/", [], {}, [[]], [None], [1, 2],
    ["a"], {"": 0}, {"a": 1}, list(range(300)),
)  # fmt: skip
"""Values of every type, and those of the right type that are out of any range."""

ODD_BYTES = (
    b"\x00",
    b"\xff",
    b"\xef\xbb\xbf",
    b"\n",
    b"\r",
    b"\t",
    b'"',
    b"}",
    b"[",
    b",",
    b"\xe2\x80\xa8",
    b"#",
    b"-",
)


def mutated(path: Path, dice: random.Random) -> bytes:
    """Return the content of a file with one mistake: in its values where it is JSON or TOML, or in its bytes."""
    content = path.read_bytes()
    if dice.random() < 0.2:
        return _of_bytes(content, dice)
    if path.suffix == ".toml":
        return _toml_of(_of_data(tomllib.loads(content.decode()), dice)).encode()
    if path.suffix == ".json":
        return json.dumps(_of_data(json.loads(content), dice)).encode()
    if path.suffix == ".jsonl":
        lines = content.splitlines()
        k = dice.randrange(len(lines))
        lines[k] = json.dumps(_of_data(json.loads(lines[k]), dice)).encode()
        return b"\n".join(lines) + b"\n"
    return _of_bytes(content, dice)


def _of_data(data: Any, dice: random.Random) -> Any:
    """Return nested plain data with one value, or one name, changed somewhere in it."""
    places = [place for place in _places(data, ()) if place]
    if not places or dice.random() < 0.02:
        return dice.choice(ODD)
    return _at(data, dice.choice(places), dice)


def _places(data: Any, here: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    inside = data.items() if isinstance(data, Mapping) else enumerate(data) if isinstance(data, list) else ()
    return [here, *(place for key, value in inside for place in _places(value, (*here, key)))]


def _at(data: Any, place: tuple[Any, ...], dice: random.Random) -> Any:
    key, *rest = place
    copy = dict(data) if isinstance(data, Mapping) else list(data)
    if rest:
        copy[key] = _at(copy[key], tuple(rest), dice)
        return copy
    kind = dice.random()
    if kind < 0.1:
        del copy[key]
    elif kind < 0.2 and isinstance(copy, dict):
        name = str(key)
        k = dice.randrange(len(name) + 1)
        copy[dice.choice([name[:k] + name[k + 1 :], f" {name}", name.upper(), name[:k] + "_" + name[k:], ""])] = copy[
            key
        ]
        if dice.random() < 0.5:
            copy.pop(key, None)
    else:
        copy[key] = _changed(copy[key], dice)
    return copy


def _changed(value: Any, dice: random.Random) -> Any:
    like: list[Any] = [[value], {"a": value}, {"label": "x", "value": value}, [value, value], str(value)]
    if isinstance(value, int | float) and not isinstance(value, bool):
        like += [-value, value * 10**9, value + 0.5, float(value), value + 1]
    if isinstance(value, str):
        like += [value.upper(), value[:-1], value + "\n", value + "\x00", value * 1000]
    return dice.choice(like) if dice.random() < 0.4 else dice.choice(ODD)


def _of_bytes(content: bytes, dice: random.Random) -> bytes:
    kind, k = dice.randrange(6), dice.randrange(len(content) + 1)
    if kind == 0:
        return content[:k]
    if kind == 1:
        return content[:k] + dice.choice(ODD_BYTES) + content[k:]
    if kind == 2:
        return content[:k] + bytes([dice.randrange(256)]) + content[k + 1 :]
    if kind == 3:
        return content[:k] + content[min(len(content), k + dice.randrange(1, 40)) :]
    if kind == 4:
        lines = content.splitlines(keepends=True) or [b""]
        return b"".join([*lines, dice.choice(lines)])
    return content.decode(errors="replace").encode(dice.choice(["utf-16", "utf-8-sig", "utf-32"]))


def _toml_of(data: Any) -> str:
    """Return data as TOML. What TOML cannot hold, None, is left out; what is no table is the value of a name."""
    table = data if isinstance(data, Mapping) else {"value": data}
    return "".join(f"{json.dumps(key)} = {_toml(value)}\n" for key, value in table.items() if value is not None)


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        inside = (f"{json.dumps(key)} = {_toml(part)}" for key, part in value.items() if part is not None)
        return "{ " + ", ".join(inside) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(_toml(part) for part in value if part is not None) + "]"
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value)
