"""An approximation of the network: deep features that an evaluation takes over from an earlier one."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sld.speed.keys import KeyedUNet, TextKeys, TimeKeys


@dataclass(frozen=True)
class Reuse:
    """What is computed anew, and when. Never on by itself, for it changes pictures: docs/performance.md has the price.

    What is kept belongs to a row of an image, and it is the image alone that decides when it was made: pictures stay
    the same in any batch. That takes all rows at every evaluation, idle or equal ones too.

    Attributes:
        deep_every: all but the last block on the way up is computed at every k-th evaluation only, k >= 1; in between
            that block takes what came from below last time, and the new latents beside it (DeepCache, Ma et al., CVPR
            2024, arXiv 2312.00858, with its shallowest branch). 1 changes nothing.

    Raises:
        ValueError: the number is out of its range.
    """

    deep_every: int = 1

    def __post_init__(self) -> None:
        if type(self.deep_every) is not int or self.deep_every < 1:
            raise ValueError(f"deep_every must be a whole number >= 1; got {self.deep_every!r}")

    def __bool__(self) -> bool:
        """Whether anything is taken over at all."""
        return self.deep_every > 1

    def deep(self, i: int) -> bool:
        """Whether evaluation i computes all of the network, so that a run can go on there."""
        return i % self.deep_every == 0


NO_REUSE = Reuse()
"""Every evaluation computes all of the network."""


class ReusingUNet:
    """The network in one call of a run, evaluation after evaluation, with what it keeps in between."""

    def __init__(self, unet: KeyedUNet, reuse: Reuse) -> None:
        self._unet = unet
        self._reuse = reuse
        self._deep: Tensor | None = None

    def __call__(self, i: int, x: Tensor, time: TimeKeys, text: TextKeys) -> Tensor:
        """Predict at evaluation i, the first of which must be deep; see `KeyedUNet.forward` for the rest."""
        h = self._unet.first(x)
        if self._reuse.deep(i):
            # a copy, because CUDA graphs write what comes after where they wrote this
            self._deep = self._unet.deep(h, time, text).clone()
        assert self._deep is not None
        return self._unet.last(h, self._deep, time, text).to(x.dtype)
