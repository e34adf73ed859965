"""Decoding in tiles: pictures larger than memory allows as a whole."""

from __future__ import annotations

import torch
from torch import Tensor

from sld.models.vae import VAE


def decode_tiles(vae: VAE, x: Tensor, tile: int) -> Tensor:
    """`VAE.decode` in square tiles of `tile` latents, with the memory of one tile.

    Neighbours share a quarter of a tile, over which one fades linearly into the other. A tile's norms and its
    attention see no more than the tile, so that colours may shift from one to the next; what that comes to is
    bounded in tests/test_pipeline_memory.py.

    Args:
        vae: the autoencoder.
        x: latents (b, c, h, w).
        tile: at least 4. Where a side is no longer than that, it is not cut.
    """
    size = x.shape[2:]
    picture = x.new_zeros(len(x), 3, *(side * vae.config.factor for side in size))
    weight = x.new_zeros(picture.shape[2:])
    for top in _starts(size[0], tile):
        for left in _starts(size[1], tile):
            piece = vae.decode(x[:, :, top : top + tile, left : left + tile])
            rows, columns = (_fade(n, tile * vae.config.factor, x) for n in piece.shape[2:])
            fade = rows[:, None] * columns
            above, beside = top * vae.config.factor, left * vae.config.factor
            place = (..., slice(above, above + len(rows)), slice(beside, beside + len(columns)))
            picture[place] += piece * fade
            weight[place] += fade
    return picture / weight


def _starts(side: int, tile: int) -> list[int]:
    """Where tiles begin that cover a side, each sharing at least a quarter with the one before."""
    if side <= tile:
        return [0]
    return [*range(0, side - tile, tile - tile // 4), side - tile]


def _fade(n: int, tile: int, like: Tensor) -> Tensor:
    """Weights (n,) of a tile's places along one side: rising over its first quarter, falling over its last."""
    place = torch.arange(n, device=like.device, dtype=like.dtype)
    return torch.minimum(place + 1, n - place).clamp(max=tile // 4)
