"""The blocks that the UNet and the autoencoder are made of.

Shapes use b rows, c channels, h and w places, l tokens, d features. A sum has its terms in the reference's order: the
first decides how the result lies in memory, and so which kernels compute what follows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TypeVar, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


def module_list(modules: Iterable[M] = ()) -> list[M]:
    """An nn.ModuleList, which type checkers see as the list of modules it behaves like."""
    return cast("list[M]", nn.ModuleList(modules))


def timestep_embedding(t: Tensor, width: int) -> Tensor:
    """Return sinusoidal features of timesteps (n,) as (n, width): cosines first, periods from 2 pi to 20,000 pi."""
    half = width // 2
    frequency = torch.exp(-math.log(10_000) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    phase = t.float()[:, None] * frequency
    return torch.cat([phase.cos(), phase.sin()], dim=-1)


class ResBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut, the time features added between them.

    Args:
        width_in, width_out: channels.
        time: features of the time embedding, or None for a block that knows no time (autoencoder).
        groups, eps: of the GroupNorms; 1e-5 in Stable Diffusion's UNet, 1e-6 in its autoencoder.
    """

    def __init__(self, width_in: int, width_out: int, time: int | None, groups: int, eps: float) -> None:
        super().__init__()
        self.norm_in = nn.GroupNorm(groups, width_in, eps)
        self.conv_in = nn.Conv2d(width_in, width_out, 3, padding=1)
        self.time = None if time is None else nn.Linear(time, width_out)
        self.norm_out = nn.GroupNorm(groups, width_out, eps)
        self.conv_out = nn.Conv2d(width_out, width_out, 3, padding=1)
        self.shortcut = None if width_in == width_out else nn.Conv2d(width_in, width_out, 1)

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        """Return the output for x (b, c, h, w) and activated time features (b, d); None for a block without time."""
        h = self.conv_in(F.silu(self.norm_in(x)))
        if self.time is not None:
            h = h + self.time(time)[:, :, None, None]
        h = self.conv_out(F.silu(self.norm_out(h)))
        return (x if self.shortcut is None else self.shortcut(x)) + h


class Attention(nn.Module):
    """Multi-head attention of tokens (b, l, d); keys and values may come from another sequence.

    Args:
        width: features of the queries and of the result.
        source: features of what keys and values are projected from.
        heads: number of heads, which share `width` evenly.
        bias: whether queries, keys and values have one; the output always has.
    """

    def __init__(self, width: int, source: int, heads: int, bias: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width, bias)
        self.k = nn.Linear(source, width, bias)
        self.v = nn.Linear(source, width, bias)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, source: Tensor) -> Tensor:
        """Return the attention (b, l, d) of x (b, l, d) to a sequence (b, m, s)."""
        q, k, v = self.split(self.q(x)), self.split(self.k(source)), self.split(self.v(source))
        return self.out(self.join(F.scaled_dot_product_attention(q, k, v)))

    def split(self, x: Tensor) -> Tensor:
        """Split projected tokens (b, l, d) into heads (b, heads, l, d / heads)."""
        return rearrange(x, "b l (n d) -> b n l d", n=self.heads)

    def join(self, x: Tensor) -> Tensor:
        """Join heads (b, heads, l, d / heads) to tokens (b, l, d)."""
        return rearrange(x, "b n l d -> b l (n d)")


class FeedForward(nn.Module):
    """GEGLU feed-forward: a linear layer to eight times the width, half of which gates the other, and a layer back."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, 8 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.up(x).chunk(2, dim=-1)
        return self.down(value * F.gelu(gate))


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention to the text, feed-forward; each after a LayerNorm and added to its input."""

    def __init__(self, width: int, context: int, heads: int) -> None:
        super().__init__()
        self.norm_attn = nn.LayerNorm(width)
        self.attn = Attention(width, width, heads)
        self.norm_cross = nn.LayerNorm(width)
        self.cross = Attention(width, context, heads)
        self.norm_ff = nn.LayerNorm(width)
        self.ff = FeedForward(width)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        """Return (b, l, d) for x (b, l, d) and the tokens (b, m, context) of a text."""
        h = self.norm_attn(x)
        x = self.attn(h, h) + x
        x = self.cross(self.norm_cross(x), tokens) + x
        return self.ff(self.norm_ff(x)) + x


class SpatialTransformer(nn.Module):
    """Transformer blocks over the places of a picture, added to it.

    Args:
        width: channels.
        context: features of a text token.
        heads: attention heads.
        depth: number of blocks.
        groups: of the GroupNorm.
        linear: whether the blocks stand between linear layers (SD 2) or 1x1 convolutions (SD 1). Both compute the same
            map, and round it differently.
    """

    def __init__(self, width: int, context: int, heads: int, depth: int, groups: int, linear: bool) -> None:
        super().__init__()
        self.linear = linear
        self.norm = nn.GroupNorm(groups, width, 1e-6)
        self.proj_in = nn.Linear(width, width) if linear else nn.Conv2d(width, width, 1)
        self.blocks = module_list(TransformerBlock(width, context, heads) for _ in range(depth))
        self.proj_out = nn.Linear(width, width) if linear else nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        """Return (b, c, h, w) for x (b, c, h, w) and the tokens (b, m, context) of a text."""
        h = self.norm(x)
        h = self.proj_in(_to_tokens(h)) if self.linear else _to_tokens(self.proj_in(h))
        for block in self.blocks:
            h = block(h, tokens)
        height = x.shape[2]
        h = _to_places(self.proj_out(h), height) if self.linear else self.proj_out(_to_places(h, height))
        return h + x


def _to_tokens(x: Tensor) -> Tensor:
    return rearrange(x, "b c h w -> b (h w) c")


def _to_places(x: Tensor, height: int) -> Tensor:
    return rearrange(x, "b (h w) c -> b c h w", h=height).contiguous()


class Upsample(nn.Module):
    """Nearest-neighbour enlargement, then a 3x3 convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Return x (b, c, h, w) enlarged to `size`: twice (h, w), or one less where the halving rounded up."""
        return self.conv(F.interpolate(x, size=size, mode="nearest"))


class Stage(nn.Module):
    """One resolution on one side of a network: ResBlocks, a transformer behind each (or none), a change of size."""

    def __init__(
        self, res: list[ResBlock], resample: nn.Module | None, attn: Iterable[SpatialTransformer] = ()
    ) -> None:
        super().__init__()
        self.res = module_list(res)
        self.attn = module_list(attn)
        self.resample = resample
