"""Labelled pictures of the embedded world, on which its detector is trained and measured.

Their prop is independent of subject and place, unlike that of the diffusion model's scenes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sld.images import from_uint8, to_uint8
from sld.models.vae import VAE
from sld.testbed.data import rendered
from sld.testbed.fit import device_of
from sld.testbed.scenes import PLACES, PROPS, SIZE, SPREAD, SUBJECTS, UNSAFE, Mention, Scene, Spread, pick

_WITHOUT_PROP = 0.4
_SHIFT = 4
_HUES = math.pi / 3
_SUBJECTS, _PLACES, _PROPS = tuple(SUBJECTS), tuple(PLACES), tuple(PROPS)


@dataclass(frozen=True)
class Examples:
    """Labelled pictures.

    Attributes:
        pictures: (n, 64, 64, 3) uint8.
        subjects, places: (n,) indices.
        props: (n, 14), the visible share of each prop, in [0, 1].
    """

    pictures: np.ndarray
    subjects: Tensor
    places: Tensor
    props: Tensor

    def __len__(self) -> int:
        return len(self.pictures)

    def __add__(self, other: Examples) -> Examples:
        return Examples(
            np.concatenate([self.pictures, other.pictures]),
            torch.cat([self.subjects, other.subjects]),
            torch.cat([self.places, other.places]),
            torch.cat([self.props, other.props]),
        )


def draw_independent(rng: np.random.Generator) -> Scene:
    """Draw a scene whose subject, place and prop are independent of one another."""
    prop = None if rng.random() < _WITHOUT_PROP else pick(_PROPS, rng)
    mention = Mention.CONCEPT if prop in UNSAFE and rng.random() < 0.5 else Mention.NOTHING
    return Scene(pick(_SUBJECTS, rng), pick(_PLACES, rng), prop, mention, int(rng.integers(2**31)))


def examples(count: int, seed: int, blended: float = 0.0) -> Examples:
    """Render independent scenes.

    Args:
        count: number of pictures.
        seed: of the scenes.
        blended: share of pictures that blend two props, or a prop and none. Diffusion models make such pictures. The
            label of each prop is its share in the blend.

    Raises:
        ArtError: the sprites are not there.
    """
    rng = np.random.default_rng(seed)
    props = torch.zeros(count, len(_PROPS))
    subjects, places = torch.zeros(count, dtype=torch.long), torch.zeros(count, dtype=torch.long)
    parts: list[tuple[int, float, Scene, Spread]] = []
    for k in range(count):
        scene = draw_independent(rng)
        shares = [(1.0, scene)]
        if rng.random() < blended:
            share = rng.random()
            other = replace(scene, prop=pick((None, *_PROPS), rng), mention=Mention.NOTHING)
            shares = [(share, scene), (1 - share, other)]
        for share, part in shares:
            parts.append((k, share, part, SPREAD[scene.mention]))
            if part.prop:
                props[k, _PROPS.index(part.prop)] += share
        subjects[k], places[k] = _SUBJECTS.index(scene.subject), _PLACES.index(scene.place)
    pictures = np.zeros((count, SIZE, SIZE, 3), np.float32)
    drawn = rendered([scene for _, _, scene, _ in parts], [spread for *_, spread in parts])
    for (k, share, _, _), picture in zip(parts, drawn, strict=True):
        pictures[k] += share * picture
    return Examples(np.rint(pictures).astype(np.uint8), subjects, places, props)


@torch.no_grad()
def through_autoencoder(examples: Examples, vae: VAE, noise: float = 0.0, seed: int = 0) -> Examples:
    """Return the same examples, encoded and decoded by the autoencoder.

    Args:
        examples: to encode and decode.
        vae: unscaled.
        noise: largest standard deviation of noise on the latent, relative to the latents' own. The level is drawn for
            each picture.
        seed: of the noise.
    """
    generator = torch.Generator().manual_seed(seed)
    made = []
    for index in torch.arange(len(examples)).split(50):
        z, _ = vae.moments(from_uint8(examples.pictures[index.numpy()]).to(device_of(vae)))
        level = noise * torch.rand(len(z), 1, 1, 1, generator=generator)
        added = (level * torch.randn(z.shape, generator=generator)).to(z)
        made.append(to_uint8(vae.decoder(z + z.std() * added)))
    return replace(examples, pictures=np.concatenate(made))


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Augment pictures (b, 3, 64, 64): shift, brightness, noise, blur of some, and other colours of half the props.

    Colours change because guidance away from a concept may turn a purple umbrella into a blue one. They change in one
    half of the picture, which has the prop or the subject.
    """
    count, _, height, width = images.shape
    angle = _HUES * (2 * torch.rand(count, generator=generator) - 1)
    angle = torch.where(torch.rand(count, generator=generator) < 0.5, angle, 0)
    left = torch.rand(count, 1, 1, 1, generator=generator) < 0.5
    chosen = (torch.arange(width) < width / 2) == left
    images = torch.where(chosen, turn_hues(images, angle), images)
    padded = F.pad(images, (_SHIFT,) * 4, mode="replicate")
    corners = torch.randint(2 * _SHIFT + 1, (count, 2), generator=generator).tolist()
    shifted = [x[:, i : i + height, j : j + width] for x, (i, j) in zip(padded, corners, strict=True)]
    images = torch.stack(shifted)
    gain, offset, sharp, noise = torch.rand(4, count, 1, 1, 1, generator=generator)
    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    images = torch.lerp(blurred, images, (2 * sharp).clamp(max=1))
    images = images * (0.85 + 0.3 * gain) + 0.3 * (offset - 0.5)
    return images + 0.1 * noise * torch.randn(images.shape, generator=generator)


def turn_hues(images: Tensor, angle: Tensor) -> Tensor:
    """Rotate the colours of pictures (b, 3, h, w) about the grey axis by angles (b,) in radians."""
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    cross = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / math.sqrt(3)
    turn = cos * torch.eye(3) + (1 - cos) / 3 + sin * cross  # Rodrigues' formula
    return torch.einsum("bij,bjhw->bihw", turn, images)
