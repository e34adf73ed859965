"""The denoising UNet of Stable Diffusion 1, 2 and XL: in float32 on a CPU the bits of diffusers' UNet."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sld.config import UNetConfig
from sld.models.denoiser import Cond
from sld.models.layers import ResBlock, SpatialTransformer, Stage, Upsample, module_list, timestep_embedding

_EPS = 1e-5


class Mid(nn.Module):
    """The coarsest resolution: a transformer between two ResBlocks."""

    def __init__(self, width: int, time: int, attn: SpatialTransformer, groups: int) -> None:
        super().__init__()
        self.res = module_list(ResBlock(width, width, time, groups, _EPS) for _ in range(2))
        self.attn = attn

    def forward(self, x: Tensor, time: Tensor, tokens: Tensor) -> Tensor:
        return self.res[1](self.attn(self.res[0](x, time), tokens), time)


class UNet(nn.Module):
    """The UNet, which predicts eps or v from noisy latents, timesteps and texts; a `Denoiser`."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        widths, groups = config.channels, config.groups
        time = 4 * widths[0]

        def res(width_in: int, width_out: int) -> ResBlock:
            return ResBlock(width_in, width_out, time, groups, _EPS)

        def transformer(level: int) -> SpatialTransformer:
            return SpatialTransformer(
                widths[level],
                config.context,
                config.heads[level],
                config.depth[level],
                groups,
                config.linear_projection,
            )

        self.time_in = nn.Linear(widths[0], time)
        self.time_out = nn.Linear(time, time)
        self.added_in = None if config.pooled is None else nn.Linear(config.pooled + config.SIZES, time)
        self.added_out = None if config.pooled is None else nn.Linear(time, time)
        self.conv_in = nn.Conv2d(config.inputs, widths[0], 3, padding=1)

        self.down: list[Stage] = module_list()
        width, skips = widths[0], [widths[0]]
        for level, out in enumerate(widths):
            last = level == len(widths) - 1
            blocks = [res(width if k == 0 else out, out) for k in range(config.res_blocks)]
            attn = [transformer(level) for _ in blocks] if config.attention[level] else []
            self.down.append(Stage(blocks, None if last else nn.Conv2d(out, out, 3, stride=2, padding=1), attn))
            width = out
            skips += [out] * (len(blocks) + (not last))

        self.mid = Mid(width, time, transformer(len(widths) - 1), groups)

        self.up: list[Stage] = module_list()
        for level, out in reversed(list(enumerate(widths))):
            blocks = []
            for _ in range(config.res_blocks + 1):
                blocks.append(res(width + skips.pop(), out))
                width = out
            attn = [transformer(level) for _ in blocks] if config.attention[level] else []
            self.up.append(Stage(blocks, Upsample(out) if level else None, attn))

        self.norm_out = nn.GroupNorm(groups, width, _EPS)
        self.conv_out = nn.Conv2d(width, config.latent, 3, padding=1)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.conv_in.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the computation. Predictions have the dtype of the latents."""
        return self.conv_in.weight.dtype

    def forward(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """Predict for r rows.

        Args:
            x: latents (r, c, h, w); in inpainting the mask (1 channel) and the latents of what it leaves follow (c).
            t: their timesteps, () for one that all share, or (r,); on any device.
            cond: what their texts say, r rows.

        Returns:
            The prediction (r, c, h, w), in the dtype of x.
        """
        time = self.time(t.to(x.device).expand(len(x)))
        if self.added_in is not None:
            time = time + self.added(cond)
        time, tokens = F.silu(time), cond.tokens.to(self.dtype)
        h = self.conv_in(x.to(self.dtype))
        skips = [h]

        for stage in self.down:
            for k, res in enumerate(stage.res):
                h = res(h, time)
                h = stage.attn[k](h, tokens) if stage.attn else h
                skips.append(h)
            if stage.resample is not None:
                h = stage.resample(h)
                skips.append(h)

        h = self.mid(h, time, tokens)

        for stage in self.up:
            for k, res in enumerate(stage.res):
                h = res(torch.cat([h, skips.pop()], dim=1), time)
                h = stage.attn[k](h, tokens) if stage.attn else h
            if stage.resample is not None:
                h = stage.resample(h, skips[-1].shape[2:])

        return self.conv_out(F.silu(self.norm_out(h))).to(x.dtype)

    def time(self, t: Tensor) -> Tensor:
        """Return features (r, d) of timesteps (r,). Activated, they are the input of the ResBlocks."""
        features = timestep_embedding(t, self.config.channels[0]).to(self.dtype)
        return self.time_out(F.silu(self.time_in(features)))

    def added(self, cond: Cond) -> Tensor:
        """Return features (r, d) of pooled texts and sizes, which are added to those of time (SDXL).

        Raises:
            ValueError: the condition has no pooled texts or no sizes, or the UNet is told none.
        """
        if self.added_in is None or self.added_out is None:
            raise ValueError("this UNet is told neither pooled texts nor sizes")
        if cond.pooled is None or cond.sizes is None:
            raise ValueError("this UNet is told pooled texts and sizes: give both in Cond, as Pipeline.encode does")
        sizes = timestep_embedding(cond.sizes.flatten(), self.config.SIZES // 6).reshape(len(cond), -1)
        joined = torch.cat([cond.pooled, sizes], dim=-1).to(self.dtype)
        return self.added_out(F.silu(self.added_in(joined)))
