"""Quantiles of predictions: per channel, as SEGA needs them, and by weight, as traces need them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def channel_quantile(x: Tensor, q: Tensor) -> Tensor:
    """Return the q-quantile of every channel of every image over its h * w elements, linear between neighbours.

    The bits are those of torch.quantile, which takes no q per image.

    Args:
        x: (b, c, h, w).
        q: in [0, 1], 0-d or (b, 1, 1, 1).

    Returns:
        (b, c, 1, 1).
    """
    ordered = x.flatten(2).sort(dim=2).values
    rank = (q * (ordered.shape[2] - 1)).reshape(-1, 1, 1).expand(*ordered.shape[:2], 1)
    below, above = (ordered.gather(2, at.long()) for at in (rank.floor(), rank.ceil()))
    return torch.lerp(below, above, rank - rank.floor()).unsqueeze(-1)


def weighted_quantiles(x: Tensor, weights: Tensor, q: Sequence[float]) -> Tensor:
    """Return quantiles of x by weight, each a value of x.

    The q-quantile is the least value for which the values up to it carry a share q of the weight.

    Args:
        x: (b, m).
        weights: >= 0, not all 0, (n, b, m).
        q: k shares in [0, 1].

    Returns:
        (n, b, k).
    """
    ordered, order = x.sort(dim=1)
    below = weights.gather(2, order.expand_as(weights)).cumsum(2)
    shares = torch.tensor(q, dtype=x.dtype, device=x.device)
    at = torch.searchsorted(below, below[..., -1:] * shares).clamp(max=x.shape[1] - 1)
    return ordered.expand_as(weights).gather(2, at)
