"""The interface of a network in a pipeline: it predicts from latents, timesteps and a condition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Cond:
    """The condition of r rows: encoded texts, and further inputs beside latents and timesteps.

    `cond[k]`, `cond[2:4]` and `cond[[0, 0, 1]]` are conditions of those rows, and `len(cond)` is r.

    Attributes:
        tokens: features of the texts' tokens, (r, l, d).
        pooled: features of the texts as a whole, (r, p), for SDXL.
        sizes: in pixels, (r, 6), for SDXL: height and width of the training picture, top and left of what was cut from
            it, height and width of the result.
    """

    tokens: Tensor
    pooled: Tensor | None = None
    sizes: Tensor | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows: int | slice | Sequence[int] | Tensor) -> Cond:
        """Return the condition of some rows, in the given order. A single number gives a condition of one row."""
        rows = [rows] if isinstance(rows, int) else rows
        pooled, sizes = (None if value is None else value[rows] for value in (self.pooled, self.sizes))
        return Cond(self.tokens[rows], pooled, sizes)


class Denoiser(Protocol):
    """A network that predicts the noise in latents, or a quantity from which a noise process computes it.

    `sld.models.unet.UNet` is one. Any object with these members can take its place in a pipeline.
    """

    @property
    def device(self) -> torch.device:
        """Device of the network and of the latents."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the network's computation. Predictions have the dtype of the latents."""
        ...

    def __call__(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """Return the prediction (r, c, h, w) for latents x (r, c, h, w) at timesteps t, () or (r,), under r rows."""
        ...
