"""The networks of a checkpoint as data: what a config makes of them, and where files keep them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from sld.checkpoints import tables
from sld.checkpoints.remap import KeyMap, Leftover
from sld.checkpoints.tables import Row, Shape
from sld.config import ModelConfig, TextConfig, UNetConfig, VAEConfig

Format = Literal["compvis", "diffusers"]

_WEIGHTS = ("diffusion_pytorch_model",)


@dataclass(frozen=True)
class Part:
    """One network of a checkpoint.

    Attributes:
        key: its short name, as in messages.
        title: what it is, in words.
        config: of the network.
        rows: its modules.
        folder, stems: where a diffusers folder keeps its weights, and what their files may be called.
        prefixes: what may stand before its keys in each format; the first is what is written.
        openclip: whether a single file has OpenCLIP's names of it.
    """

    key: str
    title: str
    config: UNetConfig | VAEConfig | TextConfig
    rows: tuple[Row, ...]
    folder: str
    stems: tuple[str, ...]
    prefixes: Mapping[Format, tuple[str, ...]]
    openclip: bool = False

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
        own_column = format == "compvis" and (self.openclip or not isinstance(self.config, TextConfig))
        averaged = use_ema and self.key == "unet"
        stacked: dict[tuple[str, ...], list[str]] = {}
        convolutions: set[tuple[str, ...]] = set()
        for row in self.rows:
            for leaf in ("weight", "bias") if row.bias else ("weight",):
                spellings = (row.compvis if own_column else row.diffusers).split("|")
                theirs = tuple(p + _stored(name, leaf) for p in self.prefixes[format] for name in spellings)
                theirs = tuple(map(_averaged, theirs)) if averaged else theirs
                stacked.setdefault(theirs, []).append(f"{row.ours}.{leaf}")
                if row.convolution and format == "compvis" and leaf == "weight":
                    convolutions.add(theirs)
        return [
            KeyMap(tuple(ours), theirs, all(len(self.shapes[key]) == 2 for key in ours), theirs in convolutions)
            for theirs, ours in stacked.items()
        ]


def parts(config: ModelConfig) -> tuple[Part, ...]:
    """The networks of a model, in the order in which they are named."""
    bare = ("",)
    made = [
        Part(
            "unet",
            "UNet",
            config.unet,
            tuple(tables.unet(config.unet)),
            "unet",
            _WEIGHTS,
            {"compvis": ("model.diffusion_model.",), "diffusers": bare},
        ),
        Part(
            "vae",
            "autoencoder",
            config.vae,
            tuple(tables.vae(config.vae)),
            "vae",
            _WEIGHTS,
            {"compvis": ("first_stage_model.",), "diffusers": bare},
        ),
    ]
    clip = "cond_stage_model.transformer."
    for k, text in enumerate(config.texts):
        number = f"_{k + 1}" if k else ""
        single = ("cond_stage_model.model.",) if text.openclip else (f"{clip}text_model.", clip)
        made.append(
            Part(
                f"text{number}",
                f"text encoder{number.replace('_', ' ')}",
                text,
                tuple(tables.text(text)),
                f"text_encoder{number}",
                ("model", "pytorch_model"),
                {"compvis": single, "diffusers": ("text_model.", "")},
                text.openclip,
            )
        )
    return tuple(made)


def _stored(name: str, leaf: str) -> str:
    """The key of a parameter in a file; see `Row` for what its module's name may hold."""
    if name.endswith("!"):
        return name.removesuffix("!")
    return name.replace("*", leaf) if "*" in name else f"{name}.{leaf}"


def _averaged(key: str) -> str:
    """Where a CompVis file keeps the running average of a UNet's parameter: a name without dots."""
    return "model_ema." + key.removeprefix("model.").replace(".", "")


_DIFFUSION = (
    "betas|alphas_cumprod(_prev)?|(sqrt_|sqrt_one_minus_|log_one_minus_|sqrt_recip_|sqrt_recipm1_)alphas_cumprod"
    "|posterior_(variance|log_variance_clipped|mean_coef1|mean_coef2)|lvlb_weights|logvar"
)


def leftovers(format: Format, config: ModelConfig, use_ema: bool = False) -> tuple[Leftover, ...]:
    """What checkpoints are known to hold beside the model that is read. Everything else unknown is an error."""
    position_ids = Leftover("text positions, a plain range", r"(.+\.)?embeddings\.position_ids")
    if format == "diffusers":
        return position_ids, Leftover("text projection, for CLIP's pooled output", r"text_projection\.weight")
    known = [
        position_ids,
        Leftover("counters of the average (EMA)", r"model_ema\.(decay|num_updates)"),
        Leftover("noise schedule of the training code", _DIFFUSION),
        Leftover("training of the autoencoder", r"first_stage_model\.(loss|model_ema)\..+"),
        Leftover("safety checker", r"safety_checker\..+"),
    ]
    if use_ema:
        known.append(Leftover("last UNet, beside the averaged one", r"model\.diffusion_model\..+"))
    else:
        known.append(Leftover("averaged UNet (EMA)", r"model_ema\.diffusion_model.+"))
    for text in (text for text in config.texts if text.openclip):
        clip, last = r"cond_stage_model\.model\.", rf"transformer\.resblocks\.{text.layers}\..+"
        known.append(Leftover("OpenCLIP's last layer, behind the one that is read", clip + last))
        known.append(Leftover("OpenCLIP's contrastive head", rf"{clip}(text_projection|logit_scale|attn_mask)"))
    return tuple(known)
