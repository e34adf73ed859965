"""Predictions as vectors: products and components, image by image, over all channels and places of an image."""

from __future__ import annotations

from torch import Tensor

TINY = 1e-30
"""Least divisor for lengths and their squares, so that a vector of zeros makes no NaN."""


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner product (b, 1, 1, 1) of a and b (b, c, h, w) for every image."""
    return (a * b).sum(dim=(1, 2, 3), keepdim=True)


def component(a: Tensor, b: Tensor) -> Tensor:
    """Return the component of a along b, both (b, c, h, w), image by image; zero where b is zero."""
    return b * (dot(a, b) / dot(b, b).clamp(min=TINY))


def perpendicular(a: Tensor, b: Tensor) -> Tensor:
    """Return a (b, c, h, w) without its component along b, image by image; a itself where b is zero."""
    return a - component(a, b)
