"""Files of tensors: reading of headers, reading tensor by tensor, and writing without overwriting.

Pickles are read by torch's restricted reader only, which builds tensors and plain containers and runs nothing. Torch is
imported where it is needed: what a .safetensors file holds is known without.
"""

from __future__ import annotations

import math
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from safetensors import SafetensorError, safe_open

from sld.checkpoints.remap import CheckpointError
from sld.files import whole

if TYPE_CHECKING:
    from torch import Tensor

SAFETENSORS = (".safetensors",)
PICKLES = (".ckpt", ".bin", ".pt", ".pth")

_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
"""Torch's names of dtypes by those of safetensors."""


class Header(NamedTuple):
    """The header of a tensor: its shape and torch's name of its dtype."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def real(self) -> bool:
        """Whether the dtype is floating point."""
        return "float" in self.dtype


@dataclass(frozen=True)
class WeightsFile:
    """The contents of a file, from its header.

    Attributes:
        path: where it is.
        tensors: every tensor's header, by its key.
        metadata: strings that a safetensors file carries along.
        beside: what a pickle holds next to its weights (optimizer states, counters).
    """

    path: Path
    tensors: Mapping[str, Header]
    metadata: Mapping[str, str] = field(default_factory=dict)
    beside: tuple[str, ...] = ()

    def reader(self) -> Callable[[str], Tensor]:
        """Opens the file; the result fetches one tensor by its key, mapped from the file where it can be.

        The mapping lives as long as the reader and the tensors from it.
        """
        if self.path.suffix in SAFETENSORS:
            return safe_open(self.path, "pt").get_tensor
        return _unpickle(self.path)[0].__getitem__


def open_weights(path: Path) -> WeightsFile:
    """Read the header of a .safetensors file or of a pickle (.ckpt, .bin, .pt, .pth).

    Raises:
        CheckpointError: there is no such file, or it is not what its name says, is damaged, or would run code.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file")
    with path.open("rb") as file:
        start = file.read(64)
    if start.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} is a Git LFS pointer, not the weights: fetch them with 'git lfs pull'")
    json_behind_length = start[8:9] == b"{"
    if path.suffix in SAFETENSORS:
        if start.startswith((b"PK", b"\x80")) and not json_behind_length:
            raise CheckpointError(f"{path} is named .safetensors but holds a pickle: rename it to .ckpt")
        return _open_safetensors(path)
    if path.suffix in PICKLES:
        if json_behind_length:
            raise CheckpointError(f"{path} is named {path.suffix} but holds safetensors: rename it to .safetensors")
        weights, beside = _unpickle(path)
        headers = {key: Header(tuple(x.shape), str(x.dtype).removeprefix("torch.")) for key, x in weights.items()}
        return WeightsFile(path, headers, beside=beside)
    expected = ", ".join(SAFETENSORS + PICKLES)
    raise CheckpointError(f"{path}: '{path.suffix}' is no checkpoint's suffix; expected one of {expected}")


def _open_safetensors(path: Path) -> WeightsFile:
    try:
        with safe_open(path, "np") as file:  # which reads no number here, and imports no torch
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
            found = {key: (tuple(s.get_shape()), s.get_dtype()) for key, s in slices.items()}
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is truncated or damaged ({error}): fetch it again") from None
    if unknown := sorted({dtype for _, dtype in found.values()} - set(_DTYPES)):
        raise CheckpointError(f"{path} holds numbers of a kind that is not read: {', '.join(unknown)}")
    return WeightsFile(path, {key: Header(shape, _DTYPES[kind]) for key, (shape, kind) in found.items()}, metadata)


class _Callback:
    """Stands for the one class that Lightning, which trained SD 1, leaves a reference to in its checkpoints."""


_STAND_IN: Any = (_Callback, "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint")


def _unpickle(path: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The weights of a pickle, mapped where its format allows, and the names of what lies beside them."""
    import torch
    from torch import Tensor

    try:
        with torch.serialization.safe_globals([_STAND_IN]):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        if culprit := re.search(r"(?:GLOBAL|class|function) ([\w.]+\.[\w.]+)", str(error)):
            raise CheckpointError(
                f"{path} would run code when read (it refers to {culprit[1]}) and is refused: "
                "use a .safetensors file, or have someone who trusts it convert it"
            ) from None
        raise CheckpointError(f"{path} is no pickle of weights, or damaged: fetch it again") from None
    except Exception as error:  # a damaged pickle may raise any error
        reason = str(error).split("\n")[0] or type(error).__name__
        raise CheckpointError(f"{path} is truncated or damaged ({reason}): fetch it again") from None
    weights = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(weights, dict):
        raise CheckpointError(f"{path} holds a {type(weights).__name__}, expected a dictionary of tensors")
    beside = [key for key in content if weights is not content and key != "state_dict"]
    beside += [key for key, value in weights.items() if not isinstance(value, Tensor)]
    return {str(key): x for key, x in weights.items() if isinstance(x, Tensor)}, tuple(map(str, beside))


@contextmanager
def whole_or_nothing(target: Path) -> Iterator[Path]:
    """Yield a path to write a checkpoint to, a file or a folder; it becomes `target` if no error ends the block.

    Raises:
        CheckpointError: the target exists, or its parent does not.
        OSError: it cannot be written; the message names it.
    """
    if target.exists():
        raise CheckpointError(f"{target} exists and is not overwritten: choose another name or remove it")
    if not target.parent.is_dir():
        raise CheckpointError(f"{target.parent} is no folder: make it first")
    with whole(target, replace=False) as beside:
        yield beside
