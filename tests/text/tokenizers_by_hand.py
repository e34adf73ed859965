"""The original tokenizers in plain Python, as an oracle; and folders with tokenizers, whole and broken."""

# ruff: noqa: RUF001 (characters that look alike are what is tried)

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import ftfy
import regex

START, END = "<|startoftext|>", "<|endoftext|>"
ODD = (
    "wow! a knight!",
    "“a fox” — it’s… a ‘dog’",
    "cafÃ© naÃ¯ve",
    "cafe\u0301 caf\u00e9",
    "&lt;3 R&amp;B &amp;lt;b&amp;gt;",
    "<b> &amp;amp; &copy2020",
    "ΑΣ ΣΟΦΙΑΣ İstanbul ẞ",
    "ﬁne ｆｕｌｌ ①②③ Ĳsland",
    "a\tb\nc\u2028d\x00e\x1ff\u200bg\u3000h\u00a0i",
    f"{END} x {END.upper()} <start_of_text> <END_OF_TEXT>",
    "it'S I'LL 'ſ don't've",
    "🦊👩‍👩‍👧🏳️‍🌈 猫が好き १२३ 12³",
    "\ufeffa mark",
    "\x1b[31mred\x1b[0m",
    "K ǅ \u0301a",
    "x" * 300,
    "",
    " \n ",
)
"""Texts that tokenizers are likely to read in different ways."""


def plain_ids(text: str, merges: Sequence[tuple[str, str]], openclip: bool = False) -> list[int]:
    """Token ids of a text: repair, lower case, split into words, write as bytes, merge pairs by rank."""
    printable = [k for k in range(256) if 33 <= k <= 126 or 161 <= k <= 172 or k >= 174]
    letters = {k: chr(k) for k in printable}
    for k in range(256):
        if k not in letters:
            letters[k] = chr(256 + len(letters) - len(printable))
    tokens = list(letters.values()) + [letter + "</w>" for letter in letters.values()]
    tokens += ["".join(pair) for pair in merges if "".join(pair) not in tokens]
    start, end = ("<start_of_text>", "<end_of_text>") if openclip else (START, END)

    text = ftfy.fix_text(text)
    text = html.unescape(html.unescape(text)) if openclip else text
    text = regex.sub(r"\s+", " ", text.strip()).strip().lower()
    special = {start: len(tokens), end: len(tokens) + 1}
    ids: list[int] = []
    shape = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    for word in regex.findall(rf"{regex.escape(start)}|{regex.escape(end)}|{shape}", text, regex.IGNORECASE):
        if word in special:
            ids.append(special[word])
            continue
        parts = [letters[byte] for byte in word.encode()]
        parts[-1] += "</w>"
        while known := [merges.index(pair) for pair in pairwise(parts) if pair in merges]:
            first, second = merges[min(known)]
            k = 0
            while k < len(parts) - 1:
                if (parts[k], parts[k + 1]) == (first, second):
                    parts[k : k + 2] = [first + second]
                k += 1
        ids += [tokens.index(part) for part in parts]
    return ids


def with_pad(folder: Path, pad: str) -> Path:
    """Have a folder's tokenizer pad with a token, as Stable Diffusion 2's does with "!"."""
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        values = json.loads((folder / name).read_text(encoding="utf-8"))
        (folder / name).write_text(json.dumps({**values, "pad_token": pad}), encoding="utf-8")
    return folder
