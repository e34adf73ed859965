"""The measures of one evaluation, as functions of its predictions. `sld.guidance.trace` explains the letters."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sld.guidance.base import flat
from sld.guidance.concepts import ConceptPredictions
from sld.guidance.quantiles import weighted_quantiles
from sld.guidance.vectors import TINY

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Quantiles that are kept of the gap eP - ek over the elements of a region."""

NOBODY = -1
"""The value of `Measures.driver` where no concept has a part in gamma."""


class Measures(NamedTuple):
    """The measures of one evaluation, for images b, regions n and concepts k.

    In a trace, every measure has the evaluations s as its first axis. A norm in a region is the root of the weighted
    mean over places of the squared length over channels.

    Attributes:
        active: share of elements with mu_k > 0, (b, n, k). NaN for a rule without masks.
        saturated: share of elements with mu_k >= 1, (b, n, k). NaN for a rule without masks.
        gap: quantiles QUANTILES of eP - ek over the elements of a region, by weight, (b, n, k, 5).
        would: |gamma| / |d| without a warm-up, (b, n).
        applied: |gamma| / |d| as it acts, (b, n).
        cosine: of the angle between gamma without a warm-up and d, (b, n); 0 where either is zero.
        nu: norm of the momentum, (b, n); 0 for a rule without momentum.
        conflict: cosines between all pairs of d, g_1, ..., g_K over the whole image, (b, 1 + k, 1 + k).
        would_map: |gamma| of every place without a warm-up, (b, h, w).
        applied_map: |gamma| of every place as it acts, (b, h, w).
        driver: index of the concept whose mu_k g_k is most aligned with gamma without a warm-up, for every place,
            (b, h, w), int8. It is the first of parallel terms, and NOBODY where gamma or all terms are zero.
    """

    active: Tensor
    saturated: Tensor
    gap: Tensor
    would: Tensor
    applied: Tensor
    cosine: Tensor
    nu: Tensor
    conflict: Tensor
    would_map: Tensor
    applied_map: Tensor
    driver: Tensor


def measure(
    eps: ConceptPredictions, would: Tensor, applied: Tensor, mu: tuple[Tensor, ...], nu: Tensor, weights: Tensor
) -> Measures:
    """Return all measures of one evaluation.

    Args:
        eps: predictions (b, c, h, w).
        would, applied: gamma (b, c, h, w) without the warm-up and with it.
        mu: mask (b, c, h, w) of every concept; empty for a rule without masks.
        nu: momentum (b, c, h, w).
        weights: weights of the regions, (n, b, h, w).
    """
    d = eps.text - eps.uncond
    g = [e - eps.uncond for e in eps.concepts]
    elements = weights[:, :, None].expand(-1, -1, d.shape[1], -1, -1)
    masks = mu or tuple(torch.full_like(d, torch.nan) for _ in g)
    # a NaN is neither active nor inactive
    active = [torch.where(m.isnan(), m, (m > 0).to(m.dtype)) for m in masks]
    saturated = [torch.where(m.isnan(), m, (m >= 1).to(m.dtype)) for m in masks]
    length = _norm(d, weights)
    return Measures(
        active=_columns([_mean(share, elements) for share in active], d, weights),
        saturated=_columns([_mean(share, elements) for share in saturated], d, weights),
        gap=_gaps([eps.text - e for e in eps.concepts], elements, d),
        would=_norm(would, weights) / length,
        applied=_norm(applied, weights) / length,
        cosine=_dot(would, d, weights) / (_norm(would, weights) * length).clamp(min=TINY),
        nu=_norm(nu, weights),
        conflict=cosines([d, *g]),
        would_map=would.square().sum(1).sqrt(),
        applied_map=applied.square().sum(1).sqrt(),
        driver=driver(would, [x * m for x, m in zip(g, mu, strict=True)] if mu else g),
    )


def momentum(state: NamedTuple, like: Tensor) -> Tensor:
    """Return the momentum (b, c, h, w) in the state of any rule; zeros where there is none.

    Rules call it nu. In the state of a wrapping it may lie deeper.

    Args:
        state: of a rule.
        like: a tensor of the momentum's shape, dtype and device.
    """
    return next((tensor for name, tensor in flat(state).items() if name.endswith("nu")), torch.zeros_like(like))


def cosines(directions: list[Tensor]) -> Tensor:
    """Cosines (b, k, k) between all pairs of k directions (b, c, h, w), image by image; 0 for a direction of zero."""
    lines = torch.stack([direction.flatten(1) for direction in directions], dim=1)
    unit = lines / lines.norm(dim=2, keepdim=True).clamp(min=TINY)
    return unit @ unit.mT


def driver(gamma: Tensor, terms: list[Tensor]) -> Tensor:
    """Return for every place the index of the term that is most aligned with gamma, whatever its sign and length.

    Args:
        gamma: (b, c, h, w).
        terms: one for every concept, each (b, c, h, w).

    Returns:
        (b, h, w), int8. The first of equally aligned terms; NOBODY where gamma or all terms are zero.
    """
    best, score = torch.full_like(gamma[:, 0], NOBODY, dtype=torch.int8), torch.zeros_like(gamma[:, 0])
    for k, term in enumerate(terms):
        aligned = (gamma * term).sum(1).abs() / term.square().sum(1).sqrt().clamp(min=TINY)
        best, score = torch.where(aligned > score, k, best).to(torch.int8), torch.maximum(aligned, score)
    return best


def _dot(a: Tensor, b: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean over places of the inner product over channels, (b, n)."""
    return _mean((a * b).sum(1), weights)


def _norm(a: Tensor, weights: Tensor) -> Tensor:
    return _dot(a, a, weights).sqrt()


def _mean(x: Tensor, weights: Tensor) -> Tensor:
    """Weighted means (b, n) of x (b, ...), for weights (n, b, ...)."""
    return ((x * weights).flatten(2).sum(2) / weights.flatten(2).sum(2)).T


def _columns(columns: list[Tensor], x: Tensor, weights: Tensor) -> Tensor:
    """Return (b, n, k) from k columns (b, n); k may be 0."""
    return torch.stack(columns, dim=2) if columns else x.new_empty(len(x), len(weights), 0)


def _gaps(gaps: list[Tensor], elements: Tensor, x: Tensor) -> Tensor:
    if not gaps:
        return x.new_empty(len(x), len(elements), 0, len(QUANTILES))
    weights = elements.flatten(2)
    return torch.stack([weighted_quantiles(gap.flatten(1), weights, QUANTILES) for gap in gaps], dim=2).transpose(0, 1)
