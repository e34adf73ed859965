"""Dynamic negative guidance (Koulischer et al., ICLR 2025, arXiv 2410.14398).

A running estimate says how probable it is that the latents show the negative prompt, and sets the strength of the
guidance away from it. The equations follow the authors' code (FelixKoulischer/Dynamic-Negative-Guidance, commit
99db32d) and are numbered D1 to D4 here. That code has no text prompt; the term of the text here is that of
classifier-free guidance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from torch import Tensor

from sld.guidance.checks import require, require_scale
from sld.guidance.concepts import ConceptGuidance, ConceptPredictions
from sld.guidance.vectors import dot
from sld.samplers.process import Level


class DynamicParams(NamedTuple):
    """The hyper-parameters of dynamic negative guidance as tensors, each 0-d or (b, 1, 1, 1)."""

    guidance_scale: Tensor
    negative_scale: Tensor
    prior: Tensor
    temperature: Tensor
    offset: Tensor
    least: Tensor
    """log(p_min / prior)."""
    most: Tensor
    """log(p_max / prior)."""


class Evidence(NamedTuple):
    """The state: log(p / prior) of every image, (b, 1, 1, 1), where p is the posterior of the negative prompt."""

    log_ratio: Tensor


def dynamic_negative_guidance(eps: ConceptPredictions, log_ratio: Tensor, p: DynamicParams) -> Tensor:
    """Return the guided prediction (b, c, h, w).

    Args:
        eps: predictions (b, c, h, w), with one concept: the negative prompt.
        log_ratio: log(p / prior), (b, 1, 1, 1).
        p: hyper-parameters.
    """
    (negative,) = eps.concepts
    posterior = log_ratio.exp() * p.prior
    strength = p.negative_scale * posterior / (1 - posterior)  # D1
    towards = (eps.text - eps.uncond) * p.guidance_scale
    return eps.uncond + (towards - (negative - eps.uncond) * strength)  # D2


def step_alpha(a: Level, b: Level) -> Tensor:
    """Return DDPM's alpha of the step from level a to level b, 0-d: the ratio of their alpha_bar."""
    return (a.signal / b.signal) ** 2


def posterior_mean(x: Tensor, eps: Tensor, a: Level, b: Level) -> Tensor:
    """Return the mean (b, c, h, w) of DDPM's Gaussian step from level a to level b (arXiv 2006.11239, Eq. 11).

    Args:
        x: latents (b, c, h, w) at level a.
        eps: the noise in x, (b, c, h, w).
        a, b: signal and noise, 0-d each.
    """
    return (x - eps * ((1 - step_alpha(a, b)) / a.noise)) / (a.signal / b.signal)


def evidence(
    eps: ConceptPredictions, log_ratio: Tensor, x: Tensor, y: Tensor, a: Level, b: Level, p: DynamicParams
) -> Tensor:
    """Return log(p / prior) after the sampler's step from x to y, (b, 1, 1, 1).

    The two Gaussians, without and with the negative prompt, have the same variance. The ratio of their densities at y
    therefore needs only the difference of two squared distances. It is computed as a product, which keeps more digits.
    Where the levels a and b are equal, the estimate stays as it is.

    Args:
        eps: predictions of the noise, (b, c, h, w), with one concept.
        log_ratio: the estimate before the step, (b, 1, 1, 1).
        x, y: latents (b, c, h, w) before and after the step.
        a, b: their levels, signal and noise 0-d each.
        p: hyper-parameters.
    """
    (negative,) = eps.concepts
    mean, mean_negative = posterior_mean(x, eps.uncond, a, b), posterior_mean(x, negative, a, b)
    further = dot(mean - mean_negative, y + y - mean - mean_negative)  # D3: |y - mu_c|^2 - |y - mu|^2
    variance = (b.noise / a.noise) ** 2 * (1 - step_alpha(a, b))
    step = (p.offset - further * p.temperature) / (variance + variance)
    step = torch.where(variance > 0, step, 0)
    return (log_ratio + step).clamp(p.least, p.most)  # D4


@final
@dataclass(frozen=True)
class DynamicNegativeGuidance(ConceptGuidance[Evidence, DynamicParams]):
    """Negative guidance that acts where the negative prompt has become probable.

    The estimate is derived for samplers that draw from DDPM's Gaussian step, such as DDIM with eta = 1. Other samplers
    are treated as if they had drawn their result from it. With more elements in a latent the estimate moves faster; a
    temperature below 1 slows it.

    Attributes:
        negative: the negative prompt.
        negative_scale: lambda, finite and >= 0, times p / (1 - p).
        guidance_scale: s_g of the text, finite and >= 0.
        prior: p before the first evaluation, in [p_min, p_max].
        temperature: tau, finite and >= 0; scales the difference of squared distances of every step.
        offset: finite; added in every step. Above 0 it works against a falling estimate.
        p_min, p_max: bounds of the estimate, 0 < p_min <= p_max < 1.

    Raises:
        ValueError: a value is out of its range.
    """

    negative: str
    negative_scale: float = 1.0
    guidance_scale: float = 7.5
    prior: float = 0.2
    temperature: float = 1.0
    offset: float = 0.0
    p_min: float = 1e-6
    p_max: float = 0.99

    def __post_init__(self) -> None:
        name = "DynamicNegativeGuidance"
        require_scale(f"{name}: guidance_scale", self.guidance_scale)
        require_scale(f"{name}: negative_scale", self.negative_scale)
        require(f"{name}: p_min", self.p_min, lambda p: 0 < p < 1, "in (0, 1)")
        require(f"{name}: p_max", self.p_max, lambda p: self.p_min <= p < 1, f"in [p_min, 1), p_min being {self.p_min}")
        bounds = f"in [p_min, p_max], here [{self.p_min}, {self.p_max}]"
        require(f"{name}: prior", self.prior, lambda p: self.p_min <= p <= self.p_max, bounds)
        require(f"{name}: temperature", self.temperature, lambda t: 0 <= t < math.inf, "a finite number >= 0")
        require(f"{name}: offset", self.offset, math.isfinite, "a finite number")

    @property
    def concept_texts(self) -> tuple[str, ...]:
        return (self.negative,)

    def idle(self, i: int, steps: int) -> frozenset[str]:
        """Return the negative prompt if its scale is 0."""
        return frozenset(self.texts) if self.negative_scale == 0 else frozenset()

    def params(
        self, steps: int, batch: int, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
    ) -> DynamicParams:
        def real(value: float) -> Tensor:
            return torch.tensor(value, dtype=dtype, device=device)

        return DynamicParams(
            guidance_scale=real(self.guidance_scale),
            negative_scale=real(self.negative_scale),
            prior=real(self.prior),
            temperature=real(self.temperature),
            offset=real(self.offset),
            least=real(math.log(self.p_min / self.prior)),
            most=real(math.log(self.p_max / self.prior)),
        )

    def init(self, x: Tensor) -> Evidence:
        return Evidence(x.new_zeros(len(x), 1, 1, 1))

    def __call__(
        self, rows: ConceptPredictions, state: Evidence, i: Tensor | int, params: DynamicParams
    ) -> tuple[Tensor, Evidence]:
        return dynamic_negative_guidance(rows, state.log_ratio, params), state

    def moved(
        self,
        rows: ConceptPredictions,
        state: Evidence,
        i: Tensor | int,
        x: Tensor,
        y: Tensor,
        a: Level,
        b: Level,
        params: DynamicParams,
    ) -> Evidence:
        return Evidence(evidence(rows, state.log_ratio, x, y, a, b, params))
