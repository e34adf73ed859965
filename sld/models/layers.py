"""The blocks that the UNet and the autoencoder are made of.

Shapes use b latents, r rows (conditions) per latent, c channels, h and w places, l tokens, d features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from copy import deepcopy
from typing import TypeAlias, TypeVar, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)

FromText: TypeAlias = tuple[Tensor, Tensor] | Tensor
"""Keys and values (b, heads, l, d) of a text; or (b, l, d), what attention to it gave before, an approximation."""


def module_list(modules: Iterable[M] = ()) -> list[M]:
    """An nn.ModuleList, which type checkers see as the list of modules it behaves like."""
    return cast("list[M]", nn.ModuleList(modules))


def around(network: M, weight: Callable[[Tensor], Tensor]) -> M:
    """The same network around other weights: what `weight` makes of each parameter and buffer. The network stays."""
    made = {id(w): weight(w) for w in (*network.parameters(), *network.buffers())}
    return deepcopy(network, made)


def on_device(network: M, device: torch.device) -> M:
    """The network itself where its weights are on `device`; else the same around copies there, which go with it."""
    if all(w.device == device for w in network.parameters()):
        return network
    return around(network, lambda w: nn.Parameter(w.to(device), False) if isinstance(w, nn.Parameter) else w.to(device))


def timestep_embedding(t: Tensor, width: int) -> Tensor:
    """Sinusoidal features of timesteps (n,) as (n, width): cosines first, periods from 2 pi to 20,000 pi."""
    half = width // 2
    frequency = torch.exp(-math.log(10_000) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    phase = t.float()[:, None] * frequency
    return torch.cat([phase.cos(), phase.sin()], dim=-1)


def repeat_rows(x: Tensor, rows: int) -> Tensor:
    """Repeat a batch (b, ...) as a whole until it has `rows` = r * b entries; itself if it has them already.

    Everything before the first cross-attention sees no text and is computed once per latent; this is where its result
    meets the rows that differ.
    """
    return x if len(x) == rows else x.repeat(rows // len(x), *[1] * (x.ndim - 1))


def pointwise(linear: nn.Linear, x: Tensor) -> Tensor:
    """A 1x1 convolution of x (b, c, h, w), computed as a linear map of its places.

    The convolution kernels of CPUs choose their order of summation by batch size; this one gives every picture the
    same bits in any batch.
    """
    return linear(x.movedim(1, -1)).movedim(-1, 1)


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
        self.shortcut = None if width_in == width_out else nn.Linear(width_in, width_out)

    def time_key(self, time: Tensor) -> Tensor:
        """What `forward` adds, (n, c), for activated time features (n, d) of n timesteps."""
        assert self.time is not None
        return self.time(time)

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        """x (b, c, h, w) with this block's `time_key` (1, c), shared by the batch, or (b, c); None without time."""
        h = self.conv_in(F.silu(self.norm_in(x)))
        if time is not None:
            h = h + time[:, :, None, None]
        h = self.conv_out(F.silu(self.norm_out(h)))
        return h + (x if self.shortcut is None else pointwise(self.shortcut, x))


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

    def keys_values(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (b, heads, l, d / heads) of a sequence (b, l, d)."""
        return self._split(self.k(source)), self._split(self.v(source))

    def forward(self, x: Tensor, keys_values: tuple[Tensor, Tensor]) -> Tensor:
        """Attend from x (b, l, d) to keys and values of r * b rows; the result has as many rows as they."""
        k, v = keys_values
        q = repeat_rows(self._split(self.q(x)), len(k))
        return self.out(rearrange(F.scaled_dot_product_attention(q, k, v), "b n l d -> b l (n d)"))

    def _split(self, x: Tensor) -> Tensor:
        return rearrange(x, "b l (n d) -> b n l d", n=self.heads)


class FeedForward(nn.Module):
    """GEGLU: a linear layer to twice four times the width, one half gating the other, and back."""

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

    def forward(self, x: Tensor, text: FromText, crossed: list[Tensor] | None = None) -> Tensor:
        """x (b, l, d) with the text's keys and values of r * b rows; returns r * b rows.

        What cross-attention gives is added to `crossed`; in place of keys and values it is taken for what it gives.
        """
        h = self.norm_attn(x)
        x = x + self.attn(h, self.attn.keys_values(h))
        h = text if isinstance(text, Tensor) else self.cross(self.norm_cross(x), text)
        if crossed is not None:
            crossed.append(h)
        x = repeat_rows(x, len(h)) + h
        return x + self.ff(self.norm_ff(x))


class SpatialTransformer(nn.Module):
    """Transformer blocks over the places of a picture, added to it."""

    def __init__(self, width: int, context: int, heads: int, depth: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, width, 1e-6)
        self.proj_in = nn.Linear(width, width)
        self.blocks = module_list(TransformerBlock(width, context, heads) for _ in range(depth))
        self.proj_out = nn.Linear(width, width)

    def forward(self, x: Tensor, text: list[FromText], crossed: list[Tensor] | None = None) -> Tensor:
        """x (b, c, h, w) with what each block has of the text, of r * b rows; returns r * b rows."""
        h = self.proj_in(rearrange(self.norm(x), "b c h w -> b (h w) c"))
        for block, from_text in zip(self.blocks, text, strict=True):
            h = block(h, from_text, crossed)
        h = rearrange(self.proj_out(h), "b (h w) c -> b c h w", h=x.shape[2])
        return repeat_rows(x, len(h)) + h


class Upsample(nn.Module):
    """Nearest-neighbour enlargement, then a 3x3 convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """x (b, c, h, w) enlarged to `size`, which is twice (h, w) or, where halving rounded up, one less."""
        return self.conv(F.interpolate(x, size=size, mode="nearest"))
