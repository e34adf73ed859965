"""The denoising UNet of Stable Diffusion 1 and 2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sld.config import UNetConfig
from sld.models.layers import (
    FromText,
    ResBlock,
    SpatialTransformer,
    TransformerBlock,
    Upsample,
    module_list,
    repeat_rows,
    timestep_embedding,
)

_EPS = 1e-5


class TextKeys(NamedTuple):
    """What every cross-attention of a UNet has of the texts of r * b rows, in the order in which it visits them."""

    pairs: tuple[FromText, ...]

    @property
    def rows(self) -> int:
        first = self.pairs[0]
        return len(first if isinstance(first, Tensor) else first[0])


class TimeKeys(NamedTuple):
    """Projections (n, c) of n timesteps for every ResBlock of a UNet, in the order in which it visits them."""

    shifts: tuple[Tensor, ...]

    def at(self, i: int) -> TimeKeys:
        """The keys of timestep i alone, (1, c) each, in the same memory."""
        return TimeKeys(tuple(shift[i : i + 1] for shift in self.shifts))

    @classmethod
    def join(cls, keys: Sequence[TimeKeys]) -> TimeKeys:
        """The keys of several timesteps, one after another."""
        return cls(tuple(map(torch.cat, zip(*(k.shifts for k in keys), strict=True))))


class Level(nn.Module):
    """One resolution on one side of the UNet: ResBlocks, a transformer behind each (or none), a change of size."""

    def __init__(self, res: list[ResBlock], attn: list[SpatialTransformer], resample: nn.Module | None) -> None:
        super().__init__()
        self.res = module_list(res)
        self.attn = module_list(attn)
        self.resample = resample


class Mid(nn.Module):
    """The coarsest resolution: a transformer between two ResBlocks."""

    def __init__(self, width: int, time: int, attn: SpatialTransformer, groups: int) -> None:
        super().__init__()
        self.res = module_list(ResBlock(width, width, time, groups, _EPS) for _ in range(2))
        self.attn = attn


class UNet(nn.Module):
    """Predicts eps or v from a noisy latent, a timestep and a text.

    Latents may be fewer than texts: with b latents and r * b texts, row k of the result belongs to latent k mod b, and
    what comes before the first cross-attention is computed once per latent.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        widths, groups = config.channels, config.groups
        time = 4 * widths[0]

        def res(width_in: int, width_out: int) -> ResBlock:
            return ResBlock(width_in, width_out, time, groups, _EPS)

        def transformer(level: int) -> SpatialTransformer:
            return SpatialTransformer(widths[level], config.context, config.heads[level], config.depth[level], groups)

        self.time_in = nn.Linear(widths[0], time)
        self.time_out = nn.Linear(time, time)
        self.conv_in = nn.Conv2d(config.latent, widths[0], 3, padding=1)

        self.down: list[Level] = module_list()
        width, skips = widths[0], [widths[0]]
        for level, out in enumerate(widths):
            last = level == len(widths) - 1
            blocks = [res(width if k == 0 else out, out) for k in range(config.res_blocks)]
            attn = [transformer(level) for _ in blocks] if config.attention[level] else []
            self.down.append(Level(blocks, attn, None if last else nn.Conv2d(out, out, 3, stride=2, padding=1)))
            width = out
            skips += [out] * (len(blocks) + (not last))

        self.mid = Mid(width, time, transformer(len(widths) - 1), groups)

        self.up: list[Level] = module_list()
        for level, out in reversed(list(enumerate(widths))):
            blocks = []
            for _ in range(config.res_blocks + 1):
                blocks.append(res(width + skips.pop(), out))
                width = out
            attn = [transformer(level) for _ in blocks] if config.attention[level] else []
            self.up.append(Level(blocks, attn, Upsample(out) if level else None))

        self.norm_out = nn.GroupNorm(groups, width, _EPS)
        self.conv_out = nn.Conv2d(width, config.latent, 3, padding=1)

    @property
    def dtype(self) -> torch.dtype:
        """What the network computes in; results are handed back in the caller's dtype."""
        return self.conv_in.weight.dtype

    def text_keys(self, text: Tensor) -> TextKeys:
        """Project encoded texts (r * b, l, d) once for a whole generation."""
        text = text.to(self.dtype)
        blocks = (m for m in self.modules() if isinstance(m, TransformerBlock))
        return TextKeys(tuple(block.cross.keys_values(text) for block in blocks))

    def time_keys(self, t: Tensor) -> TimeKeys:
        """Embed timesteps () or (n,) and project them for every ResBlock, once for a whole run."""
        time = timestep_embedding(t.reshape(-1), self.config.channels[0]).to(self.dtype)
        time = F.silu(self.time_out(F.silu(self.time_in(time))))
        return TimeKeys(tuple(block.time_key(time) for block in self.modules() if isinstance(block, ResBlock)))

    def forward(self, x: Tensor, t: Tensor | TimeKeys, text: TextKeys) -> Tensor:
        """Predict for latents x (b, c, h, w) at timesteps t, () or (b,), under r * b texts; returns (r * b, c, h, w).

        The first b rows belong to the first text of every latent, the next b to the second, and so on. The result has
        the dtype of x. Where t was seen before, its `time_keys` may take its place.
        """
        time = t if isinstance(t, TimeKeys) else self.time_keys(t)
        h = self.first(x)
        return self.last(h, self.deep(h, time, text), time, text).to(x.dtype)

    def first(self, x: Tensor) -> Tensor:
        """What latents x (b, c, h, w) enter with, (b, width, h, w)."""
        return self.conv_in(x.to(self.dtype))

    def deep(self, h: Tensor, time: TimeKeys, text: TextKeys, crossed: list[Tensor] | None = None) -> Tensor:
        """All between `first` and the last block on the way up, of r * b rows.

        Args:
            h: of `first`, which is also the first skip connection.
            time, text: see `forward`.
            crossed: is given the result of every cross-attention.
        """
        keys, shifts = iter(text.pairs), iter(time.shifts)

        def block(res: ResBlock, attn: SpatialTransformer | None, h: Tensor) -> Tensor:
            h = _at(res, h, next(shifts))
            return h if attn is None else _read(attn, h, [next(keys) for _ in attn.blocks], crossed)

        skips = [h]
        for level in self.down:
            for k, res in enumerate(level.res):
                h = block(res, level.attn[k] if level.attn else None, h)
                skips.append(h)
            if level.resample is not None:
                h = level.resample(h)
                skips.append(h)

        h = block(self.mid.res[0], self.mid.attn, h)
        h = block(self.mid.res[1], None, h)

        for level in self.up:
            for k, res in enumerate(level.res):
                if len(skips) == 1:
                    break
                h = torch.cat([h, repeat_rows(skips.pop(), len(h))], dim=1)
                h = block(res, level.attn[k] if level.attn else None, h)
            if level.resample is not None:
                h = level.resample(h, skips[-1].shape[2:])
        return h

    def last(
        self, h: Tensor, deep: Tensor, time: TimeKeys, text: TextKeys, crossed: list[Tensor] | None = None
    ) -> Tensor:
        """The prediction (r * b, c, h, w): the last block on the way up, of `first` and `deep`, and what follows."""
        level = self.up[-1]
        h = torch.cat([deep, repeat_rows(h, len(deep))], dim=1)
        del deep  # its memory is the next block's
        h = _at(level.res[-1], h, time.shifts[-1])
        if level.attn:
            attn = level.attn[-1]
            h = _read(attn, h, list(text.pairs[-len(attn.blocks) :]), crossed)
        return repeat_rows(self.conv_out(F.silu(self.norm_out(h))), text.rows)


def _at(res: ResBlock, h: Tensor, shift: Tensor) -> Tensor:
    """A ResBlock at one time for all rows, or at each latent's own."""
    return res(h, shift if len(shift) == 1 else repeat_rows(shift, len(h)))


def _read(attn: SpatialTransformer, h: Tensor, text: list[FromText], crossed: list[Tensor] | None) -> Tensor:
    """A transformer, whose cross-attention's results go to `crossed`: to one list each, as a compiler has them."""
    if crossed is None:
        return attn(h, text)
    its: list[Tensor] = []
    h = attn(h, text, its)
    crossed += its
    return h
