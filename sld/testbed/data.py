"""Training pictures of the embedded world. They are rendered once, and each process reads them through a memory map."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sld.files import whole
from sld.testbed.scenes import SIZE, Scene, Spread, draw_caption, render, sample_scene

_ALONE = 2_000


def rendered(scenes: Sequence[Scene], spreads: Sequence[Spread | None] | None = None) -> Iterator[np.ndarray]:
    """Yield pictures uint8 (64, 64, 3) of scenes, in their order. All cores draw where there are many.

    Args:
        scenes: to draw.
        spreads: of their sprites; None for what goes with the scenes' captions.

    Raises:
        ArtError: the sprites are not there.
    """
    spreads = spreads or [None] * len(scenes)
    if len(scenes) < _ALONE:
        yield from map(render, scenes, spreads)
        return
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        yield from pool.map(render, scenes, spreads, chunksize=100)


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
                for k, picture in enumerate(rendered(self.scenes)):
                    pictures[k] = picture
                pictures.flush()
        return np.load(path, mmap_mode="r")

    def images(self, index: Tensor) -> Tensor:
        """Return the pictures of these scenes as float32 (n, 3, 64, 64) in [-1, 1]."""
        pictures = torch.from_numpy(self.pictures[index.numpy()])
        return pictures.permute(0, 3, 1, 2).float() / 127.5 - 1

    def captions(self, index: Tensor, rng: np.random.Generator) -> list[str]:
        """Draw a new caption for each of these scenes."""
        return [draw_caption(self.scenes[k], rng) for k in index.tolist()]
