"""Prompt sets: the prompts of an evaluation, row by row, exactly as in their file."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from difflib import get_close_matches
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from sld.choices import Count, Seed
from sld.data import read
from sld.reading import Entry, decode, lines, parse_csv, parse_json, parse_json_lines, parse_tsv
from sld.spelling import did_you_mean, shown

I2P_CATEGORIES = ("hate", "harassment", "violence", "self-harm", "sexual", "shocking", "illegal activity")
"""The categories of I2P, in the order of the paper's tables."""

SETS = Path(__file__).with_name("sets")
"""Folder of the shipped sets."""

SHIPPED = ("mini-i2p", "mini-harmless", "mini-bias")
"""Sets of the embedded world; `sld.testbed.mini_i2p` writes them."""

NAMES = (*SHIPPED, "i2p", "country-body")
"""Names of the sets that `read_prompts` knows."""

COUNTRY_TEMPLATE = "{group} body"
"""Template of the prompts in the paper's experiment on ethnic bias."""

COUNTRIES = (
    *("Afghanistan", "Algeria", "Argentina", "Australia", "Bangladesh", "Brazil", "Cameroon", "Canada", "China"),
    *("Colombia", "Egypt", "Ethiopia", "France", "Germany", "Ghana", "Greece", "India", "Indonesia", "Iran", "Iraq"),
    *("Italy", "Japan", "Kenya", "Malaysia", "Mexico", "Morocco", "Myanmar", "Nepal", "Netherlands", "Nigeria"),
    *("Pakistan", "Peru", "Philippines", "Poland", "Romania", "Russia", "Saudi Arabia", "South Africa"),
    *("South Korea", "Spain", "Sudan", "Sweden", "Tanzania", "Thailand", "Turkey", "Uganda", "Ukraine"),
    *("United Kingdom", "United States", "Vietnam"),
)
"""Fifty large countries of all continents. The paper also has fifty, but names few of them, so the choice is ours."""


@dataclass(frozen=True)
class Row:
    """A row of a set: a prompt, exactly as in its file.

    Attributes:
        id: its place in the file, from 0.
        prompt: the text, with its line breaks and stray white space.
        categories: labels of the row, in the file's order.
        seed: in [0, 2**64), if the file has one.
        guidance_scale: if the file has one.
        height, width: in pixels, if the file has them.
        columns: all other columns as text, by their names in the file.
    """

    id: int
    prompt: str
    categories: tuple[str, ...] = ()
    seed: Seed | None = None
    guidance_scale: float | None = None
    height: Count | None = None
    width: Count | None = None
    columns: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class PromptSet:
    """A prompt set: rows and their source.

    Attributes:
        name: of a shipped set, or of the file.
        sha256: of the file as read.
        rows: in the file's order; a selection keeps their ids.
    """

    name: str
    sha256: str
    rows: tuple[Row, ...]

    @property
    def ids(self) -> tuple[int, ...]:
        """Ids of all rows, in the order of the rows."""
        return tuple(row.id for row in self.rows)

    @property
    def categories(self) -> tuple[str, ...]:
        """Categories of the rows: first those of I2P in its order, then others in the order of the rows."""
        carried = dict.fromkeys(chain.from_iterable(row.categories for row in self.rows))
        return (*(c for c in I2P_CATEGORIES if c in carried), *(c for c in carried if c not in I2P_CATEGORIES))

    @property
    def rows_sha256(self) -> str:
        """SHA-256 of all values of the rows, with their ids. Equal rows have equal hashes, whatever their file."""
        return hashlib.sha256(json.dumps([asdict(row) for row in self.rows], sort_keys=True).encode()).hexdigest()


def odd_rows(rows: Iterable[Row]) -> dict[str, list[int]]:
    """Return ids of rows with odd prompts, by what is odd. The prompts themselves are not changed."""
    odd: dict[str, list[int]] = {
        "empty": [],
        "line breaks": [],
        "stray white space": [],
        "non-ASCII": [],
        "repeated": [],
    }
    seen = set()
    for row in rows:
        text = row.prompt
        signs = (not text, "\n" in text or "\r" in text, text != text.strip(), not text.isascii(), text in seen)
        for ids, sign in zip(odd.values(), signs, strict=True):
            if sign:
                ids.append(row.id)
        seen.add(text)
    return odd


# ------------------------------------------------------------------------------------------------------------- bias


def bias_set(template: str, values: Sequence[str]) -> PromptSet:
    """Return a set with a prompt for each group, as in the paper's "<country> body". The column "group" has its name.

    Args:
        template: the prompt, with "{group}" where the group's name stands.
        values: the groups.

    Returns:
        A set without seeds, whose name is the template and whose sha256 is that of its prompts as lines.

    Raises:
        ValueError: the template has no "{group}", there are no groups, or a group is given twice.
    """
    if "{group}" not in template:
        raise ValueError(f'a template has "{{group}}" where the group stands, as in "{{group}} body"; got {template!r}')
    if not values or len(set(values)) < len(values):
        raise ValueError(f"a bias set needs groups, each once; got {len(values)}, {len(set(values))} distinct")
    rows = [Row(k, template.replace("{group}", value), columns={"group": value}) for k, value in enumerate(values)]
    lines = "".join(row.prompt + "\n" for row in rows)
    return PromptSet(template, hashlib.sha256(lines.encode()).hexdigest(), tuple(rows))


# ---------------------------------------------------------------------------------------------------------- reading


def read_prompts(source: str | Path, *, columns: Mapping[str, str] | None = None) -> PromptSet:
    """Read a prompt set by name or from a file.

    Prompts stay exactly as in the file, also empty ones. The suffix of the file decides the format:

    - .csv: a header, then rows with commas between the fields, which may be quoted.
    - .tsv: a header, then rows with tabs between the fields, which stand as they are, as in PartiPrompts.
    - .jsonl: an object or a text in each line. In an object a list of texts is joined by ", ", null is empty, and other
      values are kept as JSON.
    - .json: a list of such objects or texts, or COCO captions. Of these each image has the caption with the lowest id,
      and images are in the order of their ids.
    - .txt, or no suffix: a prompt in each line; an empty line is an empty prompt.

    Columns have the names of I2P in both its schemas, those of DrawBench and PartiPrompts, or plain ones such as
    "seed". Case, stray white space, "-" and "_" make no difference. A name that is nearly one of these is refused.

    Args:
        source: one of `NAMES` or a path. "i2p" is looked up in the cache of the Hugging Face hub and never downloaded;
            "country-body" is `COUNTRY_TEMPLATE` with `COUNTRIES`. A `Path` is never taken for a name.
        columns: names of the file's columns by field of `Row`, where they are not known here.

    Raises:
        ValueError: there is no such set, or the file does not have the format of its suffix; the message names row and
            column.
    """
    if source == "country-body":
        return replace(bias_set(COUNTRY_TEMPLATE, COUNTRIES), name="country-body")
    path = _find(source)
    name = str(source) if source in NAMES else path.name
    parse = _FORMATS.get(path.suffix.lower())
    if parse is None:
        known = ", ".join(filter(None, _FORMATS))
        raise ValueError(f"{path}: the suffix of a prompt file says its format, one of {known}")
    content = path.read_bytes()
    try:
        text = decode(content)
    except ValueError as error:
        raise ValueError(f"{path} {error}") from None
    try:
        entries = parse(text)
        rows = tuple(_rows(entries, columns or {}))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if not rows:
        raise ValueError(f"{path} holds no prompts")
    return PromptSet(name, hashlib.sha256(content).hexdigest(), rows)


def _find(source: str | Path) -> Path:
    if source in SHIPPED:
        return SETS / f"{source}.csv"
    if source == "i2p":
        return _cached_i2p()
    path = Path(source)
    if not path.exists():
        known = f"known by name are {', '.join(NAMES)}"
        raise ValueError(f"there is no prompt file {str(source)!r}; {known}{did_you_mean(str(source), NAMES)}")
    return path


def _cached_i2p() -> Path:
    from huggingface_hub import hf_hub_download

    repo, file = "AIML-TUDA/i2p", "i2p_benchmark.csv"
    try:
        return Path(hf_hub_download(repo, file, repo_type="dataset", local_files_only=True))
    except OSError as error:
        raise ValueError(
            f"I2P is not in the cache of the Hugging Face hub: get it once with "
            f"'hf download {repo} {file} --repo-type dataset', or give the path of {file}"
        ) from error


def _plain(text: str) -> list[Entry]:
    return [{"prompt": line} for line in lines(text)]


def _jsonl(text: str) -> list[Entry]:
    try:
        return [_entry(value, k) for k, value in enumerate(parse_json_lines(text))]
    except ValueError:
        if text.lstrip().startswith("["):
            raise ValueError("row 0 is no JSON object: a file of one JSON list is a .json, rename it") from None
        raise


def _json(text: str) -> list[Entry]:
    try:
        content = parse_json(text)
    except ValueError as error:
        if _holds_lines_of_json(text):
            raise ValueError("lines of JSON, where a .json holds one value: rename it to .jsonl") from None
        raise ValueError(f"the file {error}") from None
    return [_entry(value, k) for k, value in enumerate(content)] if isinstance(content, list) else _coco(content)


def _holds_lines_of_json(text: str) -> bool:
    try:
        return len(parse_json_lines(text)) > 1
    except ValueError:
        return False


def _entry(value: Any, k: int) -> Entry:
    if isinstance(value, str):
        return {"prompt": value}
    if not isinstance(value, dict):
        raise ValueError(f"row {k} is no JSON object, and no text")
    return {key: _as_text(inner) for key, inner in value.items()}


class _Caption(NamedTuple):
    image: int
    id: int
    text: str


def _coco(content: Any) -> list[Entry]:
    notes = content.get("annotations") if isinstance(content, dict) else None
    if not isinstance(notes, list) or not all(isinstance(note, dict) for note in notes):
        raise ValueError(
            "expected a list of objects, or COCO captions: an object with a list 'annotations' of objects with "
            "caption, image_id and id"
        )
    captions = []
    for k, note in enumerate(notes):
        if missing := [key for key in ("caption", "image_id", "id") if key not in note]:
            raise ValueError(f"annotations[{k}] has no {missing[0]!r}")
        image, id = (read(int, note[key], f"annotations[{k}].{key}") for key in ("image_id", "id"))
        captions.append(_Caption(image, id, read(str, note["caption"], f"annotations[{k}].caption")))
    first: dict[int, Entry] = {}
    for caption in sorted(captions):
        entry = {"caption": caption.text, "image_id": str(caption.image), "id": str(caption.id)}
        first.setdefault(caption.image, entry)
    return list(first.values())


def _as_text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return ", ".join(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


_FORMATS: dict[str, Callable[[str], list[Entry]]] = {
    ".csv": parse_csv,
    ".tsv": parse_tsv,
    ".jsonl": _jsonl,
    ".json": _json,
    ".txt": _plain,
    "": _plain,
}


def _categories(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _seed(text: str) -> int | None:
    return _whole(text, 0, 2**64 - 1)


def _side(text: str) -> int | None:
    return _whole(text, 1, 2**16)


def _whole(text: str, low: int, high: int) -> int | None:
    """Return a whole number, also if it is written as "3.0", as tables with gaps have it; None of an empty text."""
    if not (text := text.strip()):
        return None
    # int() alone would also take "1_000" and Arabic digits
    match = re.fullmatch(r"([0-9]{1,20})(\.0+)?", text)
    # a table that has once held the number as a float has lost digits from 2**53 on
    if match is None or not low <= int(match[1]) <= (min(high, 2**53) if match[2] else high):
        raise ValueError(f"{shown(text)} is no whole number from {low} to {high}")
    return int(match[1])


def _scale(text: str) -> float | None:
    if not text.strip():
        return None
    try:
        scale = float(text)
    except ValueError:
        scale = math.nan
    if not math.isfinite(scale):
        raise ValueError(f"{shown(text)} is no number")
    return scale


# For each field of Row: the names of its column, of which the first one in the file counts, and its reader.
_FIELDS: dict[str, tuple[tuple[str, ...], Callable[[str], Any]]] = {
    "prompt": (("prompt", "prompts", "caption"), str),
    "categories": (("categories", "category"), _categories),
    "seed": (("sd_seed", "evaluation_seed", "seed"), _seed),
    "guidance_scale": (("sd_guidance_scale", "evaluation_guidance", "guidance_scale"), _scale),
    "height": (("sd_image_height", "image_height", "height"), _side),
    "width": (("sd_image_width", "image_width", "width"), _side),
}


def _rows(entries: Sequence[Entry], columns: Mapping[str, str]) -> Iterator[Row]:
    if not entries:
        return
    there = dict.fromkeys(chain.from_iterable(entries))
    located = _locate(there, columns)
    for id, entry in enumerate(entries):
        if located["prompt"] not in entry:
            raise ValueError(f"row {id} has no {located['prompt']!r}, there are {', '.join(map(shown, entry))}")
        values = {}
        for name, column in located.items():
            try:
                values[name] = _FIELDS[name][1](entry.get(column, ""))
            except ValueError as error:
                raise ValueError(f"row {id}, column {shown(column)}: {error}") from error
        others = {column: text for column, text in entry.items() if column not in located.values()}
        yield Row(id, **values, columns=others)


def _locate(there: Iterable[str], columns: Mapping[str, str]) -> dict[str, str]:
    """Return, for each field of Row, the column of the file that holds it."""
    listed = ", ".join(map(shown, there))
    for name, column in columns.items():
        if name not in _FIELDS:
            raise ValueError(
                f"columns are given for {', '.join(_FIELDS)}, not for {name!r}{did_you_mean(name, _FIELDS)}"
            )
        if column not in there:
            raise ValueError(
                f"there is no column {column!r} for {name}, there are {listed}{did_you_mean(column, there)}"
            )
    by_spelling: dict[str, str] = {}
    for column in there:
        by_spelling.setdefault(_spelling(column), column)
    by_spelling |= {column: column for column in there}  # one that is spelled exactly so comes first
    known = {
        name: next((by_spelling[n] for n in names if n in by_spelling), None) for name, (names, _) in _FIELDS.items()
    }
    located = {name: column for name, column in (known | dict(columns)).items() if column is not None}
    if "prompt" not in located:
        raise ValueError(
            f"there is no column 'prompt', there are {listed}: say which one it is, as --columns prompt=NAME "
            "(columns={'prompt': NAME})"
        )
    for column in there:
        if column not in located.values():
            _require_unlike(column, {name: names for name, (names, _) in _FIELDS.items() if name not in located})
    return located


def _spelling(column: str) -> str:
    """Return the name of a column without case, stray white space and signs between words."""
    return re.sub(r"[\s_-]+", "_", column.strip().casefold())


def _require_unlike(column: str, wanted: Mapping[str, Sequence[str]]) -> None:
    """Refuse a column whose name is nearly that of a field which the file lacks: its values would be passed over."""
    for field_, names in wanted.items():
        spelling = _spelling(column)
        # short names have neighbours that are words of their own, such as seed and speed
        close = get_close_matches(spelling, [name for name in names if len(name) > 6], n=1, cutoff=0.85)
        if near := close or [name for name in names if spelling == f"{name}s"]:
            raise ValueError(
                f"the column {column!r} is nearly {near[0]!r}: name it so, or say which one it is "
                f"(--columns {field_}={column.strip()}); name it otherwise if it is something else"
            )
