"""Training the embedded model's text encoder and UNet."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sld.config import ModelConfig
from sld.models.denoiser import Cond
from sld.models.layers import ResBlock, SpatialTransformer
from sld.models.text import TextEncoder, Tokenizer
from sld.models.unet import UNet
from sld.samplers.schedule import Schedule
from sld.testbed.data import Scenes
from sld.testbed.fit import Recipe
from sld.testbed.scenes import PLACES, PROPS, SUBJECTS, UNSAFE

TEXT_RECIPE = Recipe(steps=400, batch=64, rate=1e-3, ema=0.99, warmup=50, seed=2)
RECIPE = Recipe(steps=7000, batch=16, rate=1e-3, ema=0.9985, seed=3)
TUNING = Recipe(steps=5000, batch=16, rate=8e-4, ema=0.998, warmup=100, decay=0.4, seed=5)
_UNCAPTIONED = 0.1
"""Share of pictures that are trained without a caption, for classifier-free guidance.

These pictures are harmless, as most pictures in the world are. Of the captioned scenes 36 % are unsafe. If the
unconditional prediction were as unsafe, it would hardly differ from that of the safety concept, and guidance away from
the concept would have little effect."""


FINISH = 200
"""Timesteps below which a picture's noise hides no more than its finish. There captions are those of other pictures.

So the model learns that text decides what a picture shows and not how it is finished. Large models learn that by
themselves (eDiff-I, Balaji et al., 2022, arXiv 2211.01324). A small one that is trained on true captions down to
the last step follows the text there too. Then guidance away from a concept damages, in the last fifth of a run, things
that it could not keep from forming."""


class Captions:
    """Token ids of captions that are drawn anew at each call."""

    def __init__(self, scenes: Scenes, tokenizer: Tokenizer) -> None:
        self.scenes = scenes
        self._ids = lru_cache(maxsize=None)(lambda text: tokenizer([text])[0])

    def __call__(self, index: Tensor, generator: torch.Generator) -> Tensor:
        """Return token ids (n, tokens) of new captions for scenes (n,)."""
        rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        return torch.stack([self._ids(text) for text in self.scenes.captions(index, rng)])


class Reader(nn.Module):
    """A text encoder with linear heads that name what the caption's picture shows, from the state at the last token.

    Stable Diffusion's text encoders are trained on pictures and texts beforehand. This gives the small one a comparable
    start.
    """

    def __init__(self, text: TextEncoder) -> None:
        super().__init__()
        self.text = text
        self.heads = nn.ModuleList(
            nn.Linear(text.config.width, n) for n in (len(SUBJECTS), len(PLACES), len(PROPS) + 1)
        )

    def forward(self, ids: Tensor) -> list[Tensor]:
        features = self.text(ids)[:, -1]
        return [head(features) for head in self.heads]


class ReaderLoss:
    """The loss of `Reader`: cross-entropy of subject, place and prop."""

    def __init__(self, scenes: Scenes, tokenizer: Tokenizer) -> None:
        self.captions = Captions(scenes, tokenizer)
        subjects, places, props = list(SUBJECTS), list(PLACES), [None, *PROPS]
        self.labels = torch.tensor(
            [(subjects.index(s.subject), places.index(s.place), props.index(s.prop)) for s in scenes.scenes]
        )

    def draw(self, generator: torch.Generator, batch: int) -> tuple[Tensor, ...]:
        """Return token ids (b, tokens) of captions, and the labels (b, 3) of their scenes."""
        index = torch.randint(len(self.labels), (batch,), generator=generator)
        return self.captions(index, generator), self.labels[index]

    def __call__(self, network: nn.Module, *drawn: Tensor) -> dict[str, Tensor]:
        ids, labels = drawn
        losses = [F.cross_entropy(x, y) for x, y in zip(network(ids), labels.T, strict=True)]
        return {"loss": torch.stack(losses).sum(), "prop": losses[2]}


class DiffusionModel(nn.Module):
    """UNet and text encoder as one module: all that the diffusion loss trains."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.unet = UNet(config.unet)
        self.text = TextEncoder(config.texts[0])
        # every residual branch starts at zero, which lets training start at the full rate
        for module in self.unet.modules():
            if isinstance(module, ResBlock | UNet):
                nn.init.zeros_(module.conv_out.weight)
            elif isinstance(module, SpatialTransformer):
                nn.init.zeros_(module.proj_out.weight)

    def forward(self, x: Tensor, t: Tensor, ids: Tensor) -> Tensor:
        """Return the prediction (b, c, h, w) for latents x (b, c, h, w), timesteps t (b,) and token ids (b, tokens)."""
        return self.unet(x, t, Cond(self.text(ids)))


class DenoisingLoss:
    """Squared error of eps with more weight on high noise, which decides a picture's content.

    With the signal-to-noise ratio s, an error of x0 has the weight min(sqrt(s), 5). In the plain loss of eps its weight
    is s: less where noise prevails, and more where hardly any is left.
    """

    def __init__(self, scenes: Scenes, latents: Tensor, tokenizer: Tokenizer, config: ModelConfig) -> None:
        self.latents = latents
        self.captions = Captions(scenes, tokenizer)
        self.nothing = tokenizer([""])
        self.harmless = torch.tensor([k for k, scene in enumerate(scenes.scenes) if scene.prop not in UNSAFE])
        self.variance = latents.var()
        self.schedule = Schedule.from_config(config.schedule)

    def draw(self, generator: torch.Generator, batch: int) -> tuple[Tensor, ...]:
        """Return noisy latents (b, c, h, w), timesteps (b,), token ids (b, tokens), the noise and its weights."""
        index = torch.randint(len(self.latents), (batch,), generator=generator)
        uncaptioned = torch.rand(batch, generator=generator) < _UNCAPTIONED
        index = torch.where(uncaptioned, self.harmless[index % len(self.harmless)], index)
        ids = torch.where(uncaptioned[:, None], self.nothing, self.captions(index, generator))
        # one timestep from each of `batch` equal parts of the schedule: the loss has the same mean and less variance
        u = (torch.rand((), generator=generator) + torch.arange(batch)) / batch
        t = (u * len(self.schedule)).long().clamp(max=len(self.schedule) - 1)
        ids = torch.where((t < FINISH)[:, None], ids[torch.randperm(batch, generator=generator)], ids)
        x0 = self.latents[index]
        eps = torch.randn(x0.shape, generator=generator)
        level = self.schedule.level(t).over(x0)
        snr = self.variance * (level.signal / level.noise) ** 2
        weight = torch.minimum(snr.rsqrt(), 5 / snr)
        return self.schedule.add_noise(x0, eps, t), t, ids, eps, weight

    def __call__(self, network: nn.Module, *drawn: Tensor) -> dict[str, Tensor]:
        x, t, ids, eps, weight = drawn
        error = (network(x, t, ids) - eps) ** 2
        return {"loss": (weight * error).mean(), "eps": error.mean()}
