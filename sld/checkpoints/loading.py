"""Loading of networks from a checkpoint, tensor by tensor."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from sld.checkpoints.changes import Changes
from sld.checkpoints.changes.opening import MatchedChanges, OpenedChanges, open_changes
from sld.checkpoints.examine import Checkpoint, examine
from sld.checkpoints.fetching import finite_tensors
from sld.checkpoints.files import WeightsFile
from sld.checkpoints.parts import Format
from sld.checkpoints.remap import KeyMap
from sld.config import ModelConfig, TextConfig, UNetConfig, VAEConfig
from sld.files import sha256
from sld.finite import all_finite
from sld.models.text import TextEncoder
from sld.models.unet import UNet
from sld.models.vae import VAE
from sld.text.vocabulary import tokenizer_folder


@dataclass(frozen=True)
class Source:
    """The source of a model.

    Attributes:
        path: what was loaded.
        format: how it was read.
        files: the files that the weights are in.
        ignored: regular expressions of keys that were left out because the user said so.
        changes: what was changed in the model.
    """

    path: Path
    format: Format
    files: tuple[Path, ...]
    ignored: tuple[str, ...] = ()
    changes: OpenedChanges = field(default_factory=OpenedChanges)

    @cached_property
    def sha256(self) -> dict[str, str]:
        """SHA-256 of every file, by its name below `path`; computed when first asked for, which takes seconds."""
        root = self.path if self.path.is_dir() else self.path.parent
        return {file.relative_to(root).as_posix(): sha256(file) for file in self.files}


@dataclass(frozen=True)
class Parts:
    """A loaded model: networks in eval mode whose parameters want no gradient, and where they came from.

    Attributes:
        config: what the model is.
        tokenizer_folder: the tokenizer that lies in the diffusers folder, or as "tokenizer" beside the single file.
        source: the checkpoint.
    """

    config: ModelConfig
    unet: UNet
    vae: VAE
    texts: tuple[TextEncoder, ...]
    tokenizer_folder: Path | None
    source: Source


_NONE = Changes()


def load(
    path: str | Path,
    config: ModelConfig | str | None = None,
    dtype: torch.dtype | None = torch.float32,
    device: str | torch.device = "cpu",
    use_ema: bool = False,
    ignore: Sequence[str] = (),
    changes: Changes = _NONE,
) -> Parts:
    """Load a Stable Diffusion 1 or 2 checkpoint: a single file with CompVis' names, or a diffusers folder.

    Every key of the checkpoint must fill a parameter or be a known leftover, and every parameter must be filled, in
    its shape; nothing is loaded otherwise. Memory at the peak: the weights in the requested dtype, and while they are
    cast the pages of one part's file, which are mapped and can be dropped. Weights that need no cast stay mapped:
    replace their file by renaming, never by writing into it.

    Args:
        path: a .safetensors or .ckpt file, or a folder with unet, vae, text_encoder and scheduler.
        config, ignore: which model it is, and keys to leave out; see `examine` for what None finds out by itself.
        dtype: of all weights; None keeps each as stored.
        device: where to put the weights.
        use_ema: take the averaged UNet of a CompVis file instead of the last one.
        changes: what is changed in the model.

    Raises:
        CheckpointError: the checkpoint is missing, damaged, would run code, or does not match; names all mismatches. Or
            a file of a change does not fit the model. Or weights are not finite.
    """
    opened = open_changes(changes)
    checkpoint = matched(path, config, use_ema, ignore)
    return load_matched(checkpoint, opened.match(checkpoint.parts), dtype, device)


def matched(
    path: str | Path, config: ModelConfig | str | None = None, use_ema: bool = False, ignore: Sequence[str] = ()
) -> Checkpoint:
    """Return an examined checkpoint that can be loaded. What was assumed of it is a warning. No weight is read.

    Raises:
        CheckpointError: see `load`, but for weights that are not finite.
    """
    checkpoint = examine(path, config, use_ema, ignore)
    if checkpoint.problems():
        raise checkpoint.error()
    if checkpoint.assumed:
        warnings.warn(f"{path}: {checkpoint.assumed}", stacklevel=3)
    return checkpoint


def load_matched(
    checkpoint: Checkpoint, changes: MatchedChanges, dtype: torch.dtype | None, device: str | torch.device
) -> Parts:
    """Load the networks of a checkpoint that `matched` returned, and change them; `dtype` and `device` as in `load`.

    Raises:
        CheckpointError: weights are not finite.
    """
    with torch.device("meta"), _Unwritten():
        networks = {part.key: _BUILD[type(part.config)](part.config) for part in checkpoint.parts}
    for key, network in networks.items():
        sources: list[_Weights] = [(checkpoint.files[key], checkpoint.matches[key].key_maps)]
        if (other := changes.replacements.get(key)) is not None:
            sources.insert(0, (other.file, other.key_maps))
            if other.left:
                stay = f"{other.left} tensors stay the checkpoint's"
                warnings.warn(f"{other.file.path} holds a part of the UNet: {stay}", stacklevel=3)
        _fill(network, sources, dtype, torch.device(device))
    changes.make(networks)
    return Parts(
        checkpoint.config,
        networks["unet"],
        networks["vae"],
        tuple(networks[part.key] for part in checkpoint.parts if isinstance(part.config, TextConfig)),
        tokenizer_folder(checkpoint.path),
        Source(
            checkpoint.path,
            checkpoint.format,
            tuple(dict.fromkeys(path for file in checkpoint.files.values() for path in file.holders)),
            checkpoint.ignored,
            changes.opened,
        ),
    )


_ONE_ROW = re.compile(r"(.+\.)?(time|time_in|time_out|added_in|added_out|projection)\.weight")
"""Our names of the matrices that are given one row for each text or timestep."""

_BUILD: dict[type, Callable[[Any], Any]] = {UNetConfig: UNet, VAEConfig: VAE, TextConfig: TextEncoder}


_Weights = tuple[WeightsFile, Mapping[str, KeyMap]]
"""A file, and the maps of those of its keys that are a network's."""


class _Unwritten(TorchFunctionMode):
    """Weights of new networks are left unwritten: those of the checkpoint come in their place.

    Drawing them takes a third of the time of loading, even where there is no memory behind them.
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(function, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"]
        return function(*args, **(kwargs or {}))


def _fill(model: nn.Module, sources: Sequence[_Weights], dtype: torch.dtype | None, device: torch.device) -> None:
    """Give a model on the meta device its weights, each from the first source that has it; the others' are not read."""
    state: dict[str, torch.Tensor] = {}
    for file, key_maps in sources:
        wanted = [key for key, key_map in key_maps.items() if not state.keys() >= {*key_map.ours}]
        for key, stored in finite_tensors(file, wanted):
            for ours, value in key_maps[key].read(stored).items():
                # a product with a single row rounds by where its matrix lies, and a file may map it anywhere
                alone = _ONE_ROW.fullmatch(ours) and value.is_cpu
                if ours not in state:
                    state[ours] = (value.clone() if alone else value).to(device, dtype)
    model.load_state_dict(state, strict=True, assign=True)
    model.to(device).eval().requires_grad_(False)


def not_finite(checkpoint: Checkpoint) -> Iterator[tuple[Path, str]]:
    """Yield file and key of every tensor of the model that is not finite. All are read, which takes seconds."""
    for key, match in checkpoint.matches.items():
        read = checkpoint.files[key].reader()
        yield from ((checkpoint.files[key].path, name) for name in match.key_maps if not all_finite(read(name)))
