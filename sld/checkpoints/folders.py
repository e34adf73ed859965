"""The config files of a diffusers folder, read into a ModelConfig and written from one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

from sld.checkpoints.remap import CheckpointError
from sld.config import CONFIGS, SAMPLERS, Defaults, ModelConfig, ScheduleConfig, TextConfig, UNetConfig, VAEConfig
from sld.data import read
from sld.text.vocabulary import read_pad

_KNOWN: dict[str, dict[str, dict[str, Any]]] = json.loads(Path(__file__).with_name("diffusers.json").read_text())
"""Of every part's config file: "names", the keys of our configs' fields where values are the same ("heads" of a UNet is
a count, whatever its key says); "fixed", what our networks have no option for, so that a folder that says otherwise is
refused; "absent", what the reference takes where a file says nothing; "written", what we add in files of ours."""

_PREDICTIONS: dict[str, Any] = {"epsilon": "eps", "v_prediction": "v"}
_DOWN = {"CrossAttnDownBlock2D": True, "DownBlock2D": False}
_UP = {"CrossAttnUpBlock2D": True, "UpBlock2D": False}
_OWN = "sld.json"  # what a folder of diffusers has no place for: the defaults of its checkpoint

T = TypeVar("T")


def read_config(folder: Path) -> ModelConfig:
    """Return the model that a diffusers folder describes. If it equals a published model, it has that name.

    Raises:
        CheckpointError: a config file is missing, or asks for what Stable Diffusion 1 and 2 do not have.
    """
    vae = _fields(VAEConfig, "vae", *_part(folder, "vae"))
    unet, side = _read_unet(folder)
    schedule, sampler = _read_schedule(folder)
    defaults = Defaults(size=side * vae.factor, sampler=sampler)
    if (own := folder / _OWN).is_file():
        try:
            defaults = read(Defaults, {**_read(own)["defaults"], "size": defaults.size, "sampler": sampler})
        except (ValueError, TypeError, KeyError) as error:
            raise CheckpointError(f"{own} does not hold the defaults of a checkpoint ({error!r}): remove it") from None
    config = ModelConfig(folder.resolve().name, unet, vae, (_read_text(folder),), schedule, defaults)
    # from the latest: versions that differ in nothing but their weights go by the last one's name
    same = (name for name, known in reversed(CONFIGS.items()) if _but_for_choices(known) == _but_for_choices(config))
    return replace(config, name=next(same, config.name))


def _but_for_choices(config: ModelConfig) -> ModelConfig:
    """The model without its name and without what a folder chooses for it, but for the size."""
    return replace(config, name="", defaults=Defaults(size=config.defaults.size))


def write_configs(folder: Path, config: ModelConfig) -> None:
    """Write the config files that `read_config` and diffusers read. Missing folders are made."""
    unet, vae, text, schedule = config.unet, config.vae, config.texts[0], config.schedule
    defaults, entry = config.defaults, SAMPLERS[config.defaults.sampler]
    levels = len(vae.channels)
    _write_part(
        folder,
        "unet",
        unet,
        down_block_types=[_name(_DOWN, a) for a in unet.attention],
        out_channels=unet.latent,
        sample_size=defaults.size // vae.factor,
        up_block_types=[_name(_UP, a) for a in reversed(unet.attention)],
    )
    _write_part(
        folder,
        "vae",
        vae,
        down_block_types=["DownEncoderBlock2D"] * levels,
        sample_size=defaults.size,
        up_block_types=["UpDecoderBlock2D"] * levels,
    )
    _write_part(
        folder,
        "text_encoder",
        text,
        bos_token_id=text.vocabulary - 2,
        eos_token_id=text.vocabulary - 1,
        pad_token_id=text.vocabulary - 1 if text.pad is None else text.pad,
        projection_dim=text.width,
    )
    _write_part(
        folder,
        "scheduler",
        schedule,
        _class_name=entry.scheduler,
        prediction_type=_name(_PREDICTIONS, schedule.prediction),
        timestep_spacing=defaults.spacing or entry.spacings[0],
    )
    index = _KNOWN["model_index"]["written"] | {"scheduler": ["diffusers", entry.scheduler]}
    _write(folder / "model_index.json", index)
    if defaults != Defaults(size=defaults.size, sampler=defaults.sampler):
        # size and sampler stand in diffusers' own files, and are read from there
        own_defaults = {name: value for name, value in asdict(defaults).items() if name not in ("size", "sampler")}
        _write(folder / _OWN, {"defaults": own_defaults})


def _read_unet(folder: Path) -> tuple[UNetConfig, int]:
    """The UNet, and the side of the latents that it was trained on."""
    values, path = _part(folder, "unet")
    attention = [_translate(_DOWN, kind, path) for kind in _get(values, "down_block_types", path)]
    if [_translate(_UP, kind, path) for kind in _get(values, "up_block_types", path)] != attention[::-1]:
        raise CheckpointError(f"{path}: up_block_types are not down_block_types in reverse")
    latent, out = _get(values, "in_channels", path), _get(values, "out_channels", path)
    if latent != out:
        raise CheckpointError(
            f"{path}: the UNet takes {latent} channels and returns {out}; inpainting, depth and other models that take "
            "more than a latent are not read"
        )
    values = {**values, "attention_head_dim": values.get("num_attention_heads") or values.get("attention_head_dim")}
    for name in ("attention_head_dim", "transformer_layers_per_block"):
        if isinstance(values[name], int):
            values[name] = [values[name]] * len(attention)
    return _fields(UNetConfig, "unet", values, path, attention=attention), _get(values, "sample_size", path)


def _read_text(folder: Path) -> TextConfig:
    values, path = _part(folder, "text_encoder")
    activation = values["hidden_act"]
    if activation not in ("quick_gelu", "gelu"):
        raise CheckpointError(f"{path}: hidden_act is {activation!r}, expected 'quick_gelu' or 'gelu'")
    try:
        pad = read_pad(folder / "tokenizer", usual=0 if activation == "gelu" else None)
    except ValueError as error:
        raise CheckpointError(str(error)) from None
    return _fields(TextConfig, "text_encoder", values, path, pad=pad)


def _read_schedule(folder: Path) -> tuple[ScheduleConfig, str]:
    """The schedule, and the name of the sampler that goes by the folder's class; PNDM for a class that is unknown."""
    values, path = _part(folder, "scheduler")
    prediction = _translate(_PREDICTIONS, values["prediction_type"], path)
    kind = values.get("_class_name")
    sampler = next((name for name, entry in SAMPLERS.items() if entry.scheduler == kind), "pndm")
    return _fields(ScheduleConfig, "scheduler", values, path, prediction=prediction), sampler


def _config_file(folder: Path, part: str) -> Path:
    return folder / part / ("scheduler_config.json" if part == "scheduler" else "config.json")


def _part(folder: Path, part: str) -> tuple[dict[str, Any], Path]:
    """What a part's config file says, or the reference takes where it says nothing; and the file."""
    path, known = _config_file(folder, part), _KNOWN[part]
    values = _read(path)
    # null, false and 0 are the same
    other = [k for k, v in known["fixed"].items() if k in values and (values[k] or None) != (v or None)]
    if other := [k for k in other if k != "_class_name"]:
        problems = "; ".join(f"{k} is {values[k]!r}, expected {known['fixed'][k]!r}" for k in other)
        raise CheckpointError(f"{path} does not describe Stable Diffusion 1 or 2: {problems}")
    return known["absent"] | values, path


def _fields(kind: type[T], part: str, values: Mapping[str, Any], path: Path, **own: Any) -> T:
    """A config of ours from the values of a part's file, and `own` ones."""
    found = {ours: _get(values, theirs, path) for ours, theirs in _KNOWN[part]["names"].items()}
    try:
        return read(kind, {**found, **own}, f"{path}:")
    except ValueError as error:
        raise CheckpointError(str(error)) from None


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{path} is missing: a diffusers folder has unet, vae, text_encoder and scheduler, each with its config"
        ) from None
    except ValueError as error:
        raise CheckpointError(f"{path} is no JSON ({error})") from None


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


def _write_part(folder: Path, part: str, config: Any, **values: Any) -> None:
    known = _KNOWN[part]
    named = {theirs: getattr(config, ours) for ours, theirs in known["names"].items()}
    _write(_config_file(folder, part), known["fixed"] | known.get("written", {}) | named | values)


def _write(path: Path, values: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
