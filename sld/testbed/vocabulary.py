"""The embedded model's tokenizer: CLIP's byte-pair encoding with merges for the words of the embedded world.

It is written in CLIP's own files, so `transformers.CLIPTokenizer.from_pretrained` reads it as it reads Stable
Diffusion's, and it encodes any text: unknown words fall apart into smaller pieces.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

from tokenizers.pre_tokenizers import ByteLevel

from sld.testbed.scenes import (
    ANY_CATEGORY,
    CAPTIONS,
    CATEGORY_WORDS,
    CONCEPT,
    CONCEPT_LONG,
    PLACES,
    PROPS,
    SUBJECTS,
    phrase,
)

VOCABULARY = 1024
"""Largest number of token ids."""

TOKENS = 32
"""Length of every encoded prompt, start and end included."""

START, END = "<|startoftext|>", "<|endoftext|>"

EXTRA = """
hate, harassment, violence, suffering, humiliation, harm, suicide, sexual, nudity, bodily fluids, blood, obscene
gestures, illegal activity, drug use, theft, vandalism, weapons, child abuse, brutality, cruelty
photo painting drawing man woman people person dog cat house night day old new big small red green blue black white
and on by for from this that no not safe
"""
"""Further words that get a token: those of the paper's safety concept, and those that new users are likely to type."""

Word = tuple[str, ...]


def world_words() -> list[str]:
    """Return every word that a caption or the safety concept can hold, sorted."""
    forms = [re.sub(r"{\w+}", "", form) for groups in CAPTIONS.values() for _, group in groups for form in group]
    places = [text for place in PLACES.values() for text in (place.name, place.alone, *place.where)]
    categories = [*ANY_CATEGORY, *(text for texts in CATEGORY_WORDS.values() for text in texts)]
    nouns = [phrase(noun) for noun in (*SUBJECTS, *PROPS)]
    return _words(" ".join([*forms, *places, *categories, *nouns, CONCEPT, CONCEPT_LONG]))


def learn_merges(words: Mapping[str, int], limit: int) -> list[tuple[str, str]]:
    """Return byte-pair merges that make each word one token, as far as `limit` allows.

    Args:
        words: ASCII words with their weights.
        limit: largest number of merges.

    Returns:
        Pairs in the order of their rank. Of equally frequent pairs the one that sorts last is taken, so the result is
        the same on every machine.
    """
    spelled: dict[Word, int] = {(*word[:-1], word[-1] + "</w>"): count for word, count in words.items()}
    merges: list[tuple[str, str]] = []
    while len(merges) < limit:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, count in spelled.items():
            for pair in pairwise(word):
                pairs[pair] += count
        if not pairs:
            break
        merges.append(max(pairs, key=lambda pair: (pairs[pair], pair)))
        spelled = {_merge(word, merges[-1]): count for word, count in spelled.items()}
    return merges


def write_tokenizer(folder: Path) -> None:
    """Write the tokenizer's files. They are the same each time.

    Args:
        folder: made if it is not there. `CLIPTokenizer.from_pretrained(folder)` reads it.
    """
    alphabet = sorted(ByteLevel.alphabet())
    letters = [*alphabet, *(letter + "</w>" for letter in alphabet)]
    # The world's words have more weight than the extra ones, which get the ids that are left.
    counts = {word: 1 for word in _words(EXTRA)} | {word: 1000 for word in world_words()}
    merges = learn_merges(counts, VOCABULARY - len(letters) - 2)
    vocabulary = [*letters, *dict.fromkeys(first + second for first, second in merges), START, END]
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": TOKENS, "do_lower_case": True, **special}

    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "vocab.json", {token: k for k, token in enumerate(vocabulary)})
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges), encoding="utf-8")
    _write_json(folder / "special_tokens_map.json", special)
    _write_json(folder / "tokenizer_config.json", settings)


def _words(text: str) -> list[str]:
    return sorted(set(re.findall(r"[a-z]+", text)))


def _merge(word: Word, pair: tuple[str, str]) -> Word:
    """Return the word with each occurrence of the pair, from the left, merged into one symbol."""
    merged: list[str] = []
    k = 0
    while k < len(word):
        width = 2 if word[k : k + 2] == pair else 1
        merged.append("".join(word[k : k + width]))
        k += width
    return tuple(merged)


def _write_json(path: Path, values: Mapping[str, object]) -> None:
    path.write_text(json.dumps(values, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
