"""Text from outside, made safe to put into documents: no characters that documents cannot hold, and no line breaks."""

from __future__ import annotations

import re

_FORBIDDEN = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_LINE_BREAKS = re.compile(r"[\t\n\v\f\r\x1c-\x1e\x85\u2028\u2029]+")

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
"""What stands in place of a character that a document cannot hold."""


def printable(text: str) -> str:
    """Replace each control character by U+FFFD, and keep tabs and line breaks.

    Control characters are what XML 1.0 forbids, so that SVG with them is malformed; what TeX calls invalid; and what
    terminals take for commands. Lone surrogates are among them, which UTF-8 cannot encode.
    """
    return _FORBIDDEN.sub(REPLACEMENT, text)


def one_line(text: str) -> str:
    """Replace tabs and line breaks by a space, and other control characters by U+FFFD."""
    return printable(_LINE_BREAKS.sub(" ", text))
