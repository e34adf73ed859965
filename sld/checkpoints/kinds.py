"""Names for what is no whole checkpoint: other models, parts of one, changes to one. This loads no torch."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

from sld.checkpoints.remap import CheckpointError

_KINDS: dict[str, dict[str, str]] = json.loads(Path(__file__).with_name("kinds.json").read_text())
"""Patterns of whole keys by what a file with such a key is, and what to do. The first that fits counts.

Those under "part" count where the file holds no second part of a model.
"""

_PLACES = ("model.diffusion_model.", "first_stage_model.", "cond_stage_model.")

_PARTS = {"unet": "UNet", "vae": "autoencoder", "text_encoder": "text encoder", "scheduler": "scheduler"}
_PARTS |= {"tokenizer": "tokenizer", "safety_checker": "safety checker"}


def kind_of(keys: Iterable[str]) -> str | None:
    """Return what a file with these keys is, in words with the next step; None if nobody knows."""
    keys = list(keys)
    several = sum(any(key.startswith(place) for key in keys) for place in _PLACES) > 1
    kinds = _KINDS["any"] if several else _KINDS["any"] | _KINDS["part"]
    return next((kind for kind, pattern in kinds.items() if any(re.fullmatch(pattern, key) for key in keys)), None)


def require_whole(path: Path) -> None:
    """Refuse a path where there is nothing, or that is a part of a diffusers folder.

    Raises:
        CheckpointError: says what the path is and what to give.
    """
    if not path.exists():
        raise CheckpointError(f"{path}: there is no such file or folder")
    folder = path if path.is_dir() else path.parent
    if path.suffix == ".json":
        whole = folder if (folder / "unet").is_dir() else folder.parent
        raise CheckpointError(f"{path} describes a diffusers folder or a part of one: give the whole folder, {whole}")
    # a name is looked for where the folder is, so that "." has one
    part = _PARTS.get(folder.resolve().name)
    if part and any((folder / name).is_file() for name in ("config.json", "scheduler_config.json", "vocab.json")):
        if (folder / ".." / "model_index.json").is_file() or (folder / ".." / "unet").is_dir():
            raise CheckpointError(f"{path} is the {part} of a diffusers folder: give the whole folder, {folder.parent}")
        raise CheckpointError(f"{path} is the {part} of a diffusers folder: give the whole folder that it came from")
