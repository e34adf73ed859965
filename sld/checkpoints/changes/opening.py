"""Changes whose files are opened, matched to a model, and made; and what is recorded of them.

Opening and matching load no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from sld.checkpoints.changes import Changes
from sld.checkpoints.changes.embeddings import EmbeddingFile, grown, open_embedding, require_fit
from sld.checkpoints.changes.lora import Addition, LoraFile, added, match_lora, open_lora
from sld.checkpoints.changes.replacement import (
    Replacement,
    match_text_encoder,
    match_unet,
    open_text_encoder,
    open_unet,
)
from sld.checkpoints.files import WeightsFile
from sld.checkpoints.parts import Part
from sld.files import sha256
from sld.text.vocabulary import Vocabulary

if TYPE_CHECKING:
    from torch import Tensor, nn

_TOKENS = "clip.embeddings.token_embedding.weight"


@dataclass(frozen=True)
class OpenedChanges:
    """Changes with their files opened.

    Attributes:
        unet, text_encoder: files of weights that come in place of the checkpoint's.
        loras, embeddings: the others' files, in the order in which they were given.
    """

    unet: WeightsFile | None = None
    text_encoder: WeightsFile | None = None
    loras: tuple[LoraFile, ...] = ()
    embeddings: tuple[EmbeddingFile, ...] = ()

    @cached_property
    def records(self) -> list[dict[str, Any]]:
        """What a sidecar says of each change: the option, the name of its file, its SHA-256 and its numbers.

        Computed when first asked for, which takes seconds for a whole UNet.
        """
        found: list[dict[str, Any]] = []
        if self.unet is not None:
            found.append({"unet": self.unet.path.name, "sha256": sha256(self.unet.path)})
        if self.text_encoder is not None:
            files = {path.name: sha256(path) for path in self.text_encoder.holders}
            found.append({"text_encoder": self.text_encoder.path.parent.name, "sha256": files})
        for lora in self.loras:
            own = {"lora": lora.file.path.name, "scale": lora.stated.scale, "sha256": sha256(lora.file.path)}
            found.append(own if lora.config is None else {**own, "config_sha256": sha256(lora.config)})
        for embedding in self.embeddings:
            own = {"embedding": embedding.file.path.name, "token": embedding.token}
            found.append({**own, "vectors": embedding.vectors, "sha256": sha256(embedding.file.path)})
        return found

    def words(self, vocabulary: Vocabulary) -> Vocabulary:
        """Return a vocabulary with the words of the embeddings.

        Raises:
            ValueError: a word is there already; names the file.
        """
        for embedding in self.embeddings:
            vocabulary = vocabulary.with_word(embedding.token, embedding.vectors, embedding.file.path)
        return vocabulary

    def match(self, parts: Sequence[Part]) -> MatchedChanges:
        """Match the files to the networks of a model, before a weight is read.

        Raises:
            CheckpointError: one does not fit; names file and key.
        """
        found: list[Replacement] = []
        if self.unet is not None:
            found.append(match_unet(self.unet, next(part for part in parts if part.key == "unet")))
        if self.text_encoder is not None:
            found.append(match_text_encoder(self.text_encoder, parts))
        for embedding in self.embeddings:
            require_fit(embedding, parts)
        loras = [(lora, match_lora(lora, parts)) for lora in self.loras]
        return MatchedChanges(self, {one.part: one for one in found}, loras)


@dataclass(frozen=True)
class MatchedChanges:
    """Changes that fit a model.

    Attributes:
        opened: their files.
        replacements: weights in place of the checkpoint's, by the network's key.
        loras: with the parameters that they are added to.
    """

    opened: OpenedChanges
    replacements: Mapping[str, Replacement]
    loras: Sequence[tuple[LoraFile, Sequence[Addition]]]

    def make(self, networks: Mapping[str, nn.Module]) -> None:
        """Add LoRAs and embeddings to the networks of a model, by their keys, whose weights are replaced already.

        Raises:
            CheckpointError: a tensor is not finite; names file and key.
        """
        for key, weights in added(self.loras, networks).items():
            _put(networks[key], weights)
        if embeddings := self.opened.embeddings:
            texts = [network for key, network in networks.items() if key.startswith("text")]
            for text, weights in zip(texts, grown(embeddings, texts, _TOKENS), strict=True):
                _put(text, weights)


def open_changes(changes: Changes) -> OpenedChanges:
    """Open the files of changes.

    Raises:
        CheckpointError: a file is missing, damaged, would run code, or is not what it is given as; names it.
    """
    return OpenedChanges(
        None if changes.unet is None else open_unet(changes.unet),
        None if changes.text_encoder is None else open_text_encoder(changes.text_encoder),
        tuple(map(open_lora, changes.lora)),
        tuple(map(open_embedding, changes.embedding)),
    )


def option_of(record: Mapping[str, Any]) -> str:
    """Return the option of the command line that makes the change of a record."""
    name = next(iter(record))
    number = record.get("scale", record.get("token"))
    return f"--{name.replace('_', '-')} {record[name]}{'' if number is None else f':{number}'}"


def _put(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Give parameters other values, which may have another shape."""
    from torch import nn

    for name, value in weights.items():
        module, _, leaf = name.rpartition(".")
        setattr(network.get_submodule(module), leaf, nn.Parameter(value, requires_grad=False))
