"""A form of the UNet that takes what does not depend on the latents from outside.

Texts are projected to keys and values once for a whole run, and timesteps once for all rows. The layers before the
first cross-attention see no text and are computed once per latent. 1x1 convolutions are computed as linear maps of
positions: convolution kernels of CPUs choose their order of summation by batch size, and a linear map does not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from sld.models.denoiser import Cond
from sld.models.layers import ResBlock, SpatialTransformer, Stage, TransformerBlock, module_list
from sld.models.unet import UNet


def own_unet(network: object, what: str) -> UNet:
    """Return a network that is our UNet, as it is.

    Args:
        network: of a pipeline.
        what: the feature that takes it apart, for the message.

    Raises:
        ValueError: it is another network.
    """
    if not isinstance(network, UNet):
        raise ValueError(
            f"{what} takes the UNet of sld.models apart, and the network is a {type(network).__name__}: leave it out, "
            "or give numerics='reference', with which any network runs"
        )
    return network


KeysValues = tuple[Tensor, Tensor]
"""Keys and values (r * b, heads, l, d) of a cross-attention."""


class TextKeys(NamedTuple):
    """What a UNet computes from r * b texts.

    Attributes:
        pairs: keys and values for every cross-attention, in the order of its layers.
        added: features (r * b, d) of pooled texts and sizes, which are added to those of time (SDXL).
    """

    pairs: tuple[KeysValues, ...]
    added: Tensor | None = None

    @property
    def rows(self) -> int:
        return len(self.pairs[0][0])


class TimeKeys(NamedTuple):
    """Projections (n, c) of n timesteps for every ResBlock of a UNet, in the order of its layers.

    Where each text adds to the features of time (SDXL), only these features are known before the texts are: a single
    entry (n, d), of which `KeyedUNet.time_of_rows` makes projections.
    """

    shifts: tuple[Tensor, ...]

    def at(self, i: int) -> TimeKeys:
        """Return the projections of timestep i alone, (1, c) each, in the same memory."""
        return TimeKeys(tuple(shift[i : i + 1] for shift in self.shifts))

    @classmethod
    def join(cls, keys: Sequence[TimeKeys]) -> TimeKeys:
        """Return the projections of several timesteps, one after another."""
        return cls(tuple(map(torch.cat, zip(*(k.shifts for k in keys), strict=True))))


def repeat_rows(x: Tensor, rows: int) -> Tensor:
    """Repeat a batch (b, ...) as a whole to `rows` = r * b entries. A batch that has them is returned itself."""
    return x if len(x) == rows else x.repeat(rows // len(x), *[1] * (x.ndim - 1))


def pointwise(module: nn.Module, x: Tensor) -> Tensor:
    """Apply a linear layer or a 1x1 convolution to the last axis of x."""
    assert isinstance(module, nn.Linear | nn.Conv2d)
    return F.linear(x, module.weight.flatten(1), module.bias)


class KeyedResBlock(nn.Module):
    """A ResBlock that takes the projection of its timestep as an argument."""

    def __init__(self, block: ResBlock) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor, shift: Tensor) -> Tensor:
        """Return (b, d, h, w) for x (b, c, h, w), with the projection `shift` (1, d) of the timestep of all rows.

        With a projection for each of r * b rows, these are the rows of the result.
        """
        block = self.block
        h = block.conv_in(F.silu(block.norm_in(x)))
        h = (h if len(shift) == 1 else repeat_rows(h, len(shift))) + shift[:, :, None, None]
        h = block.conv_out(F.silu(block.norm_out(h)))
        x = x if block.shortcut is None else pointwise(block.shortcut, x.movedim(1, -1)).movedim(-1, 1)
        return h + repeat_rows(x, len(h))


class KeyedTransformer(nn.Module):
    """A spatial transformer that takes keys and values of the texts as arguments."""

    def __init__(self, transformer: SpatialTransformer) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, x: Tensor, text: list[KeysValues]) -> Tensor:
        """Return (r * b, c, h, w) for x (b, c, h, w), with the keys and values (r * b rows) of each block."""
        transformer = self.transformer
        h = pointwise(transformer.proj_in, rearrange(transformer.norm(x), "b c h w -> b (h w) c"))
        for block, keys_values in zip(transformer.blocks, text, strict=True):
            h = self._block(block, h, keys_values)
        h = rearrange(pointwise(transformer.proj_out, h), "b (h w) c -> b c h w", h=x.shape[2])
        return repeat_rows(x, len(h)) + h

    @staticmethod
    def _block(block: TransformerBlock, x: Tensor, keys_values: KeysValues) -> Tensor:
        h = block.norm_attn(x)
        x = x + block.attn(h, h)
        k, v = keys_values
        q = repeat_rows(block.cross.split(block.cross.q(block.norm_cross(x))), len(k))
        h = block.cross.out(block.cross.join(F.scaled_dot_product_attention(q, k, v)))
        x = repeat_rows(x, len(h)) + h
        return x + block.ff(block.norm_ff(x))


class KeyedStage(nn.Module):
    """One resolution on one side of the UNet, of keyed blocks."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.res = module_list(map(KeyedResBlock, stage.res))
        self.attn = module_list(map(KeyedTransformer, stage.attn))
        self.resample = stage.resample


class KeyedUNet(nn.Module):
    """A UNet that takes b latents and r * b rows of texts. Row k of the result belongs to latent k mod b.

    It shares the memory of the plain network's weights.

    Args:
        unet: the plain network; stays as it is.
    """

    def __init__(self, unet: UNet) -> None:
        super().__init__()
        self.unet = unet
        self.down = module_list(map(KeyedStage, unet.down))
        self.mid = module_list(map(KeyedResBlock, unet.mid.res))
        self.mid_attn = KeyedTransformer(unet.mid.attn)
        self.up = module_list(map(KeyedStage, unet.up))

    def text_keys(self, cond: Cond) -> TextKeys:
        """Project r * b texts to keys and values, once for a whole run."""
        tokens = cond.tokens.to(self.unet.dtype)
        cross = (m.cross for m in self.unet.modules() if isinstance(m, TransformerBlock))
        pairs = tuple((c.split(c.k(tokens)), c.split(c.v(tokens))) for c in cross)
        if self.unet.added_in is None:
            return TextKeys(pairs)
        # one by one, for the same bits in any batch
        return TextKeys(pairs, torch.cat([self.unet.added(cond[k]) for k in range(len(cond))]))

    def time_keys(self, t: Tensor) -> TimeKeys:
        """Embed timesteps () or (n,) and project them for every ResBlock, once for a whole run."""
        time = self.unet.time(t.reshape(-1))
        return TimeKeys((time,)) if self.unet.added_in is not None else self._project(time)

    def time_of_rows(self, time: TimeKeys, text: TextKeys, apart: bool = False) -> TimeKeys:
        """Return the projections of one timestep for the rows of texts: `time` itself if texts add nothing to it.

        Args:
            time, text: see `forward`.
            apart: project row by row, for the same bits in any batch.
        """
        if text.added is None:
            return time
        features = time.shifts[0] + text.added
        return TimeKeys.join([self._project(row[None]) for row in features]) if apart else self._project(features)

    def _project(self, time: Tensor) -> TimeKeys:
        time = F.silu(time)
        blocks = (m for m in self.unet.modules() if isinstance(m, ResBlock))
        return TimeKeys(tuple(block.time(time) for block in blocks if block.time is not None))

    def forward(self, x: Tensor, time: TimeKeys, text: TextKeys) -> Tensor:
        """Predict (r * b, c, h, w) for latents x (b, c, h, w) at one timestep, of which `time_of_rows` gives `time`.

        The first b rows are the predictions under the first text of each latent, the next b those under the second, and
        so on. The result has the dtype of x.
        """
        h = self.first(x)
        return self.last(h, self.deep(h, time, text), time, text).to(x.dtype)

    def first(self, x: Tensor) -> Tensor:
        """Return the output (b, width, h, w) of the first convolution for latents x (b, c, h, w)."""
        return self.unet.conv_in(x.to(self.unet.dtype))

    def deep(self, h: Tensor, time: TimeKeys, text: TextKeys) -> Tensor:
        """Return the input (r * b rows) of the last block on the way up, from the output of `first`.

        Args:
            h: the output of `first`, which is also the first skip connection.
            time, text: see `forward`.
        """
        shifts, keys = iter(time.shifts), iter(text.pairs)
        skips = [h]
        for stage in self.down:
            for k, res in enumerate(stage.res):
                h = res(h, next(shifts))
                h = _read(stage.attn[k], h, keys) if stage.attn else h
                skips.append(h)
            if stage.resample is not None:
                h = stage.resample(h)
                skips.append(h)

        h = _read(self.mid_attn, self.mid[0](h, next(shifts)), keys)
        h = self.mid[1](h, next(shifts))

        for stage in self.up:
            for k, res in enumerate(stage.res):
                if len(skips) == 1:
                    break
                h = res(torch.cat([h, repeat_rows(skips.pop(), len(h))], dim=1), next(shifts))
                h = _read(stage.attn[k], h, keys) if stage.attn else h
            if stage.resample is not None:
                h = stage.resample(h, skips[-1].shape[2:])
        return h

    def last(self, h: Tensor, deep: Tensor, time: TimeKeys, text: TextKeys) -> Tensor:
        """Return the prediction (r * b, c, h, w) from the outputs of `first` and `deep`."""
        stage = self.up[-1]
        h = torch.cat([deep, repeat_rows(h, len(deep))], dim=1)
        del deep  # frees its memory for the next block
        h = stage.res[-1](h, time.shifts[-1])
        if stage.attn:
            depth = len(stage.attn[-1].transformer.blocks)
            h = stage.attn[-1](h, list(text.pairs[-depth:]))
        unet = self.unet
        return repeat_rows(unet.conv_out(F.silu(unet.norm_out(h))), text.rows)


def _read(attn: KeyedTransformer, h: Tensor, keys: Iterator[KeysValues]) -> Tensor:
    return attn(h, [next(keys) for _ in attn.transformer.blocks])
