"""Deliberately broken pictures of the embedded world, and whole ones, to train and to test the reading of broken ones.

A picture is broken if a part of it shows nothing that the world can show: half a prop, two props in one, blotches,
colours that nothing has. Guidance makes such pictures when it changes a thing after it has begun to form. Here they
are made from renders, without any sampling, mostly by mixing the latents of two scenes that differ in one sprite.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sld.images import from_uint8, to_uint8
from sld.models.vae import VAE
from sld.testbed.data import rendered
from sld.testbed.fit import device_of
from sld.testbed.scenes import PROPS, SIZE, SPREAD, SUBJECTS, Mention, Scene, Spread, pick

CELL = 8
"""Side of the cells, in pixels, for which a picture is said to be broken or not."""

_VISIBLE = 0.18  # mean change of a cell, in [-1, 1], from which on it counts as damaged
_UNSEEN = 0.06  # and below which it counts as whole
_SMALLEST = 1e-3  # difference of latents; two captions of one text make equal pictures
_BATCH = 50


@dataclass(frozen=True)
class Inspected:
    """Pictures and where they are broken.

    Attributes:
        pictures: (n, 64, 64, 3) uint8.
        cells: (n, 8, 8): 1 where a cell is broken, 0 where it is whole, and 1/2 where nobody could tell.
    """

    pictures: np.ndarray
    cells: Tensor

    def __len__(self) -> int:
        return len(self.pictures)

    def __add__(self, other: Inspected) -> Inspected:
        return Inspected(np.concatenate([self.pictures, other.pictures]), torch.cat([self.cells, other.cells]))


def whole_pictures(scenes: list[Scene], vae: VAE, soft: float, seed: int, spread: Spread | None = None) -> Inspected:
    """Return renders that went through the autoencoder, somewhat soft and noisy, as a diffusion model's pictures are.

    Args:
        scenes: one for each picture.
        vae: unscaled.
        soft: largest share of a blurred latent in its place, in [0, 1], and largest deviation of noise relative to the
            latents' own. Both are drawn for each picture.
        seed: of the noise.
        spread: of the sprites; None for what goes with the scenes' captions.
    """
    draw = Draw(torch.Generator().manual_seed(seed))
    made = []
    for z in _latents(scenes, vae, [spread] * len(scenes)).split(_BATCH):
        softened = [
            torch.lerp(x, _blurred(x, 3), draw.uniform(0, soft))
            + draw.noise(*x.shape) * x.std() * draw.uniform(0, soft)
            for x in z
        ]
        made.append(_decoded(torch.stack(softened), vae))
    return Inspected(np.concatenate(made), torch.zeros(len(scenes), SIZE // CELL, SIZE // CELL))


def broken_pictures(scenes: list[Scene], vae: VAE, seed: int) -> Inspected:
    """Return broken pictures of these scenes. Each is damaged in its latents, at one sprite or anywhere.

    Args:
        scenes: one for each picture.
        vae: unscaled.
        seed: of the damage.
    """
    rng = np.random.default_rng(seed)
    draw = Draw(torch.Generator().manual_seed(seed))
    a = _latents(scenes, vae)
    b = _latents([other(scene, rng) for scene in scenes], vae, [SPREAD[scene.mention] for scene in scenes])
    return _joined([_damaged(x, y, vae, rng, draw) for x, y in zip(a.split(_BATCH), b.split(_BATCH), strict=True)])


def sampled_pictures(a: Tensor, b: Tensor, vae: VAE, seed: int) -> Inspected:
    """Return 2n pictures of a diffusion model as they are, which count as whole, and the same 2n damaged.

    Args:
        a, b: latents (n, c, h, w) each, unscaled, of pictures in pairs, of which one is damaged with the other.
        vae: unscaled.
        seed: of the damage.
    """
    rng = np.random.default_rng(seed)
    draw = Draw(torch.Generator().manual_seed(seed))
    made = []
    for x, y in zip(a.split(_BATCH), b.split(_BATCH), strict=True):
        made += [Inspected(_decoded(z, vae), torch.zeros(len(z), SIZE // CELL, SIZE // CELL)) for z in (x, y)]
        made += [_damaged(x, y, vae, rng, draw), _damaged(y, x, vae, rng, draw)]
    return _joined(made)


def _damaged(a: Tensor, b: Tensor, vae: VAE, rng: np.random.Generator, draw: Draw) -> Inspected:
    """Return pictures of latents a (n, c, h, w), damaged with the help of b, in which a sprite differs."""
    made = _decoded(torch.stack([pick(DAMAGES, rng)(x, y, draw) for x, y in zip(a, b, strict=True)]), vae)
    far = [_change(made, _decoded(z, vae)) for z in (a, b)]
    change = torch.minimum(*far)  # a cell that looks as in either scene is whole
    return Inspected(made, torch.where(change > _VISIBLE, 1.0, torch.where(change < _UNSEEN, 0.0, 0.5)))


def _joined(parts: list[Inspected]) -> Inspected:
    return Inspected(np.concatenate([p.pictures for p in parts]), torch.cat([p.cells for p in parts]))


@torch.no_grad()
def _latents(scenes: list[Scene], vae: VAE, spreads: Sequence[Spread | None] | None = None) -> Tensor:
    """Return the latents (n, c, h, w) of renders, on the CPU."""
    pictures = from_uint8(np.stack(list(rendered(scenes, spreads))))
    return torch.cat([vae.moments(part.to(device_of(vae)))[0].cpu() for part in pictures.split(_BATCH)])


@torch.no_grad()
def _decoded(z: Tensor, vae: VAE) -> np.ndarray:
    return to_uint8(vae.decoder(z.to(device_of(vae))))


def _change(made: np.ndarray, intended: np.ndarray) -> Tensor:
    """Return how far the cells (n, 8, 8) of two sets of pictures are apart: the mean difference, in [0, 2]."""
    difference = (from_uint8(made) - from_uint8(intended)).abs().mean(1, keepdim=True)
    return F.avg_pool2d(difference, CELL)[:, 0]


def other(scene: Scene, rng: np.random.Generator) -> Scene:
    """Return the scene with another prop or none, or with another subject. All else is drawn as it was."""
    if rng.random() < 0.2:
        return replace(scene, subject=pick([name for name in SUBJECTS if name != scene.subject], rng))
    if scene.prop is not None and rng.random() < 0.6:
        return replace(scene, prop=None, mention=Mention.NOTHING)
    return replace(scene, prop=pick([name for name in PROPS if name != scene.prop], rng), mention=Mention.NOTHING)


class Draw:
    """Random numbers of a damage."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=self.generator))

    def noise(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator)

    def field(self, channels: int, side: int) -> Tensor:
        """Return smooth fields (c, side, side) that are near 0 in one half of the places and near 1 in the other."""
        coarse = int(torch.randint(2, 7, (), generator=self.generator))
        noise = self.noise(1, channels, coarse, coarse)
        return torch.sigmoid(6 * F.interpolate(noise, (side, side), mode="bicubic", align_corners=False))[0]


def _blend(a: Tensor, b: Tensor, draw: Draw) -> Tensor:
    return torch.lerp(a, b, draw.uniform(0.3, 0.7))


def _pieces(a: Tensor, b: Tensor, draw: Draw) -> Tensor:
    """One sprite in some places, the other in the rest."""
    return torch.lerp(a, b, draw.field(1, a.shape[-1]))


def _elements(a: Tensor, b: Tensor, draw: Draw) -> Tensor:
    """One sprite in some elements, the other in the rest: guidance acts on elements."""
    return torch.lerp(a, b, draw.field(*a.shape[:2]))


def _beyond(a: Tensor, b: Tensor, draw: Draw) -> Tensor:
    """The opposite of a sprite in the place of another: guidance goes too far."""
    return b + (b - a) * draw.uniform(0.35, 1.3) * draw.field(*a.shape[:2])


def _rubble(a: Tensor, b: Tensor, draw: Draw) -> Tensor:
    """Noise in the place of a sprite, fine or coarse."""
    noise = draw.noise(*a.shape)
    if draw.uniform(0, 1) < 0.5:
        noise = 3 * _blurred(noise, 3)
    return torch.lerp(a, a * draw.uniform(0, 1) + noise * a.std() * draw.uniform(0.4, 1.2), _difference(a, b))


def _noisy(a: Tensor, b: Tensor, draw: Draw) -> Tensor:
    """Noise in some places or everywhere."""
    where = torch.ones(1) if draw.uniform(0, 1) < 0.4 else draw.field(1, a.shape[-1])
    return a + draw.noise(*a.shape) * a.std() * draw.uniform(0.5, 1.2) * where


def _haze(a: Tensor, b: Tensor, draw: Draw) -> Tensor:
    """A smooth spot of one colour where a sprite could be."""
    colour = draw.noise(len(a), 1, 1)
    colour = colour / colour.norm() * a.std() * draw.uniform(2.5, 5)
    return b + colour * _blurred(_difference(a, b) * draw.uniform(0.6, 1), 5)


def _smudge(a: Tensor, b: Tensor, draw: Draw) -> Tensor:
    """A sprite whose inner lines run into one another in some places."""
    where = _difference(a, b) * (0.3 + 0.7 * draw.field(1, a.shape[-1]))
    return torch.lerp(a, _blurred(a, 5), where * draw.uniform(0.7, 1))


DAMAGES = (_blend, _pieces, _elements, _beyond, _rubble, _noisy, _haze, _smudge)
"""Ways to break latents a, b (c, h, w) of two scenes that differ in one sprite."""


def _difference(a: Tensor, b: Tensor) -> Tensor:
    """Return where (1, h, w) two latents differ, with soft borders, in [0, 1]; nowhere if they are equal."""
    difference = (a - b).abs().mean(0, keepdim=True)
    return _blurred((4 * difference / difference.max().clamp(min=_SMALLEST)).clamp(max=1), 3)


def _blurred(x: Tensor, width: int) -> Tensor:
    return F.avg_pool2d(x[None], width, 1, width // 2, count_include_pad=False)[0]
