"""Image-to-image and inpainting: what a run that starts from pictures begins with, and keeps.

The order in which an image's generator is read is that of diffusers: the posterior of the encoded picture, the noise of
the run, the posterior of what the mask leaves of the picture, then the noise of a stochastic sampler. So an image has
the same noise in any batch, but not that which its seed gives a run from text alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sld.config import ModelConfig
from sld.data import read
from sld.models.vae import VAE
from sld.noise import Noise
from sld.samplers import Level, Process, Sampler
from sld.speed.weights import on_device
from sld.starting import fitted, own_size, read_pair, usual_strength

Source = str | Path | Image.Image
Pictures = Source | Sequence[Source]
"""One picture for all images of a batch, or one per image: files or PIL images."""


@dataclass(frozen=True, eq=False)
class Start:
    """Pictures that a run starts from.

    Attributes:
        pictures: in [-1, 1], (b, 3, H, W), or (1, 3, H, W) for all images.
        strength: the part of a sampler's steps that is taken, in (0, 1]; `Pipeline.sampler` makes that sampler. At 1,
            a run with a mask begins with noise alone.
        mask: 1 where a picture is made anew, else 0; (b, 1, H, W) or (1, 1, H, W); None to change all of it.
    """

    pictures: Tensor
    strength: float
    mask: Tensor | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the pictures in pixels."""
        return self.pictures.shape[2], self.pictures.shape[3]


@dataclass(frozen=True, eq=False)
class Beginning:
    """What a run of b images begins with.

    Attributes:
        x: latents (b, c, h, w) at the first timestep.
        eps: the noise in them, (b, c, h, w).
        kept: latents (b, c, h, w) of the pictures, which stay where the mask is 0; None if the sampler moves all of x.
        mask: (b, 1, h, w), 0 or 1; None likewise.
        beside: mask and latents of what it leaves, (b, 1 + c, h, w), for a network that inpaints.
    """

    x: Tensor
    eps: Tensor
    kept: Tensor | None = None
    mask: Tensor | None = None
    beside: Tensor | None = None

    def shown(self, x: Tensor) -> Tensor:
        """Return what the network is shown of latents x: (b, c, h, w), or (b, 2 c + 1, h, w) if it inpaints."""
        return x if self.beside is None else torch.cat([x, self.beside], dim=1)

    def blended(self, x: Tensor, a: Level) -> Tensor:
        """Return latents x at level a, with those of the pictures, as noisy as these, where the mask is 0."""
        if self.kept is None or self.mask is None:
            return x
        return (1 - self.mask) * a.noisy(self.kept, self.eps) + self.mask * x

    def keys(self, x: Tensor) -> list[bytes]:
        """Return a key of each image, equal for images that are the same as long as texts and rules are, from x on."""
        parts = [part for part in (x, self.eps, self.kept, self.mask, self.beside) if part is not None]
        return [b"".join(part[k].cpu().numpy().tobytes() for part in parts) for k in range(len(x))]


@torch.no_grad()
def begin(
    start: Tensor | Start | None,
    shape: tuple[int, ...],
    drawn: Noise,
    noise: Tensor | None,
    sampler: Sampler[Any, Any],
    process: Process,
    vae: VAE,
    inpaints: bool,
) -> Beginning:
    """Return what a run of b images begins with.

    Args:
        start: pictures, clean latents (b, c, h, w), or None for noise alone.
        shape: of the latents of the run, (b, c, h, w).
        drawn: noise of the images, from which this draws.
        noise: in place of what the run would begin with, (b, c, h, w).
        sampler: of the run, on its device.
        process: its levels.
        vae: encodes pictures.
        inpaints: whether the network is shown a mask and what it leaves.

    Raises:
        ValueError: the network inpaints, and there are no pictures with a mask; or shapes are not those of the run.
    """
    for name, given in (("noise", noise), ("start", None if isinstance(start, Start) else start)):
        if given is not None and given.shape != shape:
            raise ValueError(f"{name} must have shape {shape}; got {tuple(given.shape)}")
    if inpaints and not (isinstance(start, Start) and start.mask is not None):
        raise ValueError(
            "this model inpaints: give a picture and a mask, white where the picture is made anew (--image, --mask)"
        )
    levels = sampler.levels(process)
    a, device = Level(levels.signal[0], levels.noise[0]), levels.signal.device

    def first_noise() -> Tensor:
        own = drawn.draw()  # also where other noise takes its place, so that no step of a stochastic sampler repeats it
        return (own if noise is None else noise).to(device, copy=True)

    if not isinstance(start, Start):
        eps = first_noise()
        return Beginning(sampler.begin * eps if start is None else a.noisy(start.to(eps), eps), eps)

    side = vae.config.factor
    if start.size != (size := (shape[2] * side, shape[3] * side)):
        raise ValueError(f"the pictures to start from have {start.size} pixels, height first, and the run has {size}")
    pictures = _each(start.pictures, shape[0]).to(device)
    mask = None if start.mask is None else _each(start.mask, shape[0]).to(device)
    vae = on_device(vae, device)

    def encode(pictures: Tensor, noise: Tensor) -> Tensor:
        rows = zip(pictures.split(1), noise.to(device).split(1), strict=True)  # the same bits in any batch
        return torch.cat([vae.encode(picture, own) for picture, own in rows])

    alone = mask is not None and start.strength == 1
    latents = None if alone and inpaints else encode(pictures, drawn.draw())
    if mask is not None and latents is not None:
        latents = latents.contiguous()  # in memory as the reference has them here, for the same last bits
    eps = first_noise()
    x = sampler.begin * eps if alone or latents is None else a.noisy(latents, eps)
    if mask is None:
        return Beginning(x, eps)
    left = drawn.draw()  # by diffusers also where no network is shown what is left
    small = mask[..., ::side, ::side].contiguous()
    if inpaints:
        return Beginning(x, eps, beside=torch.cat([small, encode(pictures * (1 - mask), left)], dim=1))
    return Beginning(x, eps, latents, small)


def read_start(
    images: Pictures,
    config: ModelConfig,
    strength: float | None = None,
    masks: Pictures | None = None,
    size: int | tuple[int, int] | None = None,
    quiet: bool = False,
) -> Start:
    """Read pictures, and bring them to one size.

    Args:
        images: files or PIL images, one for all images of a batch or one per image.
        config: of the model.
        strength: see `Start`; 0.8 if None, and 1 with masks.
        masks: white where a picture is made anew; one for all, or one per image.
        size: of the run; the first picture's own if None.
        quiet: whether to leave out the warnings of what is changed in a picture, which have been given before.

    Raises:
        ValueError: a picture or mask cannot be taken, see `sld.starting`, or their numbers differ.
    """
    given = _listed(images)
    covering: list[Path | Image.Image | None] = [None] if masks is None else [*_listed(masks)]
    count = max(len(given), len(covering))
    if {len(given), len(covering)} - {1, count}:
        raise ValueError(
            f"pictures and masks are one for all images, or one per image; got {len(given)} and {len(covering)}"
        )
    given = given * count if len(given) == 1 else given
    covering = covering * count if len(covering) == 1 else covering
    pairs = [read_pair(image, mask) for image, mask in zip(given, covering, strict=True)]
    factor = config.vae.factor
    if size is None:
        size = own_size(pairs[0][0], config.defaults.sides, factor)
    height, width = (side * factor for side in config.latent_size(size))
    for picture, _ in () if quiet else pairs:
        picture.warn_of_changes((height, width))
    made = [fitted(*pair, (height, width), factor) for pair in pairs]
    anew = [mask for _, mask in made if mask is not None]
    return Start(
        to_network(np.stack([pixels for pixels, _ in made])),
        usual_strength(masks is not None) if strength is None else strength,
        torch.from_numpy(np.stack(anew)).float()[:, None] if anew else None,
    )


def to_network(pixels: np.ndarray) -> Tensor:
    """Return pixels uint8 (b, H, W, 3) as float32 (b, 3, H, W) in [-1, 1], with diffusers' bits and layout."""
    return 2 * torch.from_numpy(pixels.astype(np.float32) / 255).permute(0, 3, 1, 2) - 1


def _each(values: Tensor, batch: int) -> Tensor:
    """Return a row for each image, of one for all or one for each.

    Raises:
        ValueError: there are as many as neither.
    """
    if len(values) not in (1, batch):
        raise ValueError(f"a run of {batch} images starts from one picture, or from {batch}; got {len(values)}")
    return values if len(values) == batch else torch.cat([values] * batch)


def _listed(pictures: Pictures) -> list[Path | Image.Image]:
    several = [pictures] if isinstance(pictures, str | Path | Image.Image) else pictures
    return [read(Path, one) if isinstance(one, str) else one for one in several]
