"""From text to token ids, as CLIP was trained to read it or as transformers does. Importing this loads no torch."""

from __future__ import annotations

import html
from collections.abc import Callable
from typing import cast

from sld.text.vocabulary import END, LETTERS, START, WORD_END, Vocabulary

Tokenize = Callable[[str], list[int]]
"""Function from a text to its token ids, of any number, without start and end."""

_OPENCLIP = ("<start_of_text>", "<end_of_text>")  # OpenCLIP's names of start and end
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def original(vocabulary: Vocabulary, openclip: bool) -> Tokenize:
    """Return the tokenizer that the text encoder was trained with.

    Stable Diffusion 1 was trained on text that ftfy has repaired. In Stable Diffusion 2's, which is OpenCLIP's, HTML's
    references to characters were replaced afterwards, and start and end of a text have other names.
    """
    import ftfy
    import regex
    from tokenizers.models import BPE

    ids = vocabulary.ids
    whole = dict(zip(_OPENCLIP if openclip else (START, END), (ids[START], ids[END]), strict=True))
    pieces = BPE(dict(ids), list(vocabulary.merges), continuing_subword_prefix="", end_of_word_suffix=WORD_END)

    def clean(text: str) -> str:
        text = ftfy.fix_text(text)
        text = html.unescape(html.unescape(text)) if openclip else text
        return " ".join(text.split()).lower()

    whole |= {clean(token): ids[token] for token in vocabulary.added}
    longest_first = sorted(map(regex.escape, whole), key=len, reverse=True)
    words = regex.compile("|".join([*longest_first, _WORDS]), regex.IGNORECASE)

    def split(word: str) -> list[int]:
        if word in whole:
            return [whole[word]]
        return [piece.id for piece in pieces.tokenize("".join(LETTERS[byte] for byte in word.encode()))]

    return lambda text: [k for word in words.findall(clean(text)) for k in split(word)]


def as_transformers(vocabulary: Vocabulary, pad: int) -> Tokenize:
    """Return transformers' CLIPTokenizer.

    It takes the token with which it pads for a word of its own. Where that is "!", as in Stable Diffusion 2, a "!" at
    the end of a word also becomes this token.
    """
    from transformers import CLIPTokenizer

    tokens = list(vocabulary.ids)
    clip = CLIPTokenizer(vocab=dict(vocabulary.ids), merges=list(vocabulary.merges), pad_token=tokens[pad])  # type: ignore
    clip.add_tokens(list(vocabulary.added))
    return lambda text: cast(list[int], clip(text, add_special_tokens=False, verbose=False).input_ids)
