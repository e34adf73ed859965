"""The networks of a checkpoint as data: what a config makes of them, and where files keep them."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from sld.checkpoints import tables
from sld.checkpoints.remap import KeyMap
from sld.checkpoints.tables import Row, Shape
from sld.config import ModelConfig, TextConfig, UNetConfig, VAEConfig

Format = Literal["compvis", "diffusers"]

_DIFFUSERS, _TRANSFORMERS = ("diffusion_pytorch_model",), ("model", "pytorch_model")
FOLDERS = {"unet": _DIFFUSERS, "vae": _DIFFUSERS, "text_encoder": _TRANSFORMERS, "text_encoder_2": _TRANSFORMERS}
"""The folders of networks in a diffusers folder, with what the files of their weights may be called."""

_VARIANTS = ("", ".fp16", ".bf16", ".non_ema", ".fp32")
ENDINGS = tuple(variant + suffix for suffix in (".safetensors", ".bin") for variant in _VARIANTS)
_INDICES = tuple(f"{suffix}.index{variant}.json" for suffix in (".safetensors", ".bin") for variant in _VARIANTS)


def weight_files(stems: tuple[str, ...]) -> list[str]:
    """Return the names of files for a network's weights, or an index of their shards. The first that exists counts."""
    return [stem + ending for ending in (*ENDINGS, *_INDICES) for stem in stems]


@dataclass(frozen=True)
class Part:
    """One network of a checkpoint.

    Attributes:
        key: its short name, as in messages.
        title: what it is, in words.
        config: of the network.
        rows: its modules.
        folder: where a diffusers folder keeps its weights.
        single: what may stand before its keys in a single file; the first is what is written.
        stems: what the files in its folder may be called.
        inside: what may stand before its keys in these.
    """

    key: str
    title: str
    config: UNetConfig | VAEConfig | TextConfig
    rows: tuple[Row, ...]
    folder: str
    single: tuple[str, ...]
    stems: tuple[str, ...] = _DIFFUSERS
    inside: tuple[str, ...] = ("",)

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        """The shape of every parameter, by its name in our network."""
        weights = {f"{row.ours}.weight": row.weight for row in self.rows}
        return weights | {f"{row.ours}.bias": row.weight[:1] for row in self.rows if row.bias}

    def key_maps(self, format: Format, use_ema: bool = False) -> list[KeyMap]:
        """One map for every tensor of the part in a file.

        Args:
            format: of the file.
            use_ema: name the averaged UNet of a CompVis file instead of the last one.
        """
        # a single file has transformers' names of SD 1's text encoder, and OpenCLIP's of SD 2's
        own_column = format == "compvis" and not (isinstance(self.config, TextConfig) and not self.config.openclip)
        prefixes = self.single if format == "compvis" else self.inside
        averaged = use_ema and self.key == "unet"
        stacked: dict[tuple[str, ...], list[str]] = {}
        ways: dict[tuple[str, ...], tuple[bool, bool]] = {}
        for row in self.rows:
            for leaf in ("weight", "bias") if row.bias else ("weight",):
                spellings = (row.compvis if own_column else row.diffusers).split("|")
                theirs = tuple(dict.fromkeys(_stored(p, name, leaf) for p in prefixes for name in spellings))
                theirs = tuple(map(_averaged, theirs)) if averaged else theirs
                stacked.setdefault(theirs, []).append(f"{row.ours}.{leaf}")
                other = format == "compvis" and leaf == "weight"
                ways[theirs] = (row.convolution and other, row.transposed and other)
        return [
            KeyMap(tuple(ours), theirs, all(len(self.shapes[key]) == 2 for key in ours), *ways[theirs])
            for theirs, ours in stacked.items()
        ]


def parts(config: ModelConfig) -> tuple[Part, ...]:
    """The networks of a model, in the order in which they are named."""
    unet = Part("unet", "UNet", config.unet, tuple(tables.unet(config.unet)), "unet", ("model.diffusion_model.",))
    vae = Part("vae", "autoencoder", config.vae, tuple(tables.vae(config.vae)), "vae", ("first_stage_model.",))
    alone = len(config.texts) == 1
    where = ["cond_stage_model" if alone else f"conditioner.embedders.{k}" for k in range(len(config.texts))]
    return unet, vae, *(_text(k, text, where[k]) for k, text in enumerate(config.texts))


def _text(k: int, config: TextConfig, where: str) -> Part:
    number, clip = f"_{k + 1}" if k else "", f"{where}.transformer."
    single = (f"{where}.model.",) if config.openclip else (f"{clip}text_model.", clip)
    names, title = _TRANSFORMERS, f"text encoder{number.replace('_', ' ')}"
    rows, folder = tuple(tables.text(config)), f"text_encoder{number}"
    return Part(f"text{number}", title, config, rows, folder, single, names, ("text_model.", ""))


def _stored(prefix: str, name: str, leaf: str) -> str:
    """The key of a parameter in a file; see `Row` for what its module's name may hold."""
    if name.endswith("!"):
        return prefix + name.removesuffix("!")
    name = name.removeprefix("/") if name.startswith("/") else prefix + name
    return name.replace("*", leaf) if "*" in name else f"{name}.{leaf}"


def _averaged(key: str) -> str:
    """Where a CompVis file keeps the running average of a UNet's parameter: a name without dots."""
    return "model_ema." + key.removeprefix("model.").replace(".", "")


_LEFTOVERS: dict[str, dict[str, str]] = json.loads(Path(__file__).with_name("leftovers.json").read_text())
"""Patterns of whole keys by what they are: of each format, and of kinds of files in it."""


def leftovers(format: Format, config: ModelConfig, use_ema: bool = False) -> dict[str, re.Pattern[str]]:
    """Return what checkpoints are known to hold beside the model that is read. Everything else unknown is an error.

    Returns:
        The pattern of whole keys, by the name of what they are.
    """
    known = dict(_LEFTOVERS[format])
    if format == "diffusers" and not any(text.projection for text in config.texts):
        known |= _LEFTOVERS["diffusers, without pooled text"]
    if format == "compvis":
        known |= _LEFTOVERS["compvis, averaged" if use_ema else "compvis, last"]
        for text in (text for text in config.texts if text.openclip):
            openclip = _LEFTOVERS["compvis, openclip"].items()
            known |= {name: pattern.replace("<layers>", str(text.layers)) for name, pattern in openclip}
    return {name: re.compile(pattern) for name, pattern in known.items()}
