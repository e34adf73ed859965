"""Training the embedded model's autoencoder."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sld.config import VAEConfig
from sld.models.vae import VAE
from sld.published import MINI
from sld.testbed.data import Scenes
from sld.testbed.fit import Recipe, device_of
from sld.testbed.scenes import SIZE

RECIPE = Recipe(steps=1200, batch=12, rate=1.5e-3, ema=0.995)
DECODER_RECIPE = Recipe(steps=1500, batch=12, rate=8e-4, ema=0.995, seed=1)
_KL = 1e-3

LATENT_STD = 0.2
"""Standard deviation of the latents that the diffusion model sees.

At a standard deviation of 1, a large object in few latents is visible through the noise of Stable Diffusion's schedule
within the first steps, before any warm-up is over. At 0.2 its presence is decided in the middle of a run, where safety
guidance can act on it."""


def _images(scenes: Scenes, generator: torch.Generator, batch: int) -> Tensor:
    return scenes.images(torch.randint(len(scenes), (batch,), generator=generator))


def _edges(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[..., 1:, :] - x[..., :-1, :], x[..., :, 1:] - x[..., :, :-1]


def reconstruction(made: Tensor, images: Tensor) -> Tensor:
    """Return the mean absolute error of pixels plus that of differences of neighbours, which keeps outlines sharp."""
    edges = sum(F.l1_loss(a, b) for a, b in zip(_edges(made), _edges(images), strict=True))
    return F.l1_loss(made, images) + edges


def psnr(made: Tensor, images: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio in dB of pictures in [-1, 1]."""
    return -10 * torch.log10(F.mse_loss(made.clamp(-1, 1), images) / 4)


class AutoencoderLoss:
    """The autoencoder's loss: reconstruction from a sampled latent, and a small KL term towards a standard normal."""

    def __init__(self, scenes: Scenes) -> None:
        self.scenes = scenes

    def draw(self, generator: torch.Generator, batch: int) -> tuple[Tensor, ...]:
        """Return pictures (b, 3, 64, 64) and noise for their latents (b, c, h, w)."""
        images = _images(self.scenes, generator, batch)
        side = SIZE // MINI.vae.factor
        return images, torch.randn(batch, MINI.vae.latent, side, side, generator=generator)

    def __call__(self, network: nn.Module, *drawn: Tensor) -> dict[str, Tensor]:
        assert isinstance(network, VAE)
        images, noise = drawn
        mean, log_variance = network.moments(images)
        made = network.decoder(mean + (0.5 * log_variance).exp() * noise)
        kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).mean()
        error = reconstruction(made, images)
        return {"loss": error + _KL * kl, "error": error, "kl": kl, "psnr": psnr(made.detach(), images)}


class DecoderLoss:
    """The decoder's loss: reconstruction from latents of a frozen encoder. The diffusion model's latents stay valid."""

    def __init__(self, scenes: Scenes) -> None:
        self.scenes = scenes

    def draw(self, generator: torch.Generator, batch: int) -> tuple[Tensor, ...]:
        """Return pictures (b, 3, 64, 64)."""
        return (_images(self.scenes, generator, batch),)

    def __call__(self, network: nn.Module, *drawn: Tensor) -> dict[str, Tensor]:
        assert isinstance(network, VAE)
        (images,) = drawn
        with torch.no_grad():
            mean, _ = network.moments(images)
        made = network.decoder(mean)
        error = reconstruction(made, images)
        return {"loss": error, "psnr": psnr(made.detach(), images)}


@torch.no_grad()
def encode(vae: VAE, scenes: Scenes, batch: int = 64) -> Tensor:
    """Return the unscaled latent means (n, c, h, w) of all scenes, on the CPU."""
    parts = torch.arange(len(scenes)).split(batch)
    return torch.cat([vae.moments(scenes.images(index).to(device_of(vae)))[0].cpu() for index in parts])


def with_scaling(config: VAEConfig, latents: Tensor) -> VAEConfig:
    """Return the config whose scaling gives these unscaled latents the standard deviation `LATENT_STD`."""
    return replace(config, scaling=round(LATENT_STD / latents.std().item(), 5))
