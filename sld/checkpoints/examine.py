"""Examination of a checkpoint: its model, and the match of its keys and shapes. No weight is read.

This loads no torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sld.checkpoints.files import PICKLES, SAFETENSORS, WeightsFile, open_first, open_weights
from sld.checkpoints.folders import read_config
from sld.checkpoints.hub import located
from sld.checkpoints.kinds import kind_of
from sld.checkpoints.matching import Match, match
from sld.checkpoints.parts import ENDINGS, Format, Part, leftovers, parts, weight_files
from sld.checkpoints.remap import CheckpointError
from sld.checkpoints.statements import CROSS_ATTENTION, ENTRY, Origin, named_config, recognize, stated_config
from sld.config import ModelConfig
from sld.published import SD15, SD21, SDXL

_SHOWN = 6


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint with the model that it should fill.

    Attributes:
        path, format: what was opened, and how it is read.
        config: the model, and `told_by` whom; SD 2's prediction type cannot be seen from shapes.
        parts: the networks that the model has.
        files: where the weights of each part are, by its key. A single file stands under every one.
        matches: how each part's file meets it, by the part's key.
        unmatched: keys that belong to no part and no known leftover.
        dropped: keys of known leftovers, by the leftover's name.
        averaged: whether there is an averaged UNet beside the last one.
        ignored: regular expressions of keys that were left out because the user said so.
    """

    path: Path
    format: Format
    config: ModelConfig
    told_by: Origin
    parts: tuple[Part, ...]
    files: Mapping[str, WeightsFile]
    matches: Mapping[str, Match]
    unmatched: tuple[str, ...]
    dropped: Mapping[str, tuple[str, ...]]
    averaged: bool
    ignored: tuple[str, ...] = ()

    @property
    def assumed(self) -> str:
        """What was taken for granted, in words with the remedy; empty if nothing was."""
        if self.told_by != "shapes" or not self.config.texts[0].openclip:
            return ""
        return (
            "SD 2 weights do not tell what they predict, v at 768 pixels is assumed; for the 512-pixel models give "
            '--config sd21-base (config="sd21-base"), and to say so without this warning --config sd21'
        )

    def problems(self) -> list[str]:
        """All reasons why the checkpoint cannot be loaded, a line each; empty if it can."""
        lines = []
        for part in self.parts:
            if part.key not in self.files:
                expected = f"{part.stems[0]}.safetensors (or {', '.join(ENDINGS[1:])}, or shards with an index)"
                lines.append(f"there are no weights of the {part.title}: expected {part.folder}/{expected}")
        lost = [part for part in self.parts if part.key in self.files and not self.matches[part.key].key_maps]
        held = [part for part in self.parts if self.format == "compvis" and part not in lost]
        if lost and lost[0].key == "unet" and self.averaged:
            lines.append("the file holds the averaged UNet alone: --use-ema (use_ema=True) reads it")
            lost = lost[1:]
        if lost:
            only = f", only the {' and the '.join(part.title for part in held)}" if held else ""
            more = ", or copy what is missing from one into this file, under the same keys" if held else ""
            none = " and no ".join(part.title for part in lost)
            lines.append(f"the file holds no {none}{only}: use a checkpoint that has all parts of the model{more}")
        found = {part: m for part, m in self.matches.items() if m.key_maps}
        missing = [f"{part}.{key}" for part, m in found.items() for key in m.missing]
        differing = [
            f"{part}.{key}  file {theirs}  model {ours}"
            for part, m in found.items()
            for key, theirs, ours in m.differing
        ]
        numberless = [key for m in found.values() for key in m.numberless]
        for one, many, items in (
            ("1 key of the file is unknown", "{} keys of the file are unknown", self.unmatched),
            ("1 parameter of the model is not in the file", "{} parameters of the model are not in the file", missing),
            ("1 shape differs", "{} shapes differ", differing),
            ("1 tensor is not floating point", "{} tensors are not floating point", numberless),
        ):
            if items:
                count = (one if len(items) == 1 else many.format(len(items))) + ":"
                more = [f"… and {len(items) - _SHOWN} more"] if len(items) > _SHOWN else []
                lines.append(f"{count:<44} " + f"\n{'':<47}".join([*items[:_SHOWN], *more]))
        return lines

    def error(self) -> CheckpointError:
        """One error for all problems, with the likely cause."""
        head = f"{self.path.name} does not match {self.config.name} read as '{self.format}'"
        lines = [f"  {line}" for line in self.problems()]
        return CheckpointError("\n".join([head, *lines, *(f"  {line}" for line in self._causes())]))

    def _causes(self) -> Iterable[str]:
        if self.format == "diffusers":
            if self.told_by == "user":
                yield "The folder's own config files say which model it is: try without config=."
            return
        tensors = self.files["unet"].tensors
        if self.config.unet.pooled is None and any(key.startswith("conditioner.") for key in tensors):
            yield 'The keys are those of an SDXL file: try config="sdxl".'
        if all(key.startswith("model.diffusion_model.") for key in tensors):
            yield "A UNet alone is given as --unet beside a checkpoint that has all parts."
        if any(key.startswith("edm_") for key in tensors):
            yield "The model was trained on EDM's noise levels (Playground 2.5), which no sampler here has."
        likely, entry = recognize(tensors), tensors.get(ENTRY)
        known = [model.unet.inputs for model in (self.config, likely) if model is not None]
        if entry is not None and entry.ndim == 4 and entry.shape[1] not in known:
            yield f"The UNet takes {entry.shape[1]} channels: depth and the like are not read."
        if likely is not None and _shapes(likely) != _shapes(self.config):
            version = {SD15.unet.context: "SD 1", SDXL.unet.context: "SDXL"}.get(likely.unet.context, "SD 2")
            names = '"sd21-base" or "sd21"' if likely == SD21 else f'"{likely.name}"'
            yield f"The shapes suggest an {version} {'inpainting ' * likely.unet.inpaints}file: try config={names}."


def _shapes(config: ModelConfig) -> tuple[int, int]:
    """What shapes tell of a model: its features of a token, and the channels that its UNet takes."""
    return config.unet.context, config.unet.inputs


def examine(
    path: str | Path, config: ModelConfig | str | None = None, use_ema: bool = False, ignore: Sequence[str] = ()
) -> Checkpoint:
    """Open a checkpoint and match it to its model.

    Args:
        path: a single file (CompVis' names) or a folder in diffusers' format.
        config: which model it is: a published one's name, or a .json file of one. None takes it from the folder's
            config files or from what a single file says: metadata (ours, or modelspec), the keys v_pred and ztsnr, a
            .yaml of the same name, or the text width. SD 2 without a statement is taken for "sd21" (768 pixels,
            v-prediction); its weights do not tell: say "sd21-base" for the 512-pixel models, which predict eps.
        use_ema: take a CompVis file's averaged UNet instead of the last one.
        ignore: regular expressions of whole keys that are left out besides the known leftovers.

    Raises:
        CheckpointError: a file is missing, damaged or refused, or the model cannot be told.
    """
    path = located(path)
    single = None if path.is_dir() else open_weights(path)
    format: Format = "diffusers" if single is None else "compvis"
    config, told_by = _find_config(path, single) if config is None else (named_config(config), "user")
    made = parts(config)
    files = _in_folder(path, made) if single is None else {part.key: single for part in made}
    averaged = any(key.startswith("model_ema.diffusion_model") for file in files.values() for key in file.tensors)
    if use_ema and not averaged:
        raise CheckpointError(f"{path} holds no averaged UNet (keys that begin with 'model_ema.'): leave use_ema out")
    matches = {
        part.key: match(part.key_maps(format, use_ema), files[part.key].tensors, part.shapes)
        for part in made
        if part.key in files
    }
    unmatched: list[str] = []
    dropped: dict[str, list[str]] = {}
    known = leftovers(format, config, use_ema)
    known |= {f"ignored, as told: {pattern}": _pattern(pattern) for pattern in ignore}
    for file in {file.path: file for file in files.values()}.values():
        folder = f"{file.path.parent.name}/" if single is None else ""
        used = {key for part, its in files.items() if its is file for key in matches[part].key_maps}
        for key in (key for key in file.tensors if key not in used):
            name = next((name for name, pattern in known.items() if pattern.fullmatch(key)), None)
            (unmatched if name is None else dropped.setdefault(name, [])).append(folder + key)
        if file.beside:
            dropped.setdefault("state of the training, beside the weights", []).extend(file.beside)
    return Checkpoint(
        path=path,
        format=format,
        config=config,
        told_by=told_by,
        parts=made,
        files=files,
        matches=matches,
        unmatched=tuple(unmatched),
        dropped={name: tuple(keys) for name, keys in dropped.items()},
        averaged=averaged,
        ignored=tuple(ignore),
    )


def _in_folder(path: Path, made: tuple[Part, ...]) -> dict[str, WeightsFile]:
    """The weights that a diffusers folder has of the parts, by their keys."""
    opened = {part.key: open_first(path / part.folder, weight_files(part.stems)) for part in made}
    files = {key: file for key, file in opened.items() if file is not None}
    if not files:
        raise CheckpointError(_no_folder(path))
    return files


def _no_folder(path: Path) -> str:
    single = ", ".join(sorted(f.name for f in path.iterdir() if f.suffix.lower() in SAFETENSORS + PICKLES)[:_SHOWN])
    hint = f"; to load a single file, give its path ({single})" if single else ""
    return f"{path} is no diffusers folder: it has no weights in unet, vae and text_encoder{hint}"


def _find_config(path: Path, file: WeightsFile | None) -> tuple[ModelConfig, Origin]:
    if file is None:
        if not any((path / folder).is_dir() for folder in ("unet", "vae", "text_encoder")):
            raise CheckpointError(_no_folder(path))
        return read_config(path), "checkpoint"
    if found := stated_config(path, file):
        return found
    if kind := kind_of((*file.tensors, *file.beside)):
        raise CheckpointError(f"{path} is {kind}")
    kinds = sorted({key.split(".")[0] for key in file.tensors})
    raise CheckpointError(
        f"{path} is not recognized as Stable Diffusion 1, 2 or XL: it has no {CROSS_ATTENTION} of 768 or 1024 columns. "
        f"Its keys begin with {', '.join(kinds[:_SHOWN]) or 'nothing'}. If it is a model of another size, give "
        "--config with a .json file that says which"
    )


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise CheckpointError(f"--ignore takes regular expressions of whole keys; {text!r} is none ({error})") from None
