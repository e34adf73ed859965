"""Readers of text files: plain text, lines, JSON, lines of JSON, TOML and tables. Importing this loads no torch.

All files that users hand over are read here, so that every command reads a file alike. Texts are UTF-8, with or without
a byte order mark, or UTF-16 or UTF-32 with one. A line ends with \\n, \\r\\n or \\r, and with nothing else.
`str.splitlines` also ends lines at U+2028, U+0085 and others, which stand inside of prompts.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from sld.spelling import shown

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark is the beginning of this one
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
"""Byte order marks, and the encodings that they announce."""

_LINE_END = re.compile(r"\r\n|\n|\r")

_HALF = re.compile(r"\\u[dD][89a-fA-F]")
"""An escape in JSON that stands for half of a character."""

_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
"""Separators of columns, and their names."""


def read_text(path: Path) -> str:
    """Read a text file. A byte order mark at its beginning is left out.

    Raises:
        ValueError: the file is in another encoding; the message names file and remedy.
        OSError: it cannot be read.
    """
    try:
        return decode(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} {error}") from None


def decode(content: bytes) -> str:
    """Return the text of a file's bytes, without a byte order mark.

    Raises:
        ValueError: they are in another encoding. The message goes on after the file's name.
    """
    mark, encoding = next(((mark, name) for mark, name in _MARKS if content.startswith(mark)), (b"", "utf-8"))
    try:
        text = content[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        said = encoding.upper()
        raise ValueError(f"is not {said}: {error.reason} at byte {len(mark) + error.start}; save it as UTF-8") from None
    if text.startswith("version https://git-lfs"):
        raise ValueError("is a Git LFS pointer, not the file: run 'git lfs pull' in its folder")
    if "\0" in text:
        raise ValueError("is no text, or UTF-16 without a byte order mark: it holds zero bytes; save it as UTF-8")
    return text


def lines(text: str) -> list[str]:
    """Return the lines of a text, without their ends. A line end at the end of the text begins no further line."""
    found = _LINE_END.split(text)
    return found if found[-1] else found[:-1]


# --------------------------------------------------------------------------------------------------------------- JSON


def read_json(path: Path, infinities: bool = False) -> Any:
    """Read the value of a JSON file. `infinities` as in `parse_json`.

    Raises:
        ValueError: the file is no JSON, or no UTF-8; the message names it.
        OSError: it cannot be read.
    """
    try:
        return parse_json(decode(path.read_bytes()), infinities)
    except ValueError as error:
        raise ValueError(f"{path} {error}") from None


def parse_json(text: str, infinities: bool = False) -> Any:
    """Return the value of a JSON text.

    Args:
        text: without a byte order mark.
        infinities: whether NaN and infinities are read. JSON has none, but diffusers and others write them.

    Raises:
        ValueError: it is no JSON, an object has a key twice, or a text is no Unicode. The message goes on after the
            name of the file or the line.
    """
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_constant=None if infinities else _constant)
        if _HALF.search(text):  # without its other half, which would make a text that no file can hold
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("holds half of a character, such as \\ud800 alone, which is no Unicode") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"is no JSON: {error}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is no JSON that can be read: {error}") from None
    return value


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number there")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        twice = next(key for k, (key, _) in enumerate(pairs) if key in dict(pairs[:k]))
        raise ValueError(f"the key {shown(twice)} stands twice in an object")
    return made


def parse_json_lines(text: str) -> list[Any]:
    """Return the values of lines of JSON. Blank lines are left out.

    Raises:
        ValueError: a line is no JSON; the message begins with its number.
    """
    values = []
    for k, line in enumerate(lines(text)):
        if line.strip():
            try:
                values.append(parse_json(line))
            except ValueError as error:
                raise ValueError(f"line {k + 1} {error}") from None
    return values


def json_lines(values: Iterable[Any]) -> bytes:
    """Return values as lines of JSON in UTF-8, which `parse_json_lines` and `json.loads` of each line read back.

    Half a character, which UTF-8 cannot hold, is written as JSON's escape for it.

    Raises:
        TypeError, ValueError: JSON cannot hold a value; NaN and infinity are no JSON.
    """
    made = "".join(json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n" for value in values)
    return made.encode(errors="backslashreplace")


# --------------------------------------------------------------------------------------------------------------- TOML


def read_toml(path: Path) -> dict[str, Any]:
    """Read the tables of a TOML file.

    Raises:
        ValueError: the file is no TOML, or no UTF-8; the message names it.
        OSError: it cannot be read.
    """
    text = read_text(path)
    try:
        return tomllib.loads("\n".join(lines(text)))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no TOML: {error}") from None


# ------------------------------------------------------------------------------------------------------------- tables

Entry = Mapping[str, str]
"""A row of a table: texts by column."""


def parse_csv(text: str) -> list[Entry]:
    """Return the rows of a CSV table with a header. Columns are separated by commas, and fields may be quoted.

    A first line `sep=,`, as spreadsheets write it, is left out.

    Raises:
        ValueError: columns are separated by something else, quotes do not end, or a row has another number of fields.
    """
    if text[:4].lower() == "sep=":
        directive, _, text = text.partition("\n")
        _require_separator(directive[4:].strip("\r") or "nothing", ",", ".csv")
    # newline="" keeps \r\n inside of prompts; strict, so that an open quote does not swallow the rest of the file
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        rows = [row for row in reader if row]
    except csv.Error as error:
        _require_header(lines(text)[:1], ",", ".csv")  # in a table of another kind, quotes mean something else
        raise ValueError(f"line {reader.line_num} is no CSV: {error}") from None
    _require_header(rows[0] if rows else [], ",", ".csv")
    return _entries(rows)


def parse_tsv(text: str) -> list[Entry]:
    """Return the rows of a table whose columns are separated by tabs. Fields stand as they are, quotes included.

    Raises:
        ValueError: columns are separated by something else, fields are quoted as in CSV, or a row has another number of
            fields.
    """
    rows = [line.split("\t") for line in lines(text) if line]
    _require_header(rows[0] if rows else [], "\t", ".tsv")
    for k, row in enumerate(rows):
        if quoted := next((field for field in row if _quoted(field)), None):
            raise ValueError(
                f"{f'row {k - 1}' if k else 'the header'} is quoted as in CSV: {shown(quoted)}; in a .tsv fields stand "
                "as they are: save it without quotes, or with commas as .csv"
            )
    return _entries(rows)


def _quoted(field: str) -> bool:
    """Return whether a field is surely quoted: between its quotes all others are doubled, and there are some."""
    inner = field[1:-1]
    return field[:1] == field[-1:] == '"' and '""' in inner and '"' not in inner.replace('""', "")


def _require_header(header: list[str], separator: str, suffix: str) -> None:
    """Refuse a header of one field in which another separator stands."""
    if len(header) == 1 and separator not in header[0]:
        for other in _SEPARATORS:
            if other in header[0]:
                _require_separator(other, separator, suffix)


def _require_separator(found: str, separator: str, suffix: str) -> None:
    if found != separator:
        renamed = {",": " or rename it to .csv", "\t": " or rename it to .tsv"}.get(found, "")
        raise ValueError(
            f"the columns are separated by {_SEPARATORS.get(found, repr(found))}, and in a {suffix} by "
            f"{_SEPARATORS[separator]}: save it with {_SEPARATORS[separator]}{renamed}"
        )


def _entries(rows: list[list[str]]) -> list[Entry]:
    if not rows:
        return []
    header, *others = rows
    if len(set(header)) < len(header):
        raise ValueError(f"a column's name stands twice in {_listed(header)}")
    for k, row in enumerate(others):
        if len(row) != len(header):
            raise ValueError(f"row {k} has {len(row)} fields, the header {len(header)}: {_listed(header)}")
    return [dict(zip(header, row, strict=True)) for row in others]


def _listed(header: list[str]) -> str:
    text = ", ".join(header)
    return text if len(text) <= 500 and text.isprintable() else shown(text)
