"""An approximation of the UNet: an evaluation reuses deep features of an earlier one."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sld.speed.keys import KeyedUNet, TextKeys, TimeKeys


@dataclass(frozen=True)
class Reuse:
    """Settings of reuse: which evaluations reuse features of earlier ones. By default none do.

    Reuse changes pictures; docs/performance.md says how much. Features are kept for each row of an image, and the index
    of the evaluation alone decides when they are computed, so pictures stay the same in any batch. This needs all rows
    at every evaluation, also idle and equal ones.

    Attributes:
        deep_every: k >= 1. All of the UNet but its last block on the way up is computed at every k-th evaluation only.
            In between, that block takes the deep features of the last full evaluation and the skip connection of the
            new latents (DeepCache, Ma et al., CVPR 2024, arXiv 2312.00858, with its shallowest branch). 1 changes
            nothing.

    Raises:
        ValueError: `deep_every` is out of range.
    """

    deep_every: int = 1

    def __post_init__(self) -> None:
        if type(self.deep_every) is not int or self.deep_every < 1:
            raise ValueError(f"deep_every must be a whole number >= 1; got {self.deep_every!r}")

    def __bool__(self) -> bool:
        """Return whether any evaluation reuses features."""
        return self.deep_every > 1

    def deep(self, i: int) -> bool:
        """Return whether evaluation i computes the whole network, so that a run can go on from there."""
        return i % self.deep_every == 0

    def require(self, numerics: str, start: int) -> None:
        """Refuse a run from evaluation `start` on that these settings do not allow.

        Raises:
            ValueError: numerics are "reference", or the first evaluation needs features that no state holds.
        """
        if self and numerics == "reference":
            raise ValueError(
                "deep features kept from earlier evaluations are an approximation, and numerics are 'reference': take "
                "numerics 'fast' or 'invariant'"
            )
        if not self.deep(start):
            at = max(i for i in range(start + 1) if self.deep(i))
            raise ValueError(
                f"evaluation {start} takes over what an earlier one has computed, which a state does not hold: go on "
                f"from evaluation {at}"
            )


NO_REUSE = Reuse()
"""The setting with which every evaluation computes the whole network."""


class ReusingUNet:
    """The network for one call of a run at all its evaluations, with the features that it keeps between them."""

    def __init__(self, unet: KeyedUNet, reuse: Reuse) -> None:
        self._unet = unet
        self._reuse = reuse
        self._deep: Tensor | None = None

    def __call__(self, i: int, x: Tensor, time: TimeKeys, text: TextKeys) -> Tensor:
        """Predict at evaluation i, as `KeyedUNet.forward` does. The first evaluation must be a deep one."""
        h = self._unet.first(x)
        if self._reuse.deep(i):
            # a copy, because CUDA graphs overwrite their results at the next call
            self._deep = self._unet.deep(h, time, text).clone()
        assert self._deep is not None
        return self._unet.last(h, self._deep, time, text).to(x.dtype)
