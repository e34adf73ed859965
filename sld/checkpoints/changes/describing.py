"""Descriptions of files that change a model, for `sld inspect`. This loads no torch."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from sld.checkpoints.changes import Embedding, Lora
from sld.checkpoints.changes.embeddings import open_embedding
from sld.checkpoints.changes.lora import open_lora, width_of
from sld.checkpoints.changes.replacement import PREFIXES, is_whole, open_text_encoder
from sld.checkpoints.files import open_weights
from sld.checkpoints.folders import read_text_config
from sld.checkpoints.kinds import kind_of
from sld.published import CONFIGS

_KINDS = {"a LoRA": "lora", "an embedding": "embedding", "a UNet alone": "unet", "the UNet of": "unet"}
"""Beginnings of what `kind_of` says, and who describes it."""


def described(path: Path) -> str | None:
    """Return a description of a file or folder that changes a model; None if it is something else.

    Raises:
        CheckpointError: it is damaged, or of a kind that is not read.
    """
    if path.is_dir():
        return _report(path, _text_encoder(path)) if (path / "config.json").is_file() else None
    file = open_weights(path)
    kind = "" if is_whole(file.tensors) else kind_of((*file.tensors, *file.beside)) or ""
    name = next((name for beginning, name in _KINDS.items() if kind.startswith(beginning)), None)
    lines = {"lora": _lora, "embedding": _embedding, "unet": _unet}
    return None if name is None else _report(path, lines[name](path))


def _report(path: Path, lines: Iterator[tuple[str, str]]) -> str:
    return "\n".join([str(path), *(f"  {name:<12} {value}" for name, value in lines)])


def _lora(path: Path) -> Iterator[tuple[str, str]]:
    lora = open_lora(Lora(path))
    ranks = ", ".join(map(str, lora.ranks))
    yield "kind", "LoRA: give it as --lora beside a checkpoint"
    yield "changes", f"{len(lora.pairs)} matrices, rank {ranks}"
    texts = sum(re.match(r"lora_te|text_encoder", module) is not None for module in lora.pairs)
    yield "of these", f"{len(lora.pairs) - texts} of the UNet, {texts} of text encoders"
    yield "made for", _made_for(width_of(lora))


def _embedding(path: Path) -> Iterator[tuple[str, str]]:
    embedding = open_embedding(Embedding(path))
    yield "kind", "embedding (textual inversion): give it as --embedding beside a checkpoint"
    yield "word", f"{embedding.token}, of {embedding.vectors} vector{'s' * (embedding.vectors > 1)}"
    yield "made for", _made_for(sum(embedding.widths))


def _unet(path: Path) -> Iterator[tuple[str, str]]:
    tensors = open_weights(path).tensors
    parameters = sum(header.numel for header in tensors.values())
    entry = any(
        re.fullmatch(rf"({'|'.join(map(re.escape, PREFIXES))})(conv_in|input_blocks\.0\.0)\.weight", key)
        for key in tensors
    )
    widths = (header.shape[1] for key, header in tensors.items() if re.search(r"attn2\.to_[kv]\.weight$", key))
    yield "kind", f"{'UNet alone' if entry else 'part of a UNet'}: give it as --unet beside a checkpoint"
    yield "holds", f"{parameters:,} parameters in {len(tensors)} tensors"
    yield "made for", _made_for(next(widths, None))


def _text_encoder(folder: Path) -> Iterator[tuple[str, str]]:
    config = read_text_config(folder / "config.json")
    open_text_encoder(folder)
    yield "kind", "text encoder: give it as --text-encoder beside a checkpoint"
    yield "holds", f"{config.layers} layers of {config.width} features, {config.vocabulary} tokens"


def _made_for(width: int | None) -> str:
    """The published models whose UNets take texts of this width."""
    names = [name for name, config in CONFIGS.items() if config.unet.context == width and not config.unet.inpaints]
    return "no model that is told by its shapes" if not names else f"{', '.join(names)} (text of {width} features)"
