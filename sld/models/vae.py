"""The autoencoder of Stable Diffusion: pictures to latents and back; bit-equal to diffusers' AutoencoderKL."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sld.config import VAEConfig
from sld.models.layers import Attention, ResBlock, Stage, Upsample, module_list

_EPS = 1e-6


class Mid(nn.Module):
    """The coarsest resolution: single-head attention over all positions between two ResBlocks."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.res = module_list(ResBlock(width, width, None, groups, _EPS) for _ in range(2))
        self.norm = nn.GroupNorm(groups, width, _EPS)
        self.attn = Attention(width, width, heads=1, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.res[0](x)
        # flattened and reshaped as in the reference: where the elements of a single picture lie decides which kernels
        # follow, and that of a picture read from a file has its channels innermost
        h = self.norm(x.flatten(2)).mT
        h = self.attn(h, h)
        return self.res[1](h.mT.reshape(x.shape) + x)


class Encoder(nn.Module):
    """The encoder: from pictures (b, 3, H, W) to mean and log variance of their latents, (b, 2 c, h, w)."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = config.channels
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        self.down: list[Stage] = module_list()
        width = widths[0]
        for level, out in enumerate(widths):
            res = [ResBlock(width if k == 0 else out, out, None, config.groups, _EPS) for k in range(config.res_blocks)]
            last = level == len(widths) - 1
            self.down.append(Stage(res, None if last else nn.Conv2d(out, out, 3, stride=2)))
            width = out
        self.mid = Mid(width, config.groups)
        self.norm_out = nn.GroupNorm(config.groups, width, _EPS)
        self.conv_out = nn.Conv2d(width, 2 * config.latent, 3, padding=1)
        self.moments = nn.Conv2d(2 * config.latent, 2 * config.latent, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for level in self.down:
            for res in level.res:
                h = res(h)
            if level.resample is not None:
                h = level.resample(F.pad(h, (0, 1, 0, 1)))  # the reference pads on the right and below only
        h = self.conv_out(F.silu(self.norm_out(self.mid(h))))
        return self.moments(h)


class Decoder(nn.Module):
    """The decoder: from latents (b, c, h, w) to pictures (b, 3, H, W)."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = config.channels
        self.latent = nn.Conv2d(config.latent, config.latent, 1)
        width = widths[-1]
        self.conv_in = nn.Conv2d(config.latent, width, 3, padding=1)
        self.mid = Mid(width, config.groups)
        self.up: list[Stage] = module_list()
        for level, out in reversed(list(enumerate(widths))):
            res = [
                ResBlock(width if k == 0 else out, out, None, config.groups, _EPS) for k in range(config.res_blocks + 1)
            ]
            self.up.append(Stage(res, Upsample(out) if level else None))
            width = out
        self.norm_out = nn.GroupNorm(config.groups, width, _EPS)
        self.conv_out = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.mid(self.conv_in(self.latent(x)))
        for level in self.up:
            for res in level.res:
                h = res(h)
            if level.resample is not None:
                h = level.resample(h, (2 * h.shape[2], 2 * h.shape[3]))
        return self.conv_out(F.silu(self.norm_out(h)))


class VAE(nn.Module):
    """Encoder and decoder with the scale at which the diffusion model works."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the computation. Results have the caller's dtype."""
        return self.decoder.conv_in.weight.dtype

    def encode(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """Return latents (b, c, h, w) at the scale of the diffusion model, of pictures (b, 3, H, W) in [-1, 1].

        Args:
            images: H and W multiples of `config.factor`.
            noise: standard normal, of the latents' shape, to sample the posterior; None takes its mean.
        """
        mean, log_variance = self.moments(images)
        z = mean if noise is None else mean + (0.5 * log_variance).exp() * noise
        return z * self.config.scaling

    def moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log variance (b, c, h, w) of the unscaled latents of pictures (b, 3, H, W) in [-1, 1]."""
        mean, log_variance = self.encoder(images.to(self.dtype)).to(images.dtype).chunk(2, dim=1)
        return mean, log_variance.clamp(-30.0, 20.0)

    def decode(self, x: Tensor) -> Tensor:
        """Return pictures (b, 3, H, W), about [-1, 1], of latents (b, c, h, w) of the diffusion model."""
        scaling = self.config.scaling
        return self.decoder((x / scaling if self.config.divides else 1 / scaling * x).to(self.dtype)).to(x.dtype)
