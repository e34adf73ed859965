"""Files of tensors: reading of headers, reading tensor by tensor, and writing without overwriting.

Pickles are read by a machine of our own (`sld.checkpoints.pickles`), which makes tensors and plain containers and runs
nothing. What a file holds is known without torch, which is imported when tensors are fetched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from safetensors import SafetensorError, safe_open

from sld.checkpoints.pickles import Odd, Stored, open_archive
from sld.checkpoints.remap import CheckpointError
from sld.files import whole
from sld.reading import read_json
from sld.spelling import shown

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
        reader: opens the file; the result fetches one tensor by its key, mapped from the file where it can be. The
            mapping lives as long as the result and the tensors from it.
        metadata: strings that a safetensors file carries along, or a pickle beside the table of its weights.
        beside: what a pickle holds next to its weights (optimizer states, counters).
        shards: the files that hold the tensors, where `path` is the index of several.
    """

    path: Path
    tensors: Mapping[str, Header]
    reader: Callable[[], Callable[[str], Tensor]] = field(repr=False)
    metadata: Mapping[str, str] = field(default_factory=dict)
    beside: tuple[str, ...] = ()
    shards: tuple[Path, ...] = ()

    @property
    def holders(self) -> tuple[Path, ...]:
        """The files that hold the tensors."""
        return self.shards or (self.path,)


def open_weights(path: Path) -> WeightsFile:
    """Read the header of a .safetensors file or of a pickle (.ckpt, .bin, .pt, .pth).

    Raises:
        CheckpointError: there is no such file, or it is not what its name says, is damaged, or would run code.
    """
    if not path.is_file():
        is_folder = " is a folder: give the file of weights in it" if path.is_dir() else ": there is no such file"
        raise CheckpointError(f"{path}{is_folder}")
    with path.open("rb") as file:
        start = file.read(64)
    if start.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} is a Git LFS pointer, not the weights: fetch them with 'git lfs pull'")
    if start.lstrip().lower().startswith((b"<!doctype", b"<html")):
        raise CheckpointError(f"{path} is a web page, not weights: the server wants a log-in, or has no such file")
    json_behind_length = start[8:9] == b"{"
    if path.suffix.lower() in SAFETENSORS:
        if start.startswith((b"PK", b"\x80")) and not json_behind_length:
            raise CheckpointError(f"{path} is named .safetensors but holds a pickle: rename it to .ckpt")
        return _open_safetensors(path)
    if path.suffix.lower() in PICKLES:
        if json_behind_length:
            raise CheckpointError(f"{path} is named {path.suffix} but holds safetensors: rename it to .safetensors")
        return _open_pickle(path)
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
    headers = {key: Header(shape, _DTYPES[kind]) for key, (shape, kind) in found.items()}
    return WeightsFile(path, headers, lambda: safe_open(path, "pt").get_tensor, metadata)


def _open_pickle(path: Path) -> WeightsFile:
    archive = open_archive(path)
    weights, beside, metadata = _unwrapped(archive.content)
    if not isinstance(weights, dict):
        kind = "tensor" if isinstance(weights, Stored) else type(weights).__name__
        raise CheckpointError(f"{path} holds a {kind}, expected a dictionary of tensors")
    if odd := {str(key): value.kind for key, value in weights.items() if isinstance(value, Odd)}:
        key, kind = next(iter(odd.items()))
        raise CheckpointError(f"{path}: {key} is {kind}, which no network here has: save it as a dense tensor")
    stored = {str(key): value for key, value in weights.items() if isinstance(value, Stored)}
    beside += [key for key, value in weights.items() if not isinstance(value, Stored)]
    prefix = next((one for one in _WRAPPED if stored and all(key.startswith(one) for key in stored)), "")
    stored = {key.removeprefix(prefix): value for key, value in stored.items()}

    def fetches() -> Callable[[str], Tensor]:
        read = archive.reader()
        return lambda key: read(stored[key])

    headers = {key: Header(x.shape, x.dtype) for key, x in stored.items()}
    return WeightsFile(path, headers, fetches, metadata, tuple(map(str, beside)))


_WRAPPERS = ("state_dict", "module", "model_state_dict", "model", "string_to_param")
_WRAPPED = ("_forward_module.", "module.", "_orig_mod.")
"""Tables in which Lightning, DeepSpeed, training loops and the WebUI put weights; what wrappers of modules put before
keys."""


def _unwrapped(content: Any) -> tuple[Any, list[Any], dict[str, str]]:
    """The innermost table of weights, the names of what lies beside it, and the texts among that."""
    beside: list[Any] = []
    texts: dict[str, str] = {}
    while isinstance(content, dict) and not any(isinstance(value, Stored) for value in content.values()):
        name = next((name for name in _WRAPPERS if isinstance(content.get(name), dict)), None)
        if name is None:
            break
        beside += [key for key in content if key != name]
        texts |= {str(key): value for key, value in content.items() if isinstance(value, str)}
        content = content[name]
    return content, beside, texts


def shard_names(index: Path) -> list[str]:
    """Return the names of the files that an index names, which lie beside it.

    Raises:
        CheckpointError: the file is no index.
    """
    return sorted(set(_places(index).values()))


def _places(index: Path) -> dict[str, str]:
    """The file of every tensor."""
    try:
        content = read_json(index)
    except ValueError as error:
        raise CheckpointError(str(error)) from None
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict):
        raise CheckpointError(f"{index} is no index of shards, it has no table weight_map: fetch it again")
    if wrong := [name for name in places.values() if not isinstance(name, str) or Path(name).name != name]:
        raise CheckpointError(f"{index} names {shown(wrong[0])}, expected the name of a file beside it: fetch it again")
    return places


def open_shards(index: Path) -> WeightsFile:
    """Read the headers of the files that an index names, as diffusers and transformers write them.

    Raises:
        CheckpointError: the index is none, or a file is missing, or they do not hold what the index says.
    """
    places = _places(index)
    shards = {name: open_weights(index.with_name(name)) for name in sorted(set(places.values()))}
    found = {key: name for name, shard in shards.items() for key in shard.tensors}
    if lost := [key for key, name in places.items() if found.get(key) != name]:
        raise CheckpointError(f"{index} says that {lost[0]} is in {places[lost[0]]}, which does not hold it")

    def fetches() -> Callable[[str], Tensor]:
        read = {name: shard.reader() for name, shard in shards.items()}
        return lambda key: read[found[key]](key)

    headers = {key: header for shard in shards.values() for key, header in shard.tensors.items()}
    return WeightsFile(index, headers, fetches, shards=tuple(shard.path for shard in shards.values()))


def open_first(folder: Path, names: Iterable[str]) -> WeightsFile | None:
    """Open the first of these files in a folder, of weights or an index of shards; None if it has none of them.

    Raises:
        CheckpointError: see `open_weights` and `open_shards`.
    """
    found = next((path for name in names if (path := folder / name).is_file()), None)
    if found is None:
        return None
    return open_shards(found) if found.suffix == ".json" else open_weights(found)


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
