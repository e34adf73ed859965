"""Embeddings (textual inversion): trained vectors behind those of a text encoder's tokens, and the words for them.

Only adding imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sld.checkpoints.changes import Embedding
from sld.checkpoints.files import WeightsFile, open_weights
from sld.checkpoints.kinds import kind_of
from sld.checkpoints.parts import Part
from sld.checkpoints.remap import CheckpointError
from sld.config import TextConfig

if TYPE_CHECKING:
    from torch import Tensor, nn

_NAMELESS = ("*", "emb_params")
"""Keys that stand for vectors and name no word: in the WebUI's pickles, and in its .safetensors."""

_XL = ("clip_l", "clip_g")
"""Keys of the vectors for SDXL's text encoders, in their order."""


@dataclass(frozen=True)
class EmbeddingFile:
    """An embedding's file.

    Attributes:
        stated: what the user said.
        file: where the vectors are.
        token: the word that stands for them.
        keys: of the vectors for each text encoder, in their order.
    """

    stated: Embedding
    file: WeightsFile
    token: str
    keys: tuple[str, ...]

    @property
    def vectors(self) -> int:
        """Number of vectors, each of which takes the place of a token."""
        shape = self.file.tensors[self.keys[0]].shape
        return shape[0] if len(shape) == 2 else 1

    @property
    def widths(self) -> tuple[int, ...]:
        """Features of a vector for each text encoder."""
        return tuple(self.file.tensors[key].shape[-1] for key in self.keys)


def open_embedding(stated: Embedding) -> EmbeddingFile:
    """Open an embedding's file, as diffusers or the WebUI writes it.

    Raises:
        CheckpointError: the file is none, or holds more than the vectors of one word; names file and key.
    """
    file = open_weights(stated.path)
    keys = tuple(file.tensors)
    if set(keys) == set(_XL):
        keys = _XL
    elif len(keys) != 1:
        kind = kind_of((*file.tensors, *file.beside))
        what = f"is {kind}" if kind else f"holds {len(keys)} tensors ({', '.join(keys[:3]) or 'none'})"
        raise CheckpointError(f"{file.path} {what}; expected an embedding, with the vectors of one word")
    shapes = [file.tensors[key].shape for key in keys]
    for key, shape in zip(keys, shapes, strict=True):
        if len(shape) not in (1, 2) or 0 in shape or shape[:-1] != shapes[0][:-1]:
            raise CheckpointError(f"{file.path}: {key} has the shape {shape}, expected vectors (n, features)")
        if not file.tensors[key].real:
            raise CheckpointError(f"{file.path}: {key} is not floating point")
    named = file.metadata.get("name") if keys == ("*",) else None
    own = keys[0] if keys[0] not in (*_NAMELESS, *_XL) else named or file.path.stem
    token = own if stated.token is None else stated.token
    return EmbeddingFile(replace(stated, token=token), file, token, keys)


def require_fit(embedding: EmbeddingFile, parts: Sequence[Part]) -> None:
    """Refuse an embedding whose vectors are not those of a model's text encoders.

    Raises:
        CheckpointError: they have other features, or are for more or fewer text encoders; names file and key.
    """
    texts = [part.config for part in parts if isinstance(part.config, TextConfig)]
    path, keys = embedding.file.path, embedding.keys
    if len(keys) != len(texts):
        made = "SDXL, with two text encoders" if len(keys) > 1 else "a model with one text encoder"
        raise CheckpointError(f"{path}: {' and '.join(keys)} were made for {made}, and this model has {len(texts)}")
    for key, width, text in zip(keys, embedding.widths, texts, strict=True):
        if width != text.width:
            raise CheckpointError(
                f"{path}: vectors of {key} have {width} features, and tokens of this model {text.width}: it was made "
                "for another model"
            )
    if embedding.vectors > (room := texts[0].tokens - 2):
        raise CheckpointError(f"{path} holds {embedding.vectors} vectors, and a prompt has room for {room}")


def grown(embeddings: Sequence[EmbeddingFile], texts: Sequence[nn.Module], table: str) -> list[dict[str, Tensor]]:
    """Return, for each text encoder, its table of tokens with the vectors of embeddings behind it, in their order.

    Args:
        embeddings: one or more.
        texts: text encoders, which stay as they are.
        table: name of the parameter.

    Raises:
        CheckpointError: a vector is not finite; names file and key.
    """
    import torch

    from sld.checkpoints.fetching import finite_tensors

    rows: list[list[Tensor]] = [[text.state_dict()[table]] for text in texts]
    for embedding in embeddings:
        read: Mapping[str, Tensor] = dict(finite_tensors(embedding.file, embedding.keys))
        for k, key in enumerate(embedding.keys):
            rows[k].append(read[key].reshape(embedding.vectors, -1).to(rows[k][0]))
    return [{table: torch.cat(one)} for one in rows]
