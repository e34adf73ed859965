"""Changes of a model between its checkpoint and its pictures, as a user states them; the same for files and in Python.

Weights of a UNet or of a text encoder that come in place of the checkpoint's, LoRAs that are added to them, and
embeddings (textual inversion), which add words. Importing this loads no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from sld.data import Range, Written, path, read
from sld.spelling import shown


@dataclass(frozen=True)
class Lora:
    """A LoRA: for each of some matrices two small ones, whose product is added to it.

    Attributes:
        path: its file.
        scale: of the product, in addition to what the file says; any finite number.
    """

    path: Path
    scale: Annotated[float, Range()] = 1.0


@dataclass(frozen=True)
class Embedding:
    """An embedding: trained vectors, and the word that stands for them in prompts.

    Attributes:
        path: its file.
        token: the word; None for the one that the file names, or the file's own name.

    Raises:
        ValueError: the word is empty, or begins or ends with white space.
    """

    path: Path
    token: str | None = None

    def __post_init__(self) -> None:
        if self.token is not None and (not self.token or self.token != self.token.strip()):
            raise ValueError(f"the word of {self.path} must be text without spaces around it; got {shown(self.token)}")


def read_lora(text: str) -> Lora:
    """Return the LoRA of FILE or FILE:SCALE.

    Raises:
        ValueError: the scale is no finite number.
    """
    file, scale = _divided(text)
    if scale is None:
        return Lora(path(file))
    try:
        number = float(scale)
    except ValueError:
        raise ValueError(f"a LoRA is FILE or FILE:SCALE, such as style.safetensors:0.8; got {shown(text)}") from None
    return read(Lora, {"path": file, "scale": number}, f"the LoRA {file}:")


def read_embedding(text: str) -> Embedding:
    """Return the embedding of FILE or FILE:TOKEN.

    Raises:
        ValueError: the token is empty.
    """
    file, token = _divided(text)
    return Embedding(path(file), token)


def _divided(text: str) -> tuple[str, str | None]:
    """Return a file, and what follows its last colon; None if the colon is a part of the path."""
    file, colon, rest = text.rpartition(":")
    if not (colon and file) or "/" in rest or "\\" in rest or Path(text).exists():
        return text, None
    return file, rest


def _alone(text: str) -> tuple[str, ...]:
    return (text,)


Loras = Annotated[tuple[Annotated[Lora, Written(read_lora)], ...], Written(_alone)]
"""LoRAs, each written as FILE or FILE:SCALE or as a table; one alone needs no list."""

Embeddings = Annotated[tuple[Annotated[Embedding, Written(read_embedding)], ...], Written(_alone)]
"""Embeddings, each written as FILE or FILE:TOKEN or as a table; one alone needs no list."""


@dataclass(frozen=True)
class Changes:
    """What is changed in a model after its checkpoint is read.

    Attributes:
        unet: file of weights of the UNet alone, all of them or some, that come in place of the checkpoint's.
        lora: LoRAs, which are added in this order.
        embedding: embeddings, whose words prompts may then use.
        text_encoder: folder of a text encoder that comes in place of the checkpoint's.
    """

    unet: Path | None = None
    lora: Loras = ()
    embedding: Embeddings = ()
    text_encoder: Path | None = None

    @classmethod
    def of(cls, changes: Changes | Mapping[str, Any] | None) -> Changes:
        """Return changes from a table of plain values, such as {"lora": ["style.safetensors:0.8"]}; none from None.

        Raises:
            ValueError: a name is unknown, or a value is refused.
        """
        if changes is None or isinstance(changes, Changes):
            return changes or cls()
        return read(cls, {name: _as_text(value) for name, value in changes.items()}, "changes:")


def _as_text(value: Any) -> Any:
    """Paths as text, alone or in a list, so that one notation is read."""
    if isinstance(value, Path):
        return str(value)
    return [*map(_as_text, value)] if isinstance(value, list | tuple) else value
