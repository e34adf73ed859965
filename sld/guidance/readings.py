"""Other readings of Safe Latent Diffusion: where the paper, the official code and diffusers disagree.

`sld.guidance.sld` follows the official code. Each function here is one departure from it, to be named by an ablation;
those with the signature of `safe_latent_guidance` are passed as `SafeLatentGuidance(config, reading=...)`.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from sld.guidance.sld import WEAK, Predictions, SLDConfig, SLDParams, safe_latent_guidance

DIFFUSERS_WEAK = replace(WEAK, safety_scale=20)
"""Weak as every release of diffusers has it; paper and model card say 200."""


def printed_mask(eps: Predictions, p: SLDParams) -> Tensor:
    """The paper's mu as printed (b, c, h, w): never less than 1 where it acts, and unbounded.

    The prose around the equation speaks of clipping, and both codes bound mu from above.
    """
    gap = eps.text - eps.safety
    phi = gap * p.safety_scale  # Eq. 6
    return torch.where(gap >= p.threshold, 0, phi.abs().clamp(min=1))  # Eq. 5 as printed


def clamp_as_printed(eps: Predictions, momentum: Tensor, i: Tensor | int, p: SLDParams) -> tuple[Tensor, Tensor]:
    """SLD with Eq. 5 as the paper prints it. Shapes as in `safe_latent_guidance`."""
    return safe_latent_guidance(eps, momentum, i, p, mask=printed_mask)


def warmup_without_momentum(eps: Predictions, momentum: Tensor, i: Tensor | int, p: SLDParams) -> tuple[Tensor, Tensor]:
    """SLD with the paper's "gamma = 0 if t < delta" read literally, t as the loop index.

    A gamma of zero enters the momentum as zero, so that it starts to gather only after the warm-up; the codes leave
    gamma out of the prediction but let it gather. Shapes as in `safe_latent_guidance`.
    """
    eps_hat, nu = safe_latent_guidance(eps, momentum, i, p)
    return eps_hat, torch.where(i >= p.warmup_steps, nu, momentum * p.momentum_beta)  # Eq. 8 with gamma = 0


def warmup_inclusive(eps: Predictions, momentum: Tensor, i: Tensor | int, p: SLDParams) -> tuple[Tensor, Tensor]:
    """SLD that begins one evaluation later: only at steps greater than delta, as diffusers' docstring has it.

    Shapes as in `safe_latent_guidance`.
    """
    return safe_latent_guidance(eps, momentum, i, p._replace(warmup_steps=p.warmup_steps + 1))


def official_applies(config: SLDConfig) -> bool:
    """Whether the official repository would apply SLD at all; here it always is, at any scale."""
    return config.safety_scale >= 1


def diffusers_applies(config: SLDConfig) -> bool:
    """Whether diffusers would apply SLD at all; here it always is, at any scale."""
    return config.safety_scale > 1 and config.guidance_scale > 1
