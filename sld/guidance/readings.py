"""Other readings of Safe Latent Diffusion: where the paper, the official code and diffusers disagree.

`sld.guidance.sld` follows the official code. Every function here departs from it in one point. Those with the signature
of `safe_latent_guidance` are given to the rule as `SafeLatentGuidance(config, reading=...)`.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from sld.guidance.sld import WEAK, Predictions, SLDConfig, SLDParams, next_momentum, phi, safe_latent_guidance

DIFFUSERS_WEAK = replace(WEAK, safety_scale=20)
"""Weak as every release of diffusers has it; paper and model card say 200."""


def printed_mask(eps: Predictions, p: SLDParams) -> Tensor:
    """Return the paper's mu as printed, (b, c, h, w): at least 1 where it acts, and not bounded from above.

    The text around the equation speaks of clipping, and both codes bound mu from above.
    """
    gap = eps.text - eps.safety
    return torch.where(gap >= p.threshold, 0, phi(gap, p.safety_scale).abs().clamp(min=1))  # Eq. 5 as printed


def clamp_as_printed(eps: Predictions, momentum: Tensor, i: Tensor | int, p: SLDParams) -> tuple[Tensor, Tensor]:
    """Return a step of SLD with Eq. 5 as the paper prints it. Shapes as in `safe_latent_guidance`."""
    return safe_latent_guidance(eps, momentum, i, p, mask=printed_mask)


def warmup_without_momentum(eps: Predictions, momentum: Tensor, i: Tensor | int, p: SLDParams) -> tuple[Tensor, Tensor]:
    """Return a step of SLD whose momentum begins after the warm-up. Shapes as in `safe_latent_guidance`.

    This reads the paper's "gamma = 0 if t < delta" literally, with t as the loop index: a gamma of 0 adds nothing to
    the momentum. In the codes, gamma is left out of the prediction during the warm-up, but the momentum gathers it.
    """
    eps_hat, nu = safe_latent_guidance(eps, momentum, i, p)
    without_gamma = next_momentum(momentum, torch.zeros_like(momentum), p.momentum_beta, p.momentum_rest)
    return eps_hat, torch.where(i >= p.warmup_steps, nu, without_gamma)


def warmup_inclusive(eps: Predictions, momentum: Tensor, i: Tensor | int, p: SLDParams) -> tuple[Tensor, Tensor]:
    """Return a step of SLD with a warm-up that is one evaluation longer. Shapes as in `safe_latent_guidance`.

    The docstring in diffusers says so: SLD begins at steps greater than delta.
    """
    return safe_latent_guidance(eps, momentum, i, p._replace(warmup_steps=p.warmup_steps + 1))


def official_applies(config: SLDConfig) -> bool:
    """Return whether the official repository applies SLD with this configuration; here it is applied at every scale."""
    return config.safety_scale >= 1


def diffusers_applies(config: SLDConfig) -> bool:
    """Return whether diffusers applies SLD with this configuration; here it is applied at every scale."""
    return config.safety_scale > 1 and config.guidance_scale > 1
