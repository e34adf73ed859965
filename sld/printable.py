"""Text from users made safe for documents: without control characters and, where needed, without line breaks."""

from __future__ import annotations

import re

_FORBIDDEN = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_LINE_BREAKS = re.compile(r"[\t\n\v\f\r\x1c-\x1e\x85\u2028\u2029]+")

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
"""The character that replaces one that a document cannot hold."""


def printable(text: str) -> str:
    """Replace each control character by U+FFFD, and keep tabs and line breaks.

    XML 1.0 forbids control characters, so SVG with them is malformed. TeX calls them invalid, and terminals take them
    for commands. Lone surrogates, which UTF-8 cannot encode, are replaced too.
    """
    return _FORBIDDEN.sub(REPLACEMENT, text)


def one_line(text: str) -> str:
    """Replace tabs and line breaks by a space, and other control characters by U+FFFD."""
    return printable(_LINE_BREAKS.sub(" ", text))


_FORMULA = ("=", "+", "-", "@")
"""Beginnings of texts that spreadsheets run as formulas."""


def spreadsheet_text(text: str) -> str:
    """Return a text for a cell of a CSV file: on one line, and such that no spreadsheet runs it as a formula.

    One that begins as formulas do gets an apostrophe before it, which marks a text in spreadsheets.
    """
    text = one_line(text)
    return f"'{text}" if text.lstrip().startswith(_FORMULA) else text
