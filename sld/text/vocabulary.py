"""CLIP's vocabulary, from the files of a tokenizer, which are checked as a whole. Importing this loads no torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from sld.reading import lines, parse_json, read_text

START, END = "<|startoftext|>", "<|endoftext|>"

WORD_END = "</w>"
"""The end of a token that ends a word."""

_PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
LETTERS = {byte: chr(byte) for byte in _PRINTABLE} | {byte: chr(256 + n) for n, byte in enumerate(_OTHERS)}
"""The letter that stands for each byte in tokens, in the order of their ids."""

HOW = (
    "pass a folder with vocab.json and merges.txt as tokenizer=… (--tokenizer), such as the folder 'tokenizer' of any "
    "Stable Diffusion 1 or 2 checkpoint in diffusers' format"
)
"""How to get a tokenizer, for messages."""

_AGAIN = "copy the tokenizer's files again from where the model is published"
_SPECIAL = ("special_tokens_map.json", "tokenizer_config.json")  # the first that names a token decides


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of CLIP's byte-pair encoding.

    Attributes:
        ids: of all tokens, from 0 on without a gap. As in the original they follow from the merges.
        merges: pairs of tokens that become one, by rank.
        added: tokens after those of the merges, such as a trained concept's; each is read as a whole.
        source: their folder, for messages.
        words: words of embeddings, with the ids of their vectors; a text that has the word gets all of these. They are
            `added` tokens too, and the last ones.
    """

    ids: Mapping[str, int]
    merges: tuple[tuple[str, str], ...]
    added: tuple[str, ...]
    source: Path
    words: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def with_word(self, word: str, vectors: int, source: Path) -> Vocabulary:
        """Return the vocabulary with one word more, whose further vectors are word_1, word_2 and so on.

        Args:
            word: read as a whole wherever it stands.
            vectors: number of ids that it becomes.
            source: the file that brings it, for the message.

        Raises:
            ValueError: a text could already hold a token of this name.
        """
        names = (word, *(f"{word}_{k}" for k in range(1, vectors)))
        known = {token.lower() for token in self.ids}
        for name in names:
            if name.lower() in known or f"{name.lower()}{WORD_END}" in known:
                raise ValueError(
                    f"{source}: its word {name!r} is a token already: give it another one, as in {source}:<{word}>"
                )
        ids = range(len(self.ids), len(self.ids) + vectors)
        return replace(
            self,
            ids={**self.ids, **dict(zip(names, ids, strict=True))},
            added=(*self.added, *names),
            words={**self.words, word: tuple(ids)},
        )


def tokenizer_folder(checkpoint: Path) -> Path | None:
    """Return the folder "tokenizer" in a checkpoint's folder, or beside its single file; None if there is none."""
    folder = (checkpoint if checkpoint.is_dir() else checkpoint.parent) / "tokenizer"
    return folder if folder.is_dir() else None


def find_vocabulary(checkpoint: Path, folder: Path | None = None) -> Vocabulary | None:
    """Return the vocabulary in `folder`, else the one that lies with the checkpoint; None if there is neither.

    Raises:
        ValueError: see `read_vocabulary`.
    """
    folder = folder or tokenizer_folder(checkpoint)
    return None if folder is None else read_vocabulary(folder)


def read_vocabulary(folder: Path) -> Vocabulary:
    """Read the vocabulary of a tokenizer.

    Args:
        folder: with vocab.json and merges.txt, or with tokenizer.json. If it has all three, they must agree.

    Raises:
        ValueError: a file is missing, cut, or no CLIP tokenizer's, or two files contradict each other; names the file.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: there is no such folder for a tokenizer: {HOW}")
    for path, special in _special_tokens(folder):
        for name, token in (("bos_token", START), ("eos_token", END)):
            if special[name] not in (None, token):
                raise ValueError(f"{path}: {name} is {_short(special[name])}, in CLIP it is {token!r}: {_AGAIN}")
    path = folder / "added_tokens.json"
    added = _ids(_json(path), path) if path.exists() else {}
    whole, words, pairs = (folder / name for name in ("tokenizer.json", "vocab.json", "merges.txt"))
    found: list[Vocabulary] = []
    if whole.exists():
        values = _table(_json(whole), whole)
        model = _table(values.get("model"), whole)
        entries = [_table(entry, whole) for entry in _list(values.get("added_tokens") or [], whole)]
        further = _ids({str(entry.get("content")): entry.get("id") for entry in entries}, whole)
        merges = _pairs(_list(model.get("merges"), whole), whole)
        found.append(_vocabulary(_ids(model.get("vocab"), whole), {**added, **further}, merges, whole))
    if words.exists() or pairs.exists() or not whole.exists():
        ids = _ids(_json(words), words)
        merges = _pairs((line for line in lines(_text(pairs)) if line and not line.startswith("#version")), pairs)
        found.append(_vocabulary(ids, added, merges, words))
    if found[0].merges != found[-1].merges:
        raise ValueError(f"{whole} and {pairs} hold different merges: remove the one that is not this checkpoint's")
    return found[0]


def read_pad(folder: Path, usual: int | None) -> int | None:
    """Return the id with which a folder's tokenizer fills a prompt, None for the end token.

    Args:
        folder: of the tokenizer; it may be missing.
        usual: the answer where the folder does not say.

    Raises:
        ValueError: a file is no tokenizer's, or the token has no id; names the file.
    """
    for _, special in _special_tokens(folder):
        pad = special["pad_token"]
        if pad is not None:
            if pad in (special["eos_token"], END):
                return None
            path, ids = _stated(folder)
            if pad not in ids:
                raise ValueError(f"{path} has no id for {_short(pad)}, with which the tokenizer pads: {_AGAIN}")
            return ids[pad]
    return usual


def write_pad(folder: Path, pad: int | None) -> None:
    """Have a folder's tokenizer fill prompts with the token of an id, or with the end token for None.

    Diffusers pads as the tokenizer says, whatever model it lies with.

    Raises:
        ValueError: a file is no tokenizer's; names it.
    """
    if read_pad(folder, usual=None) == pad:
        return
    tokens = {k: token for token, k in _stated(folder)[1].items()}
    for path in (folder / name for name in _SPECIAL):
        values = _table(_json(path), path) if path.exists() else {}
        values["pad_token"] = END if pad is None else tokens[pad]
        path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _vocabulary(
    ids: Mapping[str, int], added: Mapping[str, int], merges: Sequence[tuple[str, str]], path: Path
) -> Vocabulary:
    """Return the vocabulary, if every token has the id that the merges give it, or is an added one behind them."""
    letters = list(LETTERS.values())
    ends = [letter + WORD_END for letter in letters]
    made = dict.fromkeys([*letters, *ends, *map("".join, merges)])
    tokens = list(dict.fromkeys([*made, *_fillers(ids, made), START, END]))
    stated = [*ids.items(), *added.items()]
    behind = dict(sorted((k, token) for token, k in stated if k >= len(tokens)))
    expected = {token: k for k, token in enumerate((*tokens, *behind.values()))}
    for token, k in stated:
        if expected.get(token) != k:
            right = f"they give it {expected[token]}" if token in expected else "they do not make it"
            raise ValueError(
                f"{path}: the token {_short(token)} has the id {_short(k)}, which does not follow from the "
                f"{len(merges)} merges: {right}. The files are damaged, or no CLIP tokenizer's: {_AGAIN}"
            )
    known = dict(stated)
    if missing := [token for token in expected if token not in known]:
        raise ValueError(f"{path} lacks {len(missing)} tokens of its merges, such as {_short(missing[0])}: {_AGAIN}")
    if wrong := next((pair for pair in merges if not (pair[0] in expected and pair[1] in expected)), None):
        raise ValueError(f"{path}: {_short(wrong[0])} and {_short(wrong[1])} are merged, and are no tokens: {_AGAIN}")
    return Vocabulary(expected, tuple(merges), tuple(behind.values()), path.parent)


def _fillers(ids: Mapping[str, int], made: Mapping[str, Any]) -> list[str]:
    """Tokens before the start's that no merge makes, in order, if none of them ever could.

    They fill a vocabulary up, and no text becomes one. If two tokens of `made` join to one of them, merges are lost.
    """
    others = [token for token, k in ids.items() if token not in made and k < ids.get(START, 0) and token != END]
    lost = any(token[:i] in made and token[i:] in made for token in others for i in range(1, len(token)))
    return [] if lost else sorted(others, key=ids.__getitem__)


def _special_tokens(folder: Path) -> Iterator[tuple[Path, dict[str, str | None]]]:
    """Yield the special tokens that each file names. A token is text, or a table with its content."""
    for path in (folder / name for name in _SPECIAL):
        if not path.exists():
            continue
        values, special = _table(_json(path), path), {}
        for name in ("bos_token", "eos_token", "pad_token"):
            token = values.get(name)
            special[name] = token.get("content") if isinstance(token, dict) else token
            if token is not None and not isinstance(special[name], str):
                raise ValueError(f"{path}: {name} must be a token; got {_short(token)}: {_AGAIN}")
        yield path, special


def _stated(folder: Path) -> tuple[Path, dict[str, int]]:
    """Return the ids that a folder's vocabulary states, unchecked, and the file."""
    words, whole = folder / "vocab.json", folder / "tokenizer.json"
    if words.exists() or not whole.exists():
        return words, _ids(_json(words), words)
    return whole, _ids(_table(_table(_json(whole), whole).get("model"), whole).get("vocab"), whole)


def _pairs(merges: Iterable[Any], path: Path) -> list[tuple[str, str]]:
    """Return merges as pairs. They are written as "a b", or in newer files as ["a", "b"]."""
    pairs: list[tuple[str, str]] = []
    for merge in merges:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(one, str) and one for one in pair)):
            raise ValueError(f"{path}: merge {len(pairs) + 1} must be two tokens; got {_short(merge)}: {_AGAIN}")
        pairs.append(cast(tuple[str, str], tuple(pair)))
    return pairs


def _ids(values: Any, path: Path) -> dict[str, int]:
    for token, k in _table(values, path).items():
        if type(k) is not int:
            raise ValueError(f"{path}: the id of {_short(token)} must be a whole number; got {_short(k)}: {_AGAIN}")
    return values


def _table(values: Any, path: Path) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a table here; got {_short(values)}: {_AGAIN}")
    return values


def _list(values: Any, path: Path) -> list[Any]:
    if not isinstance(values, list):
        raise ValueError(f"{path} must hold a list here; got {_short(values)}: {_AGAIN}")
    return values


def _json(path: Path) -> Any:
    text = _text(path)
    try:
        return parse_json(text, infinities=True)
    except ValueError as error:
        raise ValueError(f"{path} {error}: {_AGAIN}") from None


def _text(path: Path) -> str:
    try:
        return read_text(path)
    except FileNotFoundError:
        raise ValueError(f"{path} is missing, so that there is no whole CLIP tokenizer: {HOW}") from None


def _short(values: Any) -> str:
    return repr(values)[:80]
