"""The config files of a diffusers folder and the ModelConfig that they amount to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

from sld.checkpoints.remap import CheckpointError
from sld.config import (
    CONFIGS,
    SAMPLERS,
    Defaults,
    ModelConfig,
    Prediction,
    ScheduleConfig,
    TextConfig,
    UNetConfig,
    VAEConfig,
)
from sld.data import read

# What our networks have no option for. A folder that says otherwise is refused; one that says nothing means this.
_UNET: dict[str, Any] = {
    "act_fn": "silu",
    "addition_embed_type": None,
    "attention_type": "default",
    "center_input_sample": False,
    "class_embed_type": None,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_norm": None,
    "downsample_padding": 1,
    "dual_cross_attention": False,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_only_cross_attention": None,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "norm_eps": 1e-5,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "default",
    "reverse_transformer_layers_per_block": None,
    "time_cond_proj_dim": None,
    "time_embedding_act_fn": None,
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
}
_VAE: dict[str, Any] = {
    "act_fn": "silu",
    "in_channels": 3,
    "latents_mean": None,
    "latents_std": None,
    "mid_block_add_attention": True,
    "out_channels": 3,
    "shift_factor": None,
    "use_post_quant_conv": True,
    "use_quant_conv": True,
}
_SCHEDULE: dict[str, Any] = {"beta_schedule": "scaled_linear", "rescale_betas_zero_snr": False, "trained_betas": None}
_PREDICTIONS: dict[str, Prediction] = {"epsilon": "eps", "v_prediction": "v"}
# What transformers takes where a text encoder's config says nothing.
_TEXT: dict[str, Any] = {
    "hidden_act": "quick_gelu",
    "hidden_size": 512,
    "intermediate_size": 2048,
    "max_position_embeddings": 77,
    "num_attention_heads": 8,
    "num_hidden_layers": 12,
    "vocab_size": 49408,
}
_DOWN = {"CrossAttnDownBlock2D": True, "DownBlock2D": False}
_UP = {"CrossAttnUpBlock2D": True, "UpBlock2D": False}
_LAYER_NORM_EPS = 1e-5
_OWN = "sld.json"  # what a folder of diffusers has no place for: the defaults of its checkpoint

T = TypeVar("T")


def read_config(folder: Path) -> ModelConfig:
    """The model that a diffusers folder describes. It has a published name if it equals that model.

    Raises:
        CheckpointError: a config file is missing, or asks for what Stable Diffusion 1 and 2 do not have.
    """
    vae = _read_vae(folder / "vae" / "config.json")
    unet, side = _read_unet(folder / "unet" / "config.json")
    text = _read_text(folder)
    schedule, sampler = _read_schedule(folder / "scheduler" / "scheduler_config.json")
    defaults = Defaults(size=side * vae.factor, sampler=sampler)
    if (own := folder / _OWN).is_file():
        try:
            defaults = read(Defaults, _read(own, {})["defaults"])
        except (ValueError, TypeError, KeyError) as error:
            raise CheckpointError(f"{own} does not hold the defaults of a checkpoint ({error!r}): remove it") from None
    config = ModelConfig(folder.resolve().name, unet, vae, text, schedule, defaults)
    # from the latest: versions that differ in nothing but their weights go by the last one's name
    same = (name for name, known in reversed(CONFIGS.items()) if _but_for_choices(known) == _but_for_choices(config))
    return replace(config, name=next(same, config.name))


def _but_for_choices(config: ModelConfig) -> ModelConfig:
    """The model without its name and without what a folder chooses for it, but for the size."""
    return replace(config, name="", defaults=Defaults(size=config.defaults.size))


def write_configs(folder: Path, config: ModelConfig) -> None:
    """Inverse of `read_config`, in the form that diffusers reads. Makes the folders."""
    unet, vae, text, schedule = config.unet, config.vae, config.text, config.schedule
    defaults, entry = config.defaults, SAMPLERS[config.defaults.sampler]
    _write(
        folder / "unet" / "config.json",
        _UNET
        | {
            "_class_name": "UNet2DConditionModel",
            "attention_head_dim": unet.heads,  # the count, in diffusers' Stable Diffusion
            "block_out_channels": unet.channels,
            "cross_attention_dim": unet.context,
            "down_block_types": [_name(_DOWN, a) for a in unet.attention],
            "in_channels": unet.latent,
            "layers_per_block": unet.res_blocks,
            "norm_num_groups": unet.groups,
            "out_channels": unet.latent,
            "sample_size": defaults.size // vae.factor,
            "transformer_layers_per_block": unet.depth,
            "up_block_types": [_name(_UP, a) for a in reversed(unet.attention)],
            "use_linear_projection": unet.linear_projection,
        },
    )
    levels = len(vae.channels)
    _write(
        folder / "vae" / "config.json",
        _VAE
        | {
            "_class_name": "AutoencoderKL",
            "block_out_channels": vae.channels,
            "down_block_types": ["DownEncoderBlock2D"] * levels,
            "latent_channels": vae.latent,
            "layers_per_block": vae.res_blocks,
            "norm_num_groups": vae.groups,
            "sample_size": defaults.size,
            "scaling_factor": vae.scaling,
            "up_block_types": ["UpDecoderBlock2D"] * levels,
        },
    )
    _write(
        folder / "text_encoder" / "config.json",
        {
            "architectures": ["CLIPTextModel"],
            "bos_token_id": text.vocabulary - 2,
            "eos_token_id": text.vocabulary - 1,
            "hidden_act": text.activation,
            "hidden_size": text.width,
            "intermediate_size": text.hidden,
            "layer_norm_eps": _LAYER_NORM_EPS,
            "max_position_embeddings": text.tokens,
            "model_type": "clip_text_model",
            "num_attention_heads": text.heads,
            "num_hidden_layers": text.layers,
            "pad_token_id": text.vocabulary - 1 if text.pad is None else text.pad,
            "projection_dim": text.width,
            "vocab_size": text.vocabulary,
        },
    )
    _write(
        folder / "scheduler" / "scheduler_config.json",
        _SCHEDULE
        | {
            "_class_name": entry.scheduler,
            "beta_end": schedule.beta_end,
            "beta_start": schedule.beta_start,
            "num_train_timesteps": schedule.steps,
            "prediction_type": _name(_PREDICTIONS, schedule.prediction),
            "set_alpha_to_one": schedule.final_alpha_one,
            "skip_prk_steps": True,
            "steps_offset": schedule.steps_offset,
            "timestep_spacing": defaults.spacing or entry.spacings[0],
        },
    )
    if defaults != Defaults(size=defaults.size, sampler=defaults.sampler):
        _write(folder / _OWN, {"defaults": asdict(defaults)})
    _write(
        folder / "model_index.json",
        {
            "_class_name": "StableDiffusionPipeline",
            "feature_extractor": [None, None],
            "requires_safety_checker": False,
            "safety_checker": [None, None],
            "scheduler": ["diffusers", entry.scheduler],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        },
    )


def _read_unet(path: Path) -> tuple[UNetConfig, int]:
    """The UNet, and the side of the latents that it was trained on."""
    values = _read(path, _UNET)
    channels = tuple(_get(values, "block_out_channels", path))
    attention = tuple(_translate(_DOWN, kind, path) for kind in _get(values, "down_block_types", path))
    if [_translate(_UP, kind, path) for kind in _get(values, "up_block_types", path)] != list(reversed(attention)):
        raise CheckpointError(f"{path}: up_block_types are not down_block_types in reverse")
    latent, out = _get(values, "in_channels", path), _get(values, "out_channels", path)
    if latent != out:
        raise CheckpointError(
            f"{path}: the UNet takes {latent} channels and returns {out}; inpainting, depth and other models that take "
            "more than a latent are not read"
        )

    def per_level(value: Any) -> tuple[int, ...]:
        return tuple(value) if isinstance(value, list) else (value,) * len(channels)

    config = UNetConfig(
        channels=channels,
        res_blocks=_get(values, "layers_per_block", path),
        attention=attention,
        heads=per_level(values.get("num_attention_heads") or _get(values, "attention_head_dim", path)),
        depth=per_level(values.get("transformer_layers_per_block", 1)),
        context=_get(values, "cross_attention_dim", path),
        linear_projection=values.get("use_linear_projection", False),
        groups=values.get("norm_num_groups", 32),
        latent=latent,
    )
    return config, _get(values, "sample_size", path)


def _read_vae(path: Path) -> VAEConfig:
    values = _read(path, _VAE)
    return VAEConfig(
        channels=tuple(_get(values, "block_out_channels", path)),
        res_blocks=_get(values, "layers_per_block", path),
        scaling=values.get("scaling_factor", 0.18215),  # SD 1's configs are older than the field
        groups=values.get("norm_num_groups", 32),
        latent=_get(values, "latent_channels", path),
    )


def _read_text(folder: Path) -> TextConfig:
    path = folder / "text_encoder" / "config.json"
    values = _TEXT | _read(path, {"layer_norm_eps": _LAYER_NORM_EPS})
    activation = values["hidden_act"]
    if activation not in ("quick_gelu", "gelu"):
        raise CheckpointError(f"{path}: hidden_act is {activation!r}, expected 'quick_gelu' or 'gelu'")
    return TextConfig(
        width=values["hidden_size"],
        layers=values["num_hidden_layers"],
        heads=values["num_attention_heads"],
        hidden=values["intermediate_size"],
        tokens=values["max_position_embeddings"],
        vocabulary=values["vocab_size"],
        activation=activation,
        pad=_read_pad(folder / "tokenizer", activation),
    )


def _read_pad(tokenizer: Path, activation: str) -> int | None:
    """The id that fills a prompt, None for the end token: from the tokenizer, else what goes with the activation."""
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        path = tokenizer / name
        special = _read(path, {}) if path.is_file() else {}
        pad, end = (t["content"] if isinstance(t := special.get(k), dict) else t for k in ("pad_token", "eos_token"))
        if pad is not None:
            return None if pad in (end, "<|endoftext|>") else _token_id(tokenizer, pad)
    return 0 if activation == "gelu" else None


def _token_id(tokenizer: Path, token: str) -> int:
    path = tokenizer / "vocab.json"
    vocabulary = _read(path, {}) if path.is_file() else _read(tokenizer / "tokenizer.json", {})["model"]["vocab"]
    return _get(vocabulary, token, path)


def _read_schedule(path: Path) -> tuple[ScheduleConfig, str]:
    """The schedule, and the name of the sampler that goes by the folder's class; PNDM for a class that is unknown."""
    values, default = _read(path, _SCHEDULE), ScheduleConfig()
    named_class = values.get("_class_name")
    sampler = next((name for name, entry in SAMPLERS.items() if entry.scheduler == named_class), "pndm")
    schedule = ScheduleConfig(
        steps=values.get("num_train_timesteps", default.steps),
        beta_start=_get(values, "beta_start", path),
        beta_end=_get(values, "beta_end", path),
        prediction=_translate(_PREDICTIONS, values.get("prediction_type", "epsilon"), path),
        steps_offset=values.get("steps_offset", 0),
        final_alpha_one=values.get("set_alpha_to_one", default.final_alpha_one),
    )
    return schedule, sampler


def _read(path: Path, fixed: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON file whose values, where `fixed` has the key, agree with it; null, false and 0 are the same."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{path} is missing: a diffusers folder has unet, vae, text_encoder and scheduler, each with its config"
        ) from None
    except ValueError as error:
        raise CheckpointError(f"{path} is no JSON ({error})") from None
    other = [k for k, v in fixed.items() if k in values and (values[k] or None) != (v or None)]
    if other:
        problems = "; ".join(f"{k} is {values[k]!r}, expected {fixed[k]!r}" for k in other)
        raise CheckpointError(f"{path} does not describe Stable Diffusion 1 or 2: {problems}")
    return values


def _get(values: Mapping[str, Any], key: str, path: Path) -> Any:
    if key not in values:
        raise CheckpointError(f"{path} has no {key!r}")
    return values[key]


def _translate(names: Mapping[str, T], name: str, path: Path) -> T:
    if name not in names:
        raise CheckpointError(f"{path} says {name!r}, expected one of {', '.join(names)}")
    return names[name]


def _name(names: Mapping[str, T], value: T) -> str:
    return next(name for name, known in names.items() if known == value)


def _write(path: Path, values: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
