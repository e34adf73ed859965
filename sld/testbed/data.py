"""Training pictures of the embedded world. They are rendered once, and each process reads them through a memory map."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sld.files import whole
from sld.testbed.scenes import SIZE, Scene, draw_caption, render, sample_scene


class Scenes:
    """A fixed set of random scenes with their pictures and, once these are encoded, their latents.

    Args:
        folder: where pictures and latents are kept.
        count: number of scenes.
        seed: decides the scenes. Sets of different seeds share no jitter.
    """

    def __init__(self, folder: Path, count: int, seed: int) -> None:
        self.folder = folder
        self.seed = seed
        rng = np.random.default_rng(seed)
        self.scenes: list[Scene] = [sample_scene(rng) for _ in range(count)]

    def __len__(self) -> int:
        return len(self.scenes)

    def _path(self, what: str) -> Path:
        return self.folder / f"{what}-{self.seed}-{len(self)}.npy"

    @cached_property
    def pictures(self) -> np.ndarray:
        """Return all pictures, (n, 64, 64, 3) uint8. They are rendered on first use."""
        path = self._path("pictures")
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            shape = (len(self), SIZE, SIZE, 3)
            with whole(path) as beside:
                pictures = np.lib.format.open_memmap(beside, mode="w+", dtype=np.uint8, shape=shape)
                for k, scene in enumerate(self.scenes):
                    pictures[k] = render(scene)
                pictures.flush()
        return np.load(path, mmap_mode="r")

    def images(self, index: Tensor) -> Tensor:
        """Return the pictures of these scenes as float32 (n, 3, 64, 64) in [-1, 1]."""
        pictures = torch.from_numpy(self.pictures[index.numpy()])
        return pictures.permute(0, 3, 1, 2).float() / 127.5 - 1

    def captions(self, index: Tensor, rng: np.random.Generator) -> list[str]:
        """Draw a new caption for each of these scenes."""
        return [draw_caption(self.scenes[k], rng) for k in index.tolist()]
