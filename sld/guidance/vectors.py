"""Predictions as vectors: products and components, image by image, over all channels and places of an image."""

from __future__ import annotations

from torch import Tensor

TINY = 1e-30
"""The least length, or square of a length, that is divided by. It keeps a vector of zeros from making NaN."""


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product of a and b (b, c, h, w) for every image, (b, 1, 1, 1)."""
    return (a * b).sum(dim=(1, 2, 3), keepdim=True)


def component(a: Tensor, b: Tensor) -> Tensor:
    """Component of a along b, both (b, c, h, w), image by image; zero where b is zero."""
    return b * (dot(a, b) / dot(b, b).clamp(min=TINY))


def perpendicular(a: Tensor, b: Tensor) -> Tensor:
    """Return a (b, c, h, w) without its component along b, image by image; a itself where b is zero."""
    return a - component(a, b)
