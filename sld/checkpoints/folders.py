"""The config files of a diffusers folder, read into a ModelConfig and written from one.

Every key that can change a picture is read, or must have the value that our networks and samplers compute. What a file
does not say is what diffusers takes there. The tables are in `diffusers.json`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from sld.checkpoints.remap import CheckpointError
from sld.config import SAMPLERS, Defaults, ModelConfig, SamplerEntry, ScheduleConfig, TextConfig, UNetConfig, VAEConfig
from sld.data import read
from sld.published import CONFIGS
from sld.reading import read_json
from sld.spelling import did_you_mean
from sld.text.vocabulary import read_pad

_KNOWN: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("diffusers.json").read_text())
"""Of every config file: "names", the keys of our configs' fields where values are the same ("heads" of a UNet is a
count, whatever its key says); "fixed", what we have no option for, so that a folder that says otherwise is refused;
"absent", what diffusers takes where a file says nothing; "written", what we add in files of ours. Of schedulers besides
"classes", the keys that each class reads, with its defaults; of the index "expected", the classes that we stand for.
Under "xl" is what SDXL's folders have otherwise."""

_PREDICTIONS: dict[str, Any] = {"epsilon": "eps", "v_prediction": "v"}
_DOWN = {"CrossAttnDownBlock2D": True, "DownBlock2D": False}
_UP = {"CrossAttnUpBlock2D": True, "UpBlock2D": False}
_BY_LEVEL = ("layers_per_block", "cross_attention_dim", "only_cross_attention")  # one number, or as many equal ones
_ACTIVATIONS = {name: name for name in ("quick_gelu", "gelu")}
_INDEX, _OWN = "model_index.json", "sld.json"  # the last holds the defaults that diffusers has no place for

T = TypeVar("T")


@dataclass(frozen=True)
class _Stated:
    """What a config file says, or diffusers takes where it says nothing; and the keys of our configs' fields."""

    path: Path
    values: Mapping[str, Any]
    names: Mapping[str, str] = field(default_factory=dict)

    def error(self, key: str, expected: str) -> CheckpointError:
        shown = repr(self.values.get(key))
        shown = shown if len(shown) <= 60 else f"{shown[:40]} … ({len(shown)} characters)"
        return CheckpointError(f"{self.path}: {key} is {shown}, expected {expected}")

    def named(self, key: str, names: Mapping[str, T]) -> T:
        """What the name under a key stands for."""
        value = self.values.get(key)
        if not isinstance(value, str) or value not in names:
            near = did_you_mean(value, names) if isinstance(value, str) else ""
            raise self.error(key, f"one of {', '.join(names)}{near}")
        return names[value]

    def all_named(self, key: str, names: Mapping[str, T]) -> list[T]:
        values = self.values.get(key)
        if not isinstance(values, list):
            raise self.error(key, "a list")
        return [replace(self, values={key: value}).named(key, names) for value in values]

    def config(self, kind: type[T], **own: Any) -> T:
        """A config of ours from the values under their names, and `own` ones."""
        names = self.names
        found = {ours: self.values[theirs] for ours, theirs in names.items() if theirs in self.values}
        try:
            return read(kind, {**found, **own}, f"{self.path}:")
        except ValueError as error:
            message = str(error).removeprefix(f"{self.path}: ")
            ours = next((ours for ours in names if message.startswith(ours)), "")
            raise CheckpointError(f"{self.path}: {names.get(ours, '')}{message.removeprefix(ours)}") from None


def read_config(folder: Path) -> ModelConfig:
    """Return the model that a diffusers folder describes. If it equals a published model, it has that name.

    Raises:
        CheckpointError: a config file is missing, or asks for what is not computed here; names file and key.
    """
    index = _read_index(folder)
    xl = "XL" in str(index.get("_class_name")) or (not index and (folder / "text_encoder_2").is_dir())
    vae = _read_vae(folder, xl)
    unet, size = _read_unet(folder, vae.factor, xl)
    schedule, samplers, spacing = _read_schedule(folder, index.get("scheduler"))
    defaults = _read_own(folder / _OWN, Defaults(size, samplers[0], spacing), samplers)
    texts = tuple(_read_text(folder, number, xl) for number in (("", "_2") if xl else ("",)))
    zeros = xl and index.get("force_zeros_for_empty_prompt", True)
    try:
        config = ModelConfig(folder.resolve().name, unet, vae, texts, schedule, defaults, bool(zeros))
    except ValueError as error:
        raise CheckpointError(f"{folder}: {error}") from None
    # from the latest: versions that differ in nothing but their weights go by the last one's name
    same = (name for name, known in reversed(CONFIGS.items()) if _but_for_choices(known) == _but_for_choices(config))
    return replace(config, name=next(same, config.name))


def _but_for_choices(config: ModelConfig) -> ModelConfig:
    """The model without its name and without what a folder chooses for it, but for the size."""
    return replace(config, name="", defaults=Defaults(size=config.defaults.size))


def write_configs(folder: Path, config: ModelConfig) -> None:
    """Write the config files that `read_config` and diffusers read. Missing folders are made.

    Raises:
        CheckpointError: diffusers has no way to say something of the config.
    """
    unet, vae, schedule = config.unet, config.vae, config.schedule
    xl = unet.pooled is not None
    defaults, entry = config.defaults, SAMPLERS[config.defaults.sampler]
    sides = tuple(side // vae.factor for side in defaults.sides)
    levels = len(vae.channels)
    _write_part(
        folder,
        "unet",
        unet,
        xl,
        down_block_types=[_name(_DOWN, a) for a in unet.attention],
        in_channels=unet.inputs,
        sample_size=sides[0] if sides[0] == sides[1] else list(sides),
        up_block_types=[_name(_UP, a) for a in reversed(unet.attention)],
        **({} if unet.pooled is None else {"projection_class_embeddings_input_dim": unet.pooled + unet.SIZES}),
    )
    _write_part(
        folder,
        "vae",
        vae,
        xl,
        down_block_types=["DownEncoderBlock2D"] * levels,
        sample_size=max(defaults.sides),
        up_block_types=["UpDecoderBlock2D"] * levels,
    )
    for number, text in zip(("", "_2"), config.texts, strict=False):
        _write_part(
            folder,
            f"text_encoder{number}",
            text,
            xl,
            bos_token_id=text.vocabulary - 2,
            eos_token_id=text.vocabulary - 1,
            pad_token_id=text.vocabulary - 1 if text.pad is None else text.pad,
            projection_dim=text.projection or text.width,
        )
    _write(_config_file(folder, "scheduler"), _scheduler(schedule, entry, defaults.spacing))
    index = _table("model_index", xl)["written"] | {"scheduler": ["diffusers", entry.scheduler]}
    if xl:
        index = {key: value for key, value in index.items() if "safety_checker" not in key}
        index["force_zeros_for_empty_prompt"] = config.zeros_for_empty
    if unet.inpaints:
        index["_class_name"] = "StableDiffusionXLInpaintPipeline" if xl else "StableDiffusionInpaintPipeline"
    _write(folder / _INDEX, index)
    _, samplers, spacing = _read_schedule(folder, entry.scheduler)
    if Defaults(defaults.size, samplers[0], spacing) != defaults:
        own = {name: value for name, value in asdict(defaults).items() if name not in ("size", "spacing")}
        _write(folder / _OWN, {"defaults": own})


def _scheduler(schedule: ScheduleConfig, entry: SamplerEntry, spacing: str | None) -> dict[str, Any]:
    """What the scheduler's file says of a schedule and a sampler: the keys that its class reads."""
    known = _KNOWN["scheduler"]
    keys = known["absent"] | known["classes"][entry.scheduler]
    named = {theirs: getattr(schedule, ours) for ours, theirs in known["names"].items()}
    if schedule.steps_offset != 1:
        raise CheckpointError(f"diffusers has no steps_offset but 1, and the model's is {schedule.steps_offset}")
    if schedule.zero_terminal_snr and (theirs := known["names"]["zero_terminal_snr"]) not in keys:
        raise CheckpointError(
            f"{entry.scheduler} has no {theirs}: take a model whose sampler is ddim, euler or dpmpp-2m"
        )
    values = known["fixed"] | entry.stated | named
    values |= {"prediction_type": _name(_PREDICTIONS, schedule.prediction)}
    values |= {"timestep_spacing": spacing or entry.spacings[0]}
    return {"_class_name": entry.scheduler} | {key: values[key] for key in keys}


def _read_index(folder: Path) -> dict[str, Any]:
    """The classes that the folder's index names, by part; empty if there is no index."""
    path = folder / _INDEX
    if not path.is_file():
        return {}
    named = {key: v[1] if isinstance(v, list) and len(v) == 2 else v for key, v in _read(path).items()}
    for key, classes in _table("model_index", "XL" in str(named.get("_class_name")))["expected"].items():
        if key in named:
            _Stated(path, named).named(key, dict.fromkeys(classes))
    return named


def _read_vae(folder: Path, xl: bool) -> VAEConfig:
    stated = _part(folder, "vae", xl)
    levels = stated.values["block_out_channels"]
    for key, kind in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
        if isinstance(levels, list) and len(stated.all_named(key, {kind: kind})) != len(levels):
            raise stated.error(key, f"{kind} for each of {len(levels)} block_out_channels")
    return stated.config(VAEConfig, divides=xl)


def _read_unet(folder: Path, factor: int, xl: bool) -> tuple[UNetConfig, int | tuple[int, int]]:
    """The UNet, and the size of the pictures that it was trained on."""
    stated = _part(folder, "unet", xl)
    values = stated.values
    attention = stated.all_named("down_block_types", _DOWN)
    if stated.all_named("up_block_types", _UP) != attention[::-1]:
        raise stated.error("up_block_types", "down_block_types in reverse")
    inputs, latent = values["in_channels"], values["out_channels"]
    if not isinstance(latent, int) or inputs not in (latent, 2 * latent + 1):
        raise CheckpointError(
            f"{stated.path}: the UNet takes {inputs!r} channels (in_channels) and returns {latent!r}; depth and other "
            "models that take more than a latent, or in inpainting two latents and a mask, are not read"
        )
    each = {
        key: [values[key]] * len(attention)
        for key in ("attention_head_dim", "transformer_layers_per_block")
        if not isinstance(values[key], list)
    }
    pooled, sizes = None, UNetConfig.SIZES
    if xl:
        told = values["projection_class_embeddings_input_dim"]
        if type(told) is not int or told <= sizes:
            raise stated.error("projection_class_embeddings_input_dim", f"the pooled text's features and {sizes}")
        pooled = told - sizes
    config = replace(stated, values={**values, **each}).config(
        UNetConfig, attention=attention, inpaints=inputs != latent, pooled=pooled
    )
    sides: Any = values.get("sample_size")
    # of the first versions, which wrote a number that nobody used
    version = re.match(r"0\.(\d+)(\.|$)", str(values.get("_diffusers_version")))
    if isinstance(sides, int) and sides < 64 and version and int(version[1]) < 9:
        sides = 64
    height: Any
    width: Any
    height, width = sides if isinstance(sides, list) and len(sides) == 2 else (sides, sides)
    if not all(type(side) is int and 0 < side <= 2**13 for side in (height, width)):
        raise stated.error("sample_size", "the side of the latents, or their height and width")
    return config, height * factor if height == width else (height * factor, width * factor)


def _read_text(folder: Path, number: str, xl: bool) -> TextConfig:
    part = f"text_encoder{number}"
    stated = _part(folder, part, xl)
    activation = stated.named("hidden_act", _ACTIVATIONS)
    try:
        pad = read_pad(folder / f"tokenizer{number}", usual=0 if activation == "gelu" else None)
    except ValueError as error:
        raise CheckpointError(str(error)) from None
    return stated.config(TextConfig, pad=pad, penultimate=xl)


def read_text_config(path: Path) -> TextConfig:
    """Return the text encoder that a config.json of transformers describes, alone or as a part of a CLIP model.

    Raises:
        CheckpointError: the file is missing, is no such config, or asks for what is not computed here.
    """
    values = _read(path)
    kind, inner = values.get("model_type", "clip_text_model"), values.get("text_config")
    if kind == "clip" and isinstance(inner, dict):
        values = inner
    elif kind != "clip_text_model":
        raise _Stated(path, values).error("model_type", "'clip_text_model', or 'clip' with a text_config")
    known = _table("text_encoder", xl=False)
    stated = _checked(path, known["absent"] | values, known, known["absent"])
    return stated.config(TextConfig, activation=stated.named("hidden_act", _ACTIVATIONS))


def _read_schedule(folder: Path, kind: Any) -> tuple[ScheduleConfig, list[str], str | None]:
    """The schedule, the samplers that the folder describes, the nearest first, and their spacing if it is unusual.

    Args:
        folder: of the whole model.
        kind: the class that the index names; it must be that of the scheduler's own file.
    """
    known, path = _KNOWN["scheduler"], _config_file(folder, "scheduler")
    values = {"_class_name": kind} | _read(path)
    stated = _Stated(path, values)
    keys = known["absent"] | stated.named("_class_name", known["classes"])
    if kind not in (None, values["_class_name"]):
        raise stated.error("_class_name", f"{kind} as in {folder / _INDEX}, which diffusers follows")
    if values.get("steps_offset") in (None, 0):
        values["steps_offset"] = 1  # as both originals take it
    if values.get("clip_sample") in (None, True):
        values["clip_sample"] = False  # as diffusers' pipelines of Stable Diffusion take it
    said = _checked(path, {key: values.get(key, usual) for key, usual in keys.items()}, known, keys)
    prediction = said.named("prediction_type", _PREDICTIONS)
    schedule = said.config(ScheduleConfig, prediction=prediction)
    fit = [
        name
        for name, entry in SAMPLERS.items()
        if entry.scheduler == values["_class_name"] and all(said.values[k] == v for k, v in entry.stated.items())
    ]
    nearest = sorted(fit, key=lambda name: -len(SAMPLERS[name].stated))
    spacings = SAMPLERS[nearest[0]].spacings
    spacing = said.named("timestep_spacing", {name: name for name in spacings})
    return schedule, nearest, None if spacing == spacings[0] else spacing


def _read_own(path: Path, stated: Defaults, samplers: list[str]) -> Defaults:
    """What the folder states to diffusers, and the rest from our own file, which may choose among the samplers."""
    if not path.is_file():
        return stated
    try:
        own = dict(_read(path)["defaults"])
        sampler = own["sampler"] if own.get("sampler") in samplers else stated.sampler
        return read(Defaults, {**own, "size": stated.size, "sampler": sampler, "spacing": stated.spacing})
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{path} does not hold the defaults of a checkpoint ({error!r}): remove it") from None


def _config_file(folder: Path, part: str) -> Path:
    return folder / part / ("scheduler_config.json" if part == "scheduler" else "config.json")


def _table(part: str, xl: bool) -> dict[str, dict[str, Any]]:
    """What is known of a part's config file, in folders of SDXL or of the others."""
    usual = _KNOWN[part.removesuffix("_2")]
    own = _KNOWN["xl"].get(part, {}) if xl else {}
    return {
        kind: usual.get(kind, {}) | own.get(kind, {}) for kind in ("names", "fixed", "absent", "written", "expected")
    }


def _part(folder: Path, part: str, xl: bool) -> _Stated:
    path, known = _config_file(folder, part), _table(part, xl)
    return _checked(path, known["absent"] | _read(path), known, known["absent"])


def _checked(path: Path, values: dict[str, Any], known: Mapping[str, Any], absent: Mapping[str, Any]) -> _Stated:
    """The values with the types of those that stand for absent ones, where what is meant is clear.

    Raises:
        CheckpointError: a value is not the one that we compute.
    """
    for key, value in values.items():
        if key in _BY_LEVEL and isinstance(value, list) and value and all(one == value[0] for one in value):
            value = value[0]
        if isinstance(absent.get(key), bool):
            if value not in (None, 0, 1):
                raise _Stated(path, values).error(key, "true or false")
            value = bool(value)
        elif isinstance(value, float) and value.is_integer():
            value = int(value)
        values[key] = value
    stated = _Stated(path, values, known["names"])
    for key, expected in known["fixed"].items():
        # null, false and 0 are the same
        if key != "_class_name" and key in values and (values[key] or None) != (expected or None):
            raise stated.error(key, json.dumps(expected))
    return stated


def _read(path: Path) -> dict[str, Any]:
    try:
        values = read_json(path, infinities=True)
    except FileNotFoundError:
        raise CheckpointError(
            f"{path} is missing: a diffusers folder has unet, vae, text_encoder and scheduler, each with its config"
        ) from None
    except ValueError as error:
        raise CheckpointError(str(error)) from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds a {type(values).__name__}, expected a table of names and values")
    return values


def _name(names: Mapping[str, T], value: T) -> str:
    return next(name for name, known in names.items() if known == value)


def _write_part(folder: Path, part: str, config: Any, xl: bool, **values: Any) -> None:
    known = _table(part, xl)
    named = {theirs: getattr(config, ours) for ours, theirs in known["names"].items()}
    _write(_config_file(folder, part), known["fixed"] | known["written"] | named | values)


def _write(path: Path, values: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
