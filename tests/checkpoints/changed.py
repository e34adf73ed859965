"""Tiny models as diffusers makes them, LoRAs that change these, and weights of ours by diffusers' names."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from reference import safe_pipeline
from torch import Tensor, nn

from sld.checkpoints.parts import parts
from sld.checkpoints.tables import unet
from sld.config import UNetConfig
from sld.pipeline import Pipeline


def tiny_pipeline(words: Path) -> StableDiffusionPipeline:
    """diffusers' pipeline of tiny random parts."""
    components = {**safe_pipeline(words).components, "image_encoder": None}
    return StableDiffusionPipeline(**components, requires_safety_checker=False)


def fused(pipe: Any, *files: tuple[Path, float]) -> dict[str, dict[str, Tensor]]:
    """The weights that diffusers makes of a pipeline's with LoRAs, each with its scale. The pipeline stays as it is."""
    pipe = copy.deepcopy(pipe)
    for k, (file, scale) in enumerate(files):
        pipe.load_lora_weights(file, adapter_name=f"a{k}")
        pipe.fuse_lora(lora_scale=scale, adapter_names=[f"a{k}"])
        pipe.unload_lora_weights()
    return theirs(pipe)


def theirs(pipe: Any) -> dict[str, dict[str, Tensor]]:
    """The weights of UNet and text encoders, by diffusers' names without a prefix."""
    folders = ("unet", "text_encoder", "text_encoder_2")
    found = {name: getattr(pipe, name).state_dict() for name in folders if getattr(pipe, name, None) is not None}
    return {
        folder: {key.removeprefix("text_model."): x for key, x in state.items() if "position_ids" not in key}
        for folder, state in found.items()
    }


def ours(pipe: Pipeline) -> dict[str, dict[str, Tensor]]:
    """The weights of our UNet and text encoders, by diffusers' names."""
    made = [part for part in parts(pipe.config) if part.key != "vae"]
    states = [network.state_dict() for network in (pipe.unet, *pipe.texts)]
    return {
        part.folder: {key_map.theirs[-1]: key_map.write(state) for key_map in part.key_maps("diffusers")}
        for part, state in zip(made, states, strict=True)
    }


LAYERS = ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "ff.net.0.proj", "conv1", "time_emb_proj")
LAYERS += ("q_proj", "k_proj", "v_proj", "out_proj", "fc1")


def matrices(pipe: Any) -> Iterator[tuple[str, nn.Module]]:
    """Modules of UNet and text encoders that a LoRA may change, by peft's names."""
    for folder in theirs(pipe):
        for name, module in getattr(pipe, folder).named_modules():
            if name.endswith(LAYERS):
                yield f"{folder}.{name}", module


def lora(pipe: Any, rank: int = 2) -> dict[str, Tensor]:
    """A random LoRA for all these modules, by peft's names."""
    made: dict[str, Tensor] = {}
    random = torch.Generator().manual_seed(rank)
    for name, module in matrices(pipe):
        out, into, *sides = module.weight.shape
        made[f"{name}.lora_A.weight"] = torch.randn(rank, into, *sides, generator=random) / 4
        made[f"{name}.lora_B.weight"] = torch.randn(out, rank, *(1 for _ in sides), generator=random) / 4
    return made


def kohya(made: Mapping[str, Tensor], alphas: Mapping[str, float], xl: UNetConfig | None = None) -> dict[str, Tensor]:
    """The same by kohya's names.

    Args:
        made: by peft's names.
        alphas: by beginnings of kohya's names.
        xl: the UNet, whose modules kohya names as CompVis does in SDXL.
    """
    prefixes = {"unet": "lora_unet_", "text_encoder": "lora_te_" if xl is None else "lora_te1_"}
    prefixes["text_encoder_2"] = "lora_te2_"
    compvis = {} if xl is None else {row.diffusers: row.compvis for row in unet(xl)}
    found: dict[str, Tensor] = {}
    for key, x in made.items():
        folder, name = key.split(".", 1)
        module, role = name.rsplit(".lora_", 1)
        module = compvis.get(module, module) if folder == "unet" else f"text_model.{module.removeprefix('text_model.')}"
        stem = prefixes[folder] + module.replace(".", "_")
        found[f"{stem}.{'lora_down' if role[0] == 'A' else 'lora_up'}.weight"] = x
        alpha = next((alpha for beginning, alpha in alphas.items() if stem.startswith(beginning)), None)
        if alpha is not None:
            found[f"{stem}.alpha"] = torch.tensor(alpha)
    return found
