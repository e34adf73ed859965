"""What a pipeline needs of a network: latents, timesteps and a condition in, a prediction out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Cond:
    """What the network is told about each of r rows, beside latents and timesteps.

    `cond[k]`, `cond[2:4]` and `cond[[0, 0, 1]]` are conditions of those rows, and `len(cond)` is r.

    Attributes:
        tokens: features of the texts' tokens, (r, l, d).
    """

    tokens: Tensor

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows: int | slice | Sequence[int] | Tensor) -> Cond:
        """The condition of some rows, in the order asked for; a single number gives a condition of one row."""
        rows = [rows] if isinstance(rows, int) else rows
        return Cond(self.tokens[rows])

    @classmethod
    def cat(cls, conds: Sequence[Cond]) -> Cond:
        """The rows of several conditions, one after another."""
        return cls(torch.cat([cond.tokens for cond in conds]))


class Denoiser(Protocol):
    """A network that predicts, from noisy latents, their noise or what else a noise process can turn into it.

    `sld.models.unet.UNet` is one. Any object with these members can take its place in a pipeline.
    """

    @property
    def device(self) -> torch.device:
        """Where the network is, and so the latents."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in; predictions are handed back in the dtype of the latents."""
        ...

    def __call__(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """Return the prediction (r, c, h, w) for latents x (r, c, h, w) at timesteps t, () or (r,), under r rows."""
        ...
