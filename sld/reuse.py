"""Approximations of the network: what an evaluation takes over from an earlier one. They change pictures."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sld.models.unet import TextKeys, TimeKeys, UNet


@dataclass(frozen=True)
class Reuse:
    """What is computed anew, and when. Never on by itself; docs/performance.md has the price.

    What is kept belongs to a row of an image, and it is the image alone that decides when it was made: pictures stay
    the same in any batch. That takes all rows at every evaluation, idle or equal ones too.

    Attributes:
        deep_every: all but the last block on the way up is computed at every k-th evaluation only, k >= 1; in between
            that block takes what came from below last time, and the new latents beside it (DeepCache, Ma et al., CVPR
            2024, arXiv 2312.00858, with its shallowest branch). 1 changes nothing.
        cross_after: the last evaluation, from 0, whose cross-attention is computed; its results stand for those of all
            later ones (T-GATE, Zhang et al., 2024, arXiv 2404.02747, with each row keeping its own). None changes
            nothing. Where it falls between two of `deep_every`, the earlier one is the last.

    Raises:
        ValueError: a number is out of its range.
    """

    deep_every: int = 1
    cross_after: int | None = None

    def __post_init__(self) -> None:
        for name, value, least in (("deep_every", self.deep_every, 1), ("cross_after", self.cross_after, 0)):
            if value is not None and (type(value) is not int or value < least):
                raise ValueError(f"{name} must be a whole number >= {least}; got {value!r}")

    def __bool__(self) -> bool:
        """Whether anything is taken over at all."""
        return self.deep_every > 1 or self.cross_after is not None

    def deep(self, i: int) -> bool:
        """Whether evaluation i computes all of the network."""
        return i % self.deep_every == 0

    def crosses(self, i: int) -> bool:
        """Whether evaluation i computes cross-attention."""
        return self.cross_after is None or i <= self.cross_after

    def begins(self, i: int) -> bool:
        """Whether a run can go on at evaluation i, which then takes over nothing, nor does any after it from before."""
        return self.deep(i) and self.crosses(i)


NO_REUSE = Reuse()
"""Every evaluation computes all of the network."""


class ReusingUNet:
    """The network in one call of a run, evaluation after evaluation, with what it keeps in between."""

    def __init__(self, unet: UNet, reuse: Reuse) -> None:
        self._unet = unet
        self._reuse = reuse
        self._deep: Tensor | None = None
        self._crossed: TextKeys | None = None

    def __call__(self, i: int, x: Tensor, t: Tensor | TimeKeys, text: TextKeys) -> Tensor:
        """Predict at evaluation i; see `UNet.forward` for the rest. The first call's `begins` must hold."""
        unet, reuse = self._unet, self._reuse
        time = t if isinstance(t, TimeKeys) else unet.time_keys(t)
        if not reuse.crosses(i):
            assert self._crossed is not None
            text = self._crossed
        # the last evaluation that computes both is the one to keep
        keeps = reuse.deep(i) and reuse.crosses(i) and not reuse.crosses(i + reuse.deep_every)
        crossed: list[Tensor] | None = [] if keeps else None
        h = unet.first(x)
        deep = unet.deep(h, time, text, crossed) if reuse.deep(i) else self._deep
        assert deep is not None
        # copies, because CUDA graphs write what comes after where they wrote this
        if reuse.deep(i) and reuse.deep_every > 1:
            self._deep = deep.clone()
        rows = unet.last(h, deep, time, text, crossed)
        if crossed is not None:
            self._crossed = TextKeys(tuple(one.clone() for one in crossed))
        return rows.to(x.dtype)
