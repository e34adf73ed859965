"""Pictures of a diffusion model in pairs, from which its detector learns what whole and broken pictures look like.

A sampled picture has another texture than a render that went through the autoencoder. A detector that learns from
renders alone takes that texture for damage.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from sld.guidance import ClassifierFreeGuidance
from sld.models.unet import UNet
from sld.pipeline import Pipeline
from sld.samplers import make_sampler
from sld.testbed.damage import other
from sld.testbed.examples import draw_independent
from sld.testbed.fit import fingerprint, save_whole
from sld.testbed.scenes import draw_caption, pick

_SCALES = (2.0, 3.0, 3.0, 4.0)  # about the model's own, at which its pictures without safety guidance are whole
_SAMPLERS = (("ddim", 25), ("ddim", 25), ("ddim", 50), ("pndm", 25))
_BATCH = 32


@dataclass(frozen=True)
class Pairs:
    """Latents (n, c, h, w) each, unscaled, of pictures in pairs.

    A pair has the same noise, and captions of scenes that differ in one sprite. Captions are drawn one by one, so that
    they may also differ in their wording, or in nothing where neither names the sprite. Pictures are equal then.
    """

    a: Tensor
    b: Tensor

    def split(self, at: int) -> tuple[Pairs, Pairs]:
        """Return the first `at` pairs and the rest."""
        return Pairs(self.a[:at], self.b[:at]), Pairs(self.a[at:], self.b[at:])


@torch.no_grad()
def sample_pairs(pipe: Pipeline, count: int, seed: int) -> Pairs:
    """Return pairs of a model's pictures of independent scenes, without safety guidance.

    Args:
        pipe: the model.
        count: of pairs.
        seed: of scenes, captions and noise.
    """
    rng = np.random.default_rng(seed)
    made: tuple[list[Tensor], list[Tensor]] = ([], [])
    for start in range(0, count, _BATCH):
        scenes = [draw_independent(rng) for _ in range(min(_BATCH, count - start))]
        seeds = rng.integers(2**62, size=len(scenes)).tolist()
        scale, (sampler, steps) = pick(_SCALES, rng), pick(_SAMPLERS, rng)
        partners = [other(scene, rng) for scene in scenes]
        for latents, shown in zip(made, (scenes, partners), strict=True):
            *_, last = pipe.sample(
                [draw_caption(scene, rng) for scene in shown],
                seeds,
                sampler=make_sampler(sampler, pipe.schedule, steps),
                guidance=ClassifierFreeGuidance(scale),
            )
            latents.append(last.x.cpu() / pipe.config.vae.scaling)
    return Pairs(*map(torch.cat, made))


def shared_pairs(pipe: Pipeline, count: int, seed: int, folder: Path) -> Pairs:
    """Return a model's pairs, the same in each process of the group.

    Each process samples its share with the seed + its rank, unless this model's share is in the folder already.

    Args:
        pipe: the model.
        count: of pairs. What does not divide by the number of processes is left out.
        seed: of the first process.
        folder: of the shares.
    """
    rank, size = dist.get_rank(), dist.get_world_size()
    assert isinstance(pipe.unet, UNet)
    model = fingerprint(pipe.unet)
    paths = [folder / f"sampled-{model}-{k}-of-{size}.pt" for k in range(size)]
    if not paths[rank].exists():
        pairs = sample_pairs(pipe, count // size, seed + rank)
        save_whole({"a": pairs.a, "b": pairs.b}, paths[rank])
    dist.barrier()
    shares = [torch.load(path, weights_only=True) for path in paths]
    return Pairs(*(torch.cat([share[name] for share in shares]) for name in "ab"))
