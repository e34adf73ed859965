"""From the tensors of a file to the parameters of a model and back, with every key accounted for on both sides."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or written: what was expected, what came, what to do."""


def split_stacked(x: Tensor, pieces: int) -> tuple[Tensor, ...]:
    """Equal `pieces` along the first axis, such as the queries', keys' and values' part of a fused projection."""
    return torch.atleast_1d(x).chunk(pieces) if pieces > 1 else (x,)


@dataclass(frozen=True)
class KeyMap:
    """One tensor of a file and what it is in the model.

    Attributes:
        ours: the parameters it holds; several are stacked along its first axis.
        theirs: its key in the file; where there are several spellings, the first is the one to write.
        matrix: whether ours is the matrix (o, i) of a linear layer, which some files store as a 1x1 convolution
            (o, i, 1, 1). Both are read.
        convolution: whether such a matrix is written as a 1x1 convolution.
    """

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    matrix: bool = False
    convolution: bool = False

    def read(self, stored: Tensor) -> dict[str, Tensor]:
        """Our parameters in a stored tensor. Works on meta tensors, which tells their shapes."""
        if self.matrix and stored.ndim == 4 and stored.shape[2:] == (1, 1):
            stored = stored.reshape(stored.shape[:2])
        return dict(zip(self.ours, split_stacked(stored, len(self.ours)), strict=False))

    def write(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """The tensor to store: inverse of `read`."""
        values = [parameters[key] for key in self.ours]
        x = values[0] if len(values) == 1 else torch.cat(values)
        return x[:, :, None, None] if self.convolution else x


@dataclass(frozen=True)
class Leftover:
    """Keys that are known and left where they are, with the reason's name. `pattern` matches a whole key."""

    name: str
    pattern: str

    def matches(self, key: str) -> bool:
        return re.fullmatch(self.pattern, key) is not None


@dataclass(frozen=True)
class Match:
    """How a file's tensors and a model's parameters meet.

    Attributes:
        key_maps: the map of every key of the file that has one.
        missing: parameters of the model that nothing in the file fills.
        differing: parameters whose shape differs, with the file's and the model's.
        numberless: keys of the file whose values are not floating point.
    """

    key_maps: dict[str, KeyMap]
    missing: tuple[str, ...]
    differing: tuple[tuple[str, torch.Size, torch.Size], ...]
    numberless: tuple[str, ...]


def match(key_maps: Iterable[KeyMap], stored: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> Match:
    """Match a file to a model without reading it.

    Args:
        key_maps: at least one for every parameter of the model.
        stored: the file's tensors; meta tensors will do.
        parameters: the model's; meta tensors will do.
    """
    found: dict[str, KeyMap] = {}
    missing: list[str] = []
    differing: list[tuple[str, torch.Size, torch.Size]] = []
    for key_map in key_maps:
        key = next((key for key in key_map.theirs if key in stored), None)
        if key is None:
            missing += key_map.ours
            continue
        found[key] = key_map
        read = key_map.read(stored[key].to("meta"))
        for ours in key_map.ours:
            shape = read[ours].shape if ours in read else stored[key].shape
            if shape != parameters[ours].shape:
                differing.append((ours, shape, parameters[ours].shape))
    numberless = tuple(key for key in found if not stored[key].is_floating_point())
    return Match(found, tuple(missing), tuple(differing), numberless)
