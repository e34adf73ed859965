"""Key maps between the tensors of a file and the parameters of a model. Importing this loads no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or written: what was expected, what came, what to do."""


def split_stacked(x: Tensor, pieces: int) -> tuple[Tensor, ...]:
    """Equal `pieces` along the first axis, such as the queries', keys' and values' part of a fused projection."""
    return (x if x.ndim else x.reshape(1)).chunk(pieces) if pieces > 1 else (x,)


@dataclass(frozen=True)
class KeyMap:
    """A tensor of a file with the parameters that it becomes in the model.

    Attributes:
        ours: the parameters it holds; several are stacked along its first axis.
        theirs: its key in the file; where there are several spellings, the first is the one to write.
        matrix: whether ours is the matrix (o, i) of a linear layer, which some files store as a 1x1 convolution (o, i,
            1, 1). Both are read.
        convolution: whether such a matrix is written as a 1x1 convolution.
        transposed: whether such a matrix is stored the other way round.
    """

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    matrix: bool = False
    convolution: bool = False
    transposed: bool = False

    def read(self, stored: Tensor) -> dict[str, Tensor]:
        """Our parameters in a stored tensor. Works on meta tensors, which tells their shapes."""
        if self.matrix and stored.ndim == 4 and stored.shape[2:] == (1, 1):
            stored = stored.reshape(stored.shape[:2])
        stored = stored.T if self.transposed else stored
        return dict(zip(self.ours, split_stacked(stored, len(self.ours)), strict=False))

    def write(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """The tensor to store: inverse of `read`."""
        import torch

        values = [parameters[key] for key in self.ours]
        x = values[0] if len(values) == 1 else torch.cat(values)
        x = x.T if self.transposed else x
        return x[:, :, None, None] if self.convolution else x
