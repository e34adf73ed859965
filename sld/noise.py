"""The noise of images: what each of them begins with, and what stochastic samplers add."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sld.arguments import checked_seeds


class Noise:
    """The noise of b images, each from a CPU generator of its own, so that it is the same in any batch.

    Args:
        seeds: one per image, in [0, 2**64).
        shape: of an image's latents, (c, h, w).

    Raises:
        ValueError: a seed is out of range.
    """

    def __init__(self, seeds: Sequence[int], shape: tuple[int, ...]) -> None:
        self._generators = [torch.Generator().manual_seed(seed) for seed in checked_seeds(seeds)]
        self._shape = shape

    def draw(self) -> Tensor:
        """Return the next standard normal noise (b, c, h, w), float32, on the CPU."""
        drawn = [torch.randn((1, *self._shape), generator=g, dtype=torch.float32) for g in self._generators]
        return torch.cat(drawn)

    def states(self) -> Tensor:
        """Return the state of each generator, (b, n), uint8."""
        return torch.stack([g.get_state() for g in self._generators])

    def restore(self, states: Tensor) -> None:
        """Go on from what `states` returned, wherever it has been copied since."""
        for generator, state in zip(self._generators, states, strict=True):
            generator.set_state(state.to("cpu", copy=True))  # it reads from the start of the storage
