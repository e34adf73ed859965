"""A pipeline from a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sld.checkpoints.changes import Changes
from sld.checkpoints.changes.opening import open_changes
from sld.checkpoints.hub import located
from sld.checkpoints.loading import load_matched, matched
from sld.config import ModelConfig, Numerics, Tokenization
from sld.data import path as path_of
from sld.devices import usable
from sld.embedded import embedded_checkpoint
from sld.models.text import Tokenizer
from sld.pipeline import Pipeline
from sld.samplers import Schedule
from sld.text.hub import hub_tokenizer
from sld.text.vocabulary import Vocabulary, find_vocabulary, read_vocabulary


def load(
    path: str | Path | None = None,
    config: ModelConfig | str | None = None,
    *,
    dtype: torch.dtype | None = torch.float32,
    device: torch.device | str = "cpu",
    tokenizer: str | Path | Vocabulary | None = None,
    tokenization: Tokenization = "original",
    use_ema: bool = False,
    ignore: Sequence[str] = (),
    changes: Changes | Mapping[str, Any] | None = None,
    numerics: Numerics = "reference",
    channels_last: bool | None = None,
    offload: bool = False,
) -> Pipeline:
    """Load a pipeline from a checkpoint.

    Args:
        path: a CompVis single file, a diffusers folder, or a name on the hub, org/name[@revision][:file]; None for the
            embedded model.
        config: the checkpoint's config, or a name in `sld.published.CONFIGS`, where the file does not decide it. SD 2's
            weights, for example, do not say whether they predict eps or v.
        dtype: of the networks' weights; None keeps that of the file. Latents are always float32.
        device: where everything runs.
        tokenizer: a folder with vocab.json and merges.txt, or what was read from it; None takes the checkpoint's own,
            or CLIP's from the hub or its cache.
        tokenization: how text is read, a key of `sld.config.TOKENIZATIONS`.
        use_ema: take the averaged weights of a CompVis file that has them.
        ignore: regular expressions of whole keys of the checkpoint to leave out; they are recorded beside pictures.
        changes: what is changed in the model after the checkpoint is read: `Changes`, or a table of its fields, such as
            {"unet": "esd.safetensors", "lora": ["style.safetensors:0.8"], "embedding": "cat.pt:<cat>"}. It is recorded
            beside pictures.
        numerics: see `Pipeline`.
        channels_last: keep convolutions in the layout with channels innermost, which changes last bits. None does so on
            CUDA, where tensor cores need this layout. On CPUs some blocks of Stable Diffusion's widths become faster
            and others slower (0.90 to 1.07 of the speed, one AVX2 core, float32).
        offload: leave text encoder and autoencoder in the CPU's memory, and copy them to the device while they work.

    Raises:
        CheckpointError: the file does not match a model; the message lists all differences. Or a file of a change does
            not fit the model; the message names file and key.
        ValueError: the device cannot be used, or there is no whole tokenizer; the message says how to get one.
    """
    # on "meta", networks have shapes and no numbers
    device = torch.device(device) if str(device) == "meta" else usable(device)
    checkpoint = embedded_checkpoint() if path is None else located(path)
    if not isinstance(tokenizer, Vocabulary):
        tokenizer = find_vocabulary(checkpoint, None if tokenizer is None else path_of(tokenizer))
    opened = open_changes(Changes.of(changes))
    found = matched(checkpoint, config, use_ema, ignore)
    changed = opened.match(found.parts)
    # what is wrong with the tokenizer is said before the weights are read, which takes long
    vocabulary = opened.words(tokenizer or read_vocabulary(hub_tokenizer()))
    tokenizers = tuple(Tokenizer(vocabulary, text, tokenization) for text in found.config.texts)
    parts = load_matched(found, changed, dtype, "cpu" if offload else device)
    parts.unet.to(device)
    if parts.config.vae.upcast and parts.vae.dtype == torch.float16:
        parts.vae.float()
    channels_last = device.type == "cuda" if channels_last is None else channels_last
    if channels_last:
        for network in (parts.unet, parts.vae):
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Pipeline(
        config=parts.config,
        unet=parts.unet,
        vae=parts.vae,
        texts=parts.texts,
        tokenizers=tokenizers,
        schedule=Schedule.from_config(parts.config.schedule).to(device),
        source=parts.source,
        numerics=numerics,
        kernels=("channels last",) if channels_last else (),
    )
