"""CLIP's tokenizer, and its text transformer from `transformers`, used as in Stable Diffusion."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from sld.config import TOKENIZATIONS, TextConfig, Tokenization
from sld.spelling import named
from sld.text.hub import hub_tokenizer
from sld.text.tokenization import as_transformers, original
from sld.text.vocabulary import END, LETTERS, START, WORD_END, Vocabulary, read_vocabulary


class TextEncoder(nn.Module):
    """CLIP's text transformer; its last hidden state after the final norm is what the UNet attends to.

    SD 2 reads the state after the last layer but one: its config has one layer less than OpenCLIP's transformer. SDXL
    reads that state without the final norm, and the projected state of the end token after it.
    """

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.clip = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=config.vocabulary,
                hidden_size=config.width,
                intermediate_size=config.hidden,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                max_position_embeddings=config.tokens,
                hidden_act=config.activation,
                bos_token_id=config.vocabulary - 2,
                eos_token_id=config.vocabulary - 1,
                pad_token_id=config.vocabulary - 1 if config.pad is None else config.pad,
            )
        )
        # a plain range, which no checkpoint has; made here, because the meta device keeps no values
        positions = torch.arange(config.tokens, device="cpu")[None]
        self.clip.embeddings.register_buffer("position_ids", positions, persistent=False)
        projection = config.projection
        self.projection = None if projection is None else nn.Linear(config.width, projection, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Return features (n, l, d) of token ids (n, l)."""
        return self.encode(ids)[0]

    def encode(self, ids: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return features (n, l, d) of token ids (n, l), and those of the texts as a whole (n, p) if it has them."""
        found = self.clip(input_ids=ids, output_hidden_states=self.config.penultimate)
        tokens = found.hidden_states[-2] if self.config.penultimate else found.last_hidden_state
        return tokens, None if self.projection is None else self.projection(found.pooler_output)


class Tokenizer:
    """A tokenizer that makes token ids of fixed length: start, text, end, padding. A text that is too long is cut."""

    def __init__(self, vocabulary: Vocabulary, config: TextConfig, tokenization: Tokenization = "original") -> None:
        """
        Args:
            vocabulary: of the text encoder.
            config: gives the length, what to pad with, and whether the text encoder is OpenCLIP's.
            tokenization: a key of `TOKENIZATIONS`.

        Raises:
            ValueError: there is no such tokenization, or the vocabulary is not the text encoder's.
        """
        named("tokenization", tokenization, TOKENIZATIONS)
        own = len(vocabulary.ids) - sum(map(len, vocabulary.words.values()))
        if own != config.vocabulary:
            raise ValueError(
                f"{vocabulary.source}: the tokenizer has {own} tokens, the text encoder expects "
                f"{config.vocabulary}: give the tokenizer folder that belongs to this checkpoint"
            )
        self.vocabulary = vocabulary
        self.config = config
        self.tokenization: Tokenization = tokenization
        self._start, self._end = vocabulary.ids[START], vocabulary.ids[END]
        self._pad = self._end if config.pad is None else config.pad
        self._vectors = {ids[0]: list(ids) for ids in vocabulary.words.values()}
        if tokenization == "transformers":
            self._tokenize = as_transformers(vocabulary, self._pad)
        else:
            self._tokenize = original(vocabulary, config.openclip)

    @classmethod
    def load(cls, folder: str | Path | None, config: TextConfig, tokenization: Tokenization = "original") -> Tokenizer:
        """Load from a folder, as `read_vocabulary` does; None takes CLIP's from the hub or its cache.

        Raises:
            ValueError: nothing usable is there; names the file, or says how to get a tokenizer.
        """
        return cls(read_vocabulary(hub_tokenizer() if folder is None else Path(folder)), config, tokenization)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Return token ids (n, tokens), int64; errors are those of `ids`."""
        return torch.tensor([self._row(self.ids(text)) for text in texts], dtype=torch.int64)

    def ids(self, text: str) -> list[int]:
        """Return the token ids of a text, of any number, without start and end.

        Raises:
            ValueError: the text holds half a surrogate pair, which UTF-8 cannot write.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"the text {text!r} cannot be written as UTF-8 ({error.reason}): give it anew") from None
        return [k for one in self._tokenize(text) for k in self._vectors.get(one, [one])]

    def cut(self, text: str) -> str:
        """Return the end of `text` that does not fit and is cut; empty if all of it fits."""
        fits = self.config.tokens - (1 if self.tokenization == "authors" else 2)
        if not (rest := self.ids(text)[fits:]):
            return ""
        tokens, byte = list(self.vocabulary.ids), {letter: byte for byte, letter in LETTERS.items()}
        letters = "".join(tokens[k].replace(WORD_END, " ") for k in rest)
        return bytes(byte.get(letter, ord(" ")) for letter in letters).decode(errors="replace").strip()

    def _row(self, ids: list[int]) -> list[int]:
        row = [self._start, *ids, self._end]
        if len(row) > (most := self.config.tokens):
            row = row[:most] if self.tokenization == "authors" else [*row[: most - 1], self._end]
        return row + [self._pad] * (self.config.tokens - len(row))
