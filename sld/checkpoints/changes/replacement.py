"""Weights that come in place of a checkpoint's: a UNet's from a file, a text encoder's from a folder.

This loads no torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from sld.checkpoints.files import WeightsFile, open_first, open_weights
from sld.checkpoints.folders import read_text_config
from sld.checkpoints.kinds import kind_of
from sld.checkpoints.matching import Match, match
from sld.checkpoints.parts import FOLDERS, Format, Part, weight_files
from sld.checkpoints.remap import CheckpointError, KeyMap
from sld.config import TextConfig

PREFIXES = ("", "unet.", "diffusion_model.", "model.diffusion_model.")
"""What may stand before the keys of a file that holds a UNet alone."""

_LEFTOVERS: dict[str, str] = json.loads(Path(__file__).with_name("leftovers.json").read_text())
"""Patterns of whole keys beside a text encoder in its folder, by what they are."""

_FIELDS = ("width", "layers", "heads", "hidden", "tokens", "vocabulary", "activation")
"""What a text encoder must have in common with the one whose place it takes."""


@dataclass(frozen=True)
class Replacement:
    """Weights for a network, matched to its parameters.

    Attributes:
        part: the key of the network.
        file: where the weights are.
        key_maps: the map of every key that is read.
        left: number of tensors of the network that the file does not have.
    """

    part: str
    file: WeightsFile
    key_maps: Mapping[str, KeyMap]
    left: int


def is_whole(keys: Iterable[str]) -> bool:
    """Return whether a single file with these keys holds more than a UNet."""
    return any(key.startswith(("first_stage_model.", "cond_stage_model.", "conditioner.")) for key in keys)


def open_unet(path: Path) -> WeightsFile:
    """Open a file of a UNet's weights.

    Raises:
        CheckpointError: it holds something else; says what.
    """
    file = open_weights(path)
    if is_whole(file.tensors):
        raise CheckpointError(f"{path} is a whole checkpoint and no UNet alone: give it as the checkpoint itself")
    kind = kind_of((*file.tensors, *file.beside))
    if not file.tensors or (kind is not None and "UNet" not in kind):
        raise CheckpointError(f"{path} is {kind or 'a file without tensors'}; expected weights of a UNet alone")
    return file


def match_unet(file: WeightsFile, part: Part) -> Replacement:
    """Match a file of a UNet's weights, of all or of some, to a model's UNet.

    Args:
        file: with the names of diffusers or of CompVis, with or without a prefix.
        part: the UNet.

    Raises:
        CheckpointError: a key is no parameter of the UNet, or has another shape; names file and key.
    """
    named = replace(part, single=PREFIXES, inside=PREFIXES)
    ways = [(named.key_maps(format), format) for format in get_args(Format)]
    matches = [(match(key_maps, file.tensors, part.shapes), len(key_maps)) for key_maps, _ in ways]
    found, number = max(matches, key=lambda one: len(one[0].key_maps))
    unknown = [key for key in file.tensors if key not in found.key_maps]
    _require_fit(file, found, unknown, part)
    return Replacement(part.key, file, found.key_maps, number - len(found.key_maps))


def open_text_encoder(folder: Path) -> WeightsFile:
    """Open the weights in the folder of a text encoder, as transformers saves it.

    Raises:
        CheckpointError: the folder lacks its config or weights; says what it holds instead.
    """
    if not folder.is_dir():
        told = "is a file" if folder.exists() else "does not exist"
        raise CheckpointError(f"{folder} {told}; expected the folder of a text encoder, with config.json and weights")
    if not (folder / "config.json").is_file():
        inner = folder / "text_encoder"
        remedy = f"give {inner}" if inner.is_dir() else "give the folder that transformers saved it in"
        raise CheckpointError(f"{folder} holds no config.json of a text encoder: {remedy}")
    names = weight_files(FOLDERS["text_encoder"])
    found = open_first(folder, names)
    if found is None:
        raise CheckpointError(f"{folder} holds no weights of a text encoder: expected {names[0]}")
    return found


def match_text_encoder(file: WeightsFile, parts: Iterable[Part]) -> Replacement:
    """Match the weights of a text encoder to that of a model which has its shape.

    Args:
        file: in the text encoder's folder, alone or with the rest of a CLIP model.
        parts: of the model.

    Raises:
        CheckpointError: the model has no text encoder of this shape, or keys and parameters do not match; names file
            and key.
    """
    path = file.path.with_name("config.json")
    config = read_text_config(path)
    texts = [(part, part.config) for part in parts if isinstance(part.config, TextConfig)]
    part = next((part for part, ours in texts if not _differences(config, ours)), None)
    if part is None:
        one, theirs, ours = _differences(config, texts[0][1])[0]
        raise CheckpointError(
            f"{path}: the text encoder's {one} is {theirs!r}, and the model's {ours!r}: take one that was trained from "
            "this model's"
        )
    found = match(part.key_maps("diffusers"), file.tensors, part.shapes)
    unknown = [key for key in file.tensors if key not in found.key_maps]
    unknown = [key for key in unknown if not any(re.fullmatch(pattern, key) for pattern in _LEFTOVERS.values())]
    _require_fit(file, found, unknown, part)
    if found.missing:
        raise CheckpointError(f"{file.path} lacks {_few(found.missing)} of the {part.title}: fetch it again")
    return Replacement(part.key, file, found.key_maps, 0)


def _differences(theirs: TextConfig, ours: TextConfig) -> list[tuple[str, object, object]]:
    pairs = [(name, getattr(theirs, name), getattr(ours, name)) for name in _FIELDS]
    return [pair for pair in pairs if pair[1] != pair[2]]


def _require_fit(file: WeightsFile, found: Match, unknown: list[str], part: Part) -> None:
    """Refuse keys that are no parameter of a network, have another shape than it, or no numbers."""
    if unknown:
        raise CheckpointError(f"{file.path}: {_few(unknown)} is no parameter of this model's {part.title}")
    if found.differing:
        key, theirs, ours = found.differing[0]
        raise CheckpointError(
            f"{file.path}: {key} has the shape {theirs} there and {ours} in this model's {part.title}: it was made for "
            "another model"
        )
    if found.numberless:
        raise CheckpointError(f"{file.path}: {found.numberless[0]} is not floating point")


def _few(keys: Iterable[str]) -> str:
    keys = list(keys)
    return f"{keys[0]} and {len(keys) - 1} more" if len(keys) > 1 else keys[0] if keys else "nothing"
