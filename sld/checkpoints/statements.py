"""What a single file says of its model: in its metadata, in marks among its keys, in a .yaml beside it, by its shapes.

This loads no torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from sld.checkpoints.files import Header, WeightsFile
from sld.checkpoints.remap import CheckpointError
from sld.config import ModelConfig, Prediction
from sld.data import read
from sld.published import CONFIGS, SD2_INPAINTING, SD15, SD15_INPAINTING, SD15_V, SD21, SD21_BASE, SDXL, SDXL_INPAINTING
from sld.spelling import did_you_mean

Origin = Literal["user", "checkpoint", "yaml file beside it", "shapes"]
CONFIG_KEY = "sld.config"
CROSS_ATTENTION = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
CROSS_ATTENTION_XL = "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"
ENTRY = "model.diffusion_model.input_blocks.0.0.weight"
AVERAGED = "model_ema.diffusion_modelinput_blocks11transformer_blocks0attn2to_kweight"
V_PRED, ZERO_SNR = "v_pred", "ztsnr"  # keys without numbers, by which trainers mark what their files are

_PREDICTIONS: dict[str, Prediction] = {"epsilon": "eps", "eps": "eps", "v": "v", "v_prediction": "v"}
_ARCHITECTURES: dict[str, Prediction] = {"stable-diffusion-v2-512": "eps", "stable-diffusion-v2-768-v": "v"}

_NAMED = {("sd15", "eps"): SD15, ("sd15", "v"): SD15_V, ("sd21", "eps"): SD21_BASE, ("sd21", "v"): SD21}
_NAMED |= {("sdxl", "eps"): SDXL, ("sdxl", "v"): replace(SDXL, name="sdxl-v", schedule=SD15_V.schedule)}

_PUBLISHED = {768: SD15, 1024: SD21, 2048: SDXL}  # by the text's width
_INPAINTING = {768: SD15_INPAINTING, 1024: SD2_INPAINTING, 2048: SDXL_INPAINTING}


class Said(NamedTuple):
    """A statement of what the network predicts, and whose it is."""

    by: str
    prediction: Prediction
    origin: Origin = "checkpoint"


def named_config(config: ModelConfig | str) -> ModelConfig:
    """Return the model of a published one's name, or of a .json file that holds the values of `ModelConfig.to_dict`.

    Raises:
        CheckpointError: there is no such name, or the file does not hold such values.
    """
    if isinstance(config, ModelConfig):
        return config
    if config in CONFIGS:
        return CONFIGS[config]
    if not config.endswith(".json"):
        listed = ", ".join(CONFIGS)
        raise CheckpointError(
            f"no model {config!r}, there are {listed} (or a .json file of one){did_you_mean(config, CONFIGS)}"
        )
    try:
        return ModelConfig.read_file(config)
    except ValueError as error:
        raise CheckpointError(str(error)) from None


def stated_config(path: Path, file: WeightsFile) -> tuple[ModelConfig, Origin] | None:
    """Return the model that a single file describes, and who says so; None if it is not told.

    Raises:
        CheckpointError: a statement is no value that there is, or statements contradict each other.
    """
    if CONFIG_KEY in file.metadata:
        try:
            return ModelConfig.from_dict(json.loads(file.metadata[CONFIG_KEY])), "checkpoint"
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"{path} carries a config that is not one of ours ({error}): give --config") from None
    likely = recognize(file.tensors)
    if likely is None:
        return None
    beside = _yaml_beside(path)
    said = list(_predictions(path, file, beside))
    if len({one.prediction for one in said}) > 1:
        listed = ", ".join(f"{one.prediction} by {one.by}" for one in said)
        raise CheckpointError(f"{path} says more than one thing of what it predicts ({listed}): give --config NAME")
    if likely.unet.inpaints:
        if any(one.prediction != likely.schedule.prediction for one in said):
            raise CheckpointError(f"{path} inpaints and says that it predicts v, which none does: give --config NAME")
        return likely, said[0].origin if said else "shapes"
    if not said:
        return likely, "shapes"
    first = said[0]
    config = _NAMED[likely.name, first.prediction]
    if beside:
        config = _with_training(config, beside, path.with_suffix(".yaml"))
    if ZERO_SNR in file.tensors:
        schedule = replace(config.schedule, zero_terminal_snr=True)
        defaults = replace(config.defaults, sampler="ddim", spacing="trailing")  # the only ones that begin at SNR 0
        config = replace(config, name=f"{config.name}-ztsnr", schedule=schedule, defaults=defaults)
    size = re.fullmatch(r"(\d{2,4})x(\d{2,4})", file.metadata.get("modelspec.resolution", ""))
    if size and all(int(side) % config.vae.factor == 0 for side in size.groups()):
        width, height = map(int, size.groups())
        config = replace(config, defaults=replace(config.defaults, size=width if width == height else (height, width)))
    return config, first.origin


def recognize(tensors: Mapping[str, Header]) -> ModelConfig | None:
    """Return the published model of this text width, and of this input. The versions differ in no other shape."""
    weight = next((tensors[key] for key in (CROSS_ATTENTION, AVERAGED, CROSS_ATTENTION_XL) if key in tensors), None)
    if weight is None or weight.ndim != 2:
        return None
    entry = tensors.get(ENTRY)
    inpaints = entry is not None and entry.ndim == 4 and entry.shape[1] == SD15_INPAINTING.unet.inputs
    return (_INPAINTING if inpaints else _PUBLISHED).get(weight.shape[1])


def _predictions(path: Path, file: WeightsFile, beside: Mapping[str, Any]) -> Iterator[Said]:
    if stated := file.metadata.get("modelspec.prediction_type"):
        if stated not in _PREDICTIONS:
            raise CheckpointError(
                f"{path}: modelspec.prediction_type is {stated!r}, expected one of {', '.join(_PREDICTIONS)}; to "
                "read it in spite of that, give --config NAME"
            )
        yield Said("modelspec.prediction_type", _PREDICTIONS[stated])
    if (architecture := file.metadata.get("modelspec.architecture", "")) in _ARCHITECTURES:
        yield Said("modelspec.architecture", _ARCHITECTURES[architecture])
    if V_PRED in file.tensors or ZERO_SNR in file.tensors:
        yield Said(f"its key {V_PRED if V_PRED in file.tensors else ZERO_SNR}", "v")
    if beside:
        parameterization = beside.get("parameterization", "eps")
        if parameterization not in ("eps", "v"):
            raise CheckpointError(
                f"{path.with_suffix('.yaml')}: parameterization is {parameterization!r}, expected 'eps' or 'v'"
            )
        yield Said(path.with_suffix(".yaml").name, parameterization, "yaml file beside it")


def _yaml_beside(path: Path) -> Mapping[str, Any]:
    """The parameters of the model in the training code's .yaml of the same name; empty if there is none."""
    beside = path.with_suffix(".yaml")
    if not beside.is_file():
        return {}
    import yaml

    try:
        parameters = yaml.safe_load(beside.read_text(encoding="utf-8-sig"))["model"]["params"]
    except (yaml.YAMLError, ValueError, TypeError, KeyError, RecursionError) as error:
        reason = str(error).replace("\n", " ")
        raise CheckpointError(
            f"{beside} is not the config of a model ({reason}): remove it, or give --config NAME"
        ) from None
    return parameters if isinstance(parameters, dict) else {}


def _with_training(config: ModelConfig, beside: Mapping[str, Any], path: Path) -> ModelConfig:
    """The model with the noise schedule and the scale of latents of its training."""
    schedule, vae = config.schedule, config.vae
    names = {"timesteps": "steps", "linear_start": "beta_start", "linear_end": "beta_end"}
    changes = {ours: beside[theirs] for theirs, ours in names.items() if theirs in beside}
    given = {"scaling": beside["scale_factor"]} if "scale_factor" in beside else {}
    try:
        schedule = read(type(schedule), {**vars(schedule), **changes}, f"{path}:")
        vae = read(type(vae), {**vars(vae), **given}, f"{path}:")
    except ValueError as error:
        raise CheckpointError(str(error)) from None
    return replace(config, schedule=schedule, vae=vae)
