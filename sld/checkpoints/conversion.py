"""Writing of networks: as a single file with CompVis' names, or as a diffusers folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sld.checkpoints.files import whole_or_nothing
from sld.checkpoints.folders import write_configs
from sld.checkpoints.loading import load
from sld.checkpoints.parts import Format, Part, parts
from sld.checkpoints.remap import CheckpointError
from sld.checkpoints.statements import CONFIG_KEY
from sld.config import ModelConfig
from sld.models.text import TextEncoder
from sld.models.unet import UNet
from sld.models.vae import VAE
from sld.text.vocabulary import write_pad


def convert(
    source: str | Path,
    target: str | Path,
    format: Format,
    dtype: torch.dtype | None = None,
    config: ModelConfig | str | None = None,
    use_ema: bool = False,
    ignore: Sequence[str] = (),
) -> None:
    """Rewrite a checkpoint in the other format, or in the same one without entries that are not of the model.

    Args:
        source: what `load` reads.
        target: a .safetensors file or, for diffusers, a folder; it must not exist. It appears when it is complete.
        format: "compvis" or "diffusers".
        dtype: of the weights; None keeps each as stored, bit for bit.
        config, ignore: which model the source is, where it does not say, and keys to leave out; see `load`.
        use_ema: take the averaged UNet of a CompVis file.

    Raises:
        CheckpointError: the source cannot be loaded, or the target exists.
    """
    loaded = load(source, config, dtype, use_ema=use_ema, ignore=ignore)
    networks = loaded.unet, loaded.vae, *loaded.texts
    if format == "compvis":
        save_compvis(target, loaded.config, *networks)
    else:
        save_diffusers(target, loaded.config, *networks, tokenizer=loaded.tokenizer_folder)


def save_compvis(
    path: str | Path,
    config: ModelConfig,
    unet: UNet,
    vae: VAE,
    *texts: TextEncoder,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a single .safetensors file with CompVis' names and the config in its metadata.

    SD 2's text encoder is written as it is read, without OpenCLIP's last layer, which no reader of SD 2 computes.

    Args:
        dtype: of the weights; None keeps each as it is.

    Raises:
        CheckpointError: `path` exists, or does not end in .safetensors.
    """
    path = Path(path)
    if path.suffix.lower() != ".safetensors":
        raise CheckpointError(f"{path}: a single file is written as .safetensors")
    tensors: dict[str, Tensor] = {}
    for part, network in zip(parts(config), (unet, vae, *texts), strict=True):
        tensors |= _stored(part, network, "compvis", dtype)
    with whole_or_nothing(path) as partial:
        # one entry alone: the library writes several in an order that differs from run to run
        save_file(tensors, partial, {CONFIG_KEY: json.dumps(config.to_dict())})


def save_diffusers(
    path: str | Path,
    config: ModelConfig,
    unet: UNet,
    vae: VAE,
    *texts: TextEncoder,
    dtype: torch.dtype | None = None,
    tokenizer: Path | None = None,
) -> None:
    """Write a folder from which diffusers' and transformers' `from_pretrained` make the same networks.

    Args:
        dtype: of the weights; None keeps each as it is.
        tokenizer: a folder to copy; the copy pads as the model does. Without it diffusers loads the parts, but not the
            whole pipeline.

    Raises:
        CheckpointError: `path` exists.
    """
    with whole_or_nothing(Path(path)) as partial:
        write_configs(partial, config)
        for part, network in zip(parts(config), (unet, vae, *texts), strict=True):
            tensors = _stored(part, network, "diffusers", dtype)
            save_file(tensors, partial / part.folder / f"{part.stems[0]}.safetensors", {"format": "pt"})
        if tokenizer is not None:
            for number, text in zip(("", "_2"), config.texts, strict=False):
                shutil.copytree(tokenizer, partial / f"tokenizer{number}")
                write_pad(partial / f"tokenizer{number}", text.pad)


def _stored(part: Part, network: nn.Module, format: Format, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Return the tensors of a part as they are stored in a file."""
    state = network.state_dict()
    return {key_map.theirs[0]: key_map.write(state).to("cpu", dtype).contiguous() for key_map in part.key_maps(format)}
