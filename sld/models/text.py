"""CLIP's tokenizer and text transformer from `transformers`, used as in Stable Diffusion."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from sld.config import TextConfig

HUB_TOKENIZER = "openai/clip-vit-large-patch14"


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
    """A tokenizer that makes token ids of fixed length: start, text, end, padding.

    A text that is too long loses its last words and keeps the end token, as in diffusers.
    """

    def __init__(self, clip: CLIPTokenizer, config: TextConfig) -> None:
        """
        Args:
            clip: a tokenizer loaded from a folder or the hub.
            config: gives the length and what to pad with.

        Raises:
            ValueError: the vocabulary has another size than the text encoder's embedding.
        """
        if len(clip) != config.vocabulary:
            raise ValueError(
                f"the tokenizer has {len(clip)} tokens, the text encoder expects {config.vocabulary}: "
                "give the tokenizer folder that belongs to this checkpoint"
            )
        self.clip = clip
        self.config = config
        self._pad = clip.eos_token_id if config.pad is None else config.pad

    @classmethod
    def load(cls, folder: str | Path | None, config: TextConfig) -> Tokenizer:
        """Load from a folder with vocab.json and merges.txt; None takes CLIP's from the hub or its cache.

        Raises:
            ValueError: nothing usable is there; says how to get a tokenizer.
        """
        try:
            return cls(CLIPTokenizer.from_pretrained(HUB_TOKENIZER if folder is None else str(folder)), config)
        except OSError as error:
            where = f"{folder} holds no" if folder is not None else "the hub and its cache gave no"
            raise ValueError(
                f"{where} CLIP tokenizer: pass a folder with vocab.json and merges.txt as tokenizer=… "
                f"(--tokenizer), for example the folder 'tokenizer' of any Stable Diffusion 1 or 2 checkpoint in "
                f"diffusers format, or download {HUB_TOKENIZER} once while online"
            ) from error

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Return token ids (n, tokens), int64."""
        return torch.tensor([self._row(self._ids(text)) for text in texts], dtype=torch.int64)

    def cut(self, text: str) -> str:
        """Return the end of `text` that does not fit and is cut; empty if all of it fits."""
        return str(self.clip.decode(self._ids(text)[self.config.tokens - 2 :])).strip()

    def _ids(self, text: str) -> list[int]:
        return self.clip(text, add_special_tokens=False, verbose=False).input_ids

    def _row(self, ids: list[int]) -> list[int]:
        row = [self.clip.bos_token_id, *ids[: self.config.tokens - 2], self.clip.eos_token_id]
        return row + [self._pad] * (self.config.tokens - len(row))
