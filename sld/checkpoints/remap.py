"""From the tensors of a file to the parameters of a model and back. Importing this loads no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or written: what was expected, what came, what to do."""


def squeeze_convolution(x: Tensor) -> Tensor:
    """The matrix (o, i) of a 1x1 convolution (o, i, 1, 1); anything else as it is."""
    return x.reshape(x.shape[:2]) if x.ndim == 4 and x.shape[2:] == (1, 1) else x


def unsqueeze_matrix(x: Tensor) -> Tensor:
    """The 1x1 convolution (o, i, 1, 1) of a matrix (o, i); anything else, such as a bias, as it is."""
    return x[:, :, None, None] if x.ndim == 2 else x


def split_stacked(x: Tensor, pieces: int) -> tuple[Tensor, ...]:
    """Equal `pieces` along the first axis, such as the queries', keys' and values' part of a fused projection."""
    return (x if x.ndim else x.reshape(1)).chunk(pieces) if pieces > 1 else (x,)


@dataclass(frozen=True)
class Rule:
    """One tensor of a file and what it is in the model.

    Attributes:
        ours: the parameters it holds; several are stacked along its first axis.
        theirs: its key in the file; where there are several spellings, the first is the one to write.
        convolution: whether to write a matrix as a 1x1 convolution. Both are read.
    """

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    convolution: bool = False

    def read(self, stored: Tensor) -> dict[str, Tensor]:
        """Return our parameters in a stored tensor."""
        return dict(zip(self.ours, split_stacked(squeeze_convolution(stored), len(self.ours)), strict=False))

    def write(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """The tensor to store: inverse of `read`."""
        import torch

        values = [parameters[key] for key in self.ours]
        x = values[0] if len(values) == 1 else torch.cat(values)
        return unsqueeze_matrix(x) if self.convolution else x


@dataclass(frozen=True)
class Leftover:
    """Keys that are known and left where they are, with the reason's name. `pattern` matches a whole key."""

    name: str
    pattern: str

    def matches(self, key: str) -> bool:
        return re.fullmatch(self.pattern, key) is not None
