"""Decoding in tiles, for pictures that do not fit into memory as a whole."""

from __future__ import annotations

import torch
from torch import Tensor

from sld.models.vae import VAE


def decode_tiles(vae: VAE, x: Tensor, tile: int) -> Tensor:
    """Decode latents in square tiles of `tile` latents a side, with the memory of one tile.

    Neighbours overlap by a quarter of a tile, in which they are blended linearly. The norms and the attention of a tile
    see only the tile, so colours may shift from tile to tile. tests/test_pipeline_memory.py bounds the difference.

    Args:
        vae: the autoencoder.
        x: latents (b, c, h, w).
        tile: side of a tile in latents, at least 4. A side of x that is not longer is not cut.
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
    """Return the first index of each tile along a side. Neighbours overlap by at least a quarter of a tile."""
    if side <= tile:
        return [0]
    return [*range(0, side - tile, tile - tile // 4), side - tile]


def _fade(n: int, tile: int, like: Tensor) -> Tensor:
    """Return weights (n,) along one side of a tile, which rise over its first quarter and fall over its last."""
    place = torch.arange(n, device=like.device, dtype=like.dtype)
    return torch.minimum(place + 1, n - place).clamp(max=tile // 4)
