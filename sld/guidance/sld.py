"""Safe Latent Diffusion (Schramowski et al., CVPR 2023, arXiv 2211.05105).

Equation numbers are the paper's. Where its text and its authors' code (ml-research/safe-latent-diffusion, commit
a42923c) disagree, this file follows the code; `sld.guidance.readings` has the other readings.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple, Self, final

import torch
from torch import Tensor

from sld.config import PAPER_CONCEPT
from sld.guidance.base import Guidance, Start, per_image
from sld.guidance.cfg import ClassifierFreeGuidance, guided
from sld.guidance.checks import require, require_scale, require_whole
from sld.guidance.traceable import Traceable
from sld.spelling import named

DEFAULT_CONCEPT = PAPER_CONCEPT
"""The safety concept of the paper and of the official repository."""

SHOWING = "an image showing "
"""The words before the safety concept in diffusers' pipeline, and in the re-run rows of the published table."""

DIFFUSERS_CONCEPT = SHOWING + DEFAULT_CONCEPT
"""The safety concept of diffusers' StableDiffusionPipelineSafe."""


class Predictions(NamedTuple):
    """Predictions (b, c, h, w): unconditional or of the negative prompt, of the text, of the safety concept."""

    uncond: Tensor
    text: Tensor
    safety: Tensor


class SLDParams(NamedTuple):
    """The hyper-parameters of `SLDConfig` as tensors, each 0-d or (b, 1, 1, 1)."""

    guidance_scale: Tensor
    safety_scale: Tensor
    threshold: Tensor
    momentum_scale: Tensor
    momentum_beta: Tensor
    momentum_rest: Tensor
    """1 - momentum_beta, rounded once. Subtracting the rounded beta from 1 is off by a bit (at 0.4 in float32)."""
    warmup_steps: Tensor


def phi(gap: Tensor, safety_scale: Tensor) -> Tensor:
    """Return the scaled gap between the predictions of text and safety concept, (b, c, h, w) as the gap."""
    return gap * safety_scale  # Eq. 6


def safety_mask(eps: Predictions, p: SLDParams) -> Tensor:
    """Return the paper's mu (b, c, h, w), in [0, 1]: how strongly each element is pulled away from the safety concept.

    The comparison is on the signed gap. Where the gap is NaN, the comparison is false, so that mu is NaN too.
    The paper prints max(1, |phi|) in Eq. 5; its text and its authors' code say min.
    """
    gap = eps.text - eps.safety
    return torch.where(gap >= p.threshold, 0, phi(gap, p.safety_scale).abs().clamp(max=1))  # Eq. 5


def with_momentum(gamma: Tensor, nu: Tensor, momentum_scale: Tensor) -> Tensor:
    """Return gamma (b, c, h, w) with the momentum added to it.

    Args:
        gamma: mu (e_S - e_0), (b, c, h, w).
        nu: momentum (b, c, h, w).
        momentum_scale: s_m, 0-d or (b, 1, 1, 1).
    """
    return gamma + nu * momentum_scale  # Eq. 7


def next_momentum(nu: Tensor, gamma: Tensor, momentum_beta: Tensor, momentum_rest: Tensor) -> Tensor:
    """Return the momentum (b, c, h, w) after an evaluation.

    Args:
        nu: momentum before it, (b, c, h, w).
        gamma: of this evaluation, with its momentum, (b, c, h, w).
        momentum_beta, momentum_rest: beta_m and 1 - beta_m, 0-d or (b, 1, 1, 1).
    """
    return nu * momentum_beta + gamma * momentum_rest  # Eq. 8


def safe_latent_guidance(
    eps: Predictions,
    momentum: Tensor,
    i: Tensor | int,
    p: SLDParams,
    mask: Callable[[Predictions, SLDParams], Tensor] = safety_mask,
) -> tuple[Tensor, Tensor]:
    """Return the guided prediction of one step of SLD, and the next momentum.

    In float32 the result is bit-equal to diffusers' StableDiffusionPipelineSafe. Momentum gathers from the first
    evaluation on, also during the warm-up.

    Args:
        eps: predictions (b, c, h, w).
        momentum: nu (b, c, h, w); zeros at i = 0.
        i: index of this network evaluation, from 0; guidance is safe from i = warmup_steps on.
        p: hyper-parameters.
        mask: computes mu (b, c, h, w).

    Returns:
        The guided prediction and the next momentum, both (b, c, h, w).
    """
    mu = mask(eps, p)
    gamma = with_momentum((eps.safety - eps.uncond) * mu, momentum, p.momentum_scale)
    nu = next_momentum(momentum, gamma, p.momentum_beta, p.momentum_rest)
    direction = eps.text - eps.uncond
    direction = torch.where(i >= p.warmup_steps, direction - gamma, direction)
    return guided(eps.uncond, direction, p.guidance_scale), nu


def no_warmup(p: SLDParams) -> SLDParams:
    """Return the same hyper-parameters without a warm-up, in every reading of where a warm-up ends."""
    return p._replace(warmup_steps=torch.full_like(p.warmup_steps, -1))


@dataclass(frozen=True, kw_only=True)
class SLDConfig:
    """Hyper-parameters of SLD.

    Attributes:
        safety_scale: s_S >= 0. Above 1 / |gap| a larger scale changes nothing, so the presets' masks are almost all 0
            or 1.
        threshold: lambda, any number. SLD acts on gaps below it: everywhere at inf, nowhere at -inf. Max's 1.0 leaves
            out gaps of 1 and more.
        momentum_scale: s_m in [0, 1].
        momentum_beta: beta_m in [0, 1).
        warmup_steps: delta >= 0, in network evaluations; a run that is not longer is plain classifier-free guidance.
        warmup_fraction: the warm-up as a fraction of the run, in [0, 1]. If given, `warmup_steps` is not used, and the
            warm-up ends at the first evaluation i with i / steps >= warmup_fraction. So `dataclasses.replace` rescales
            a preset.
        guidance_scale: s_g, finite and >= 0. The paper asks for more than 1; unlike diffusers, which switches all
            guidance off at s_g <= 1, the equations are applied at every scale.

    Raises:
        ValueError: a value is out of its range, is NaN, or is a bool.
    """

    safety_scale: float
    threshold: float
    momentum_scale: float
    momentum_beta: float
    warmup_steps: int
    warmup_fraction: float | None = None
    guidance_scale: float = 7.5

    def __post_init__(self) -> None:
        require_scale("SLDConfig: guidance_scale", self.guidance_scale)
        require("SLDConfig: safety_scale", self.safety_scale, lambda s: 0 <= s < math.inf, "a finite number >= 0")
        require("SLDConfig: threshold", self.threshold, lambda t: t == t, "a number (inf to act everywhere)")
        require("SLDConfig: momentum_scale", self.momentum_scale, lambda s: 0 <= s <= 1, "in [0, 1]")
        require("SLDConfig: momentum_beta", self.momentum_beta, lambda b: 0 <= b < 1, "in [0, 1)")
        require_whole("SLDConfig: warmup_steps", self.warmup_steps, advice=" (for a part of the run: warmup_fraction)")
        if self.warmup_fraction is not None:
            require("SLDConfig: warmup_fraction", self.warmup_fraction, lambda f: 0 <= f <= 1, "in [0, 1], or None")

    def warmup(self, steps: int) -> int:
        """Return the number of evaluations in the warm-up of a run of `steps` evaluations."""
        if self.warmup_fraction is None:
            return self.warmup_steps
        # ceil(fraction * steps) would make 8 of 0.14 * 50
        return next(i for i in range(steps + 1) if i / steps >= self.warmup_fraction)

    def params(
        self, steps: int, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
    ) -> SLDParams:
        """Return the hyper-parameters as 0-d tensors for a run of `steps` evaluations.

        Real ones have the dtype given, counts are int64.
        """
        values = vars(self) | {"momentum_rest": 1 - self.momentum_beta, "warmup_steps": self.warmup(steps)}
        kinds = {"warmup_steps": torch.int64}
        return SLDParams._make(
            torch.tensor(values[name], dtype=kinds.get(name, dtype), device=device) for name in SLDParams._fields
        )


WEAK = SLDConfig(warmup_steps=15, safety_scale=200, threshold=0.0, momentum_scale=0.0, momentum_beta=0.0)
MEDIUM = SLDConfig(warmup_steps=10, safety_scale=1000, threshold=0.01, momentum_scale=0.3, momentum_beta=0.4)
STRONG = SLDConfig(warmup_steps=7, safety_scale=2000, threshold=0.025, momentum_scale=0.5, momentum_beta=0.7)
MAX = SLDConfig(warmup_steps=0, safety_scale=5000, threshold=1.0, momentum_scale=0.5, momentum_beta=0.7)
PRESETS: dict[str, SLDConfig] = {"weak": WEAK, "medium": MEDIUM, "strong": STRONG, "max": MAX}
"""The paper's four configurations, weakest first."""

OFF = SLDConfig(warmup_steps=0, safety_scale=0, threshold=0.0, momentum_scale=0.0, momentum_beta=0.0)
"""Classifier-free guidance as a configuration, for a batch in which only some images are guarded."""


def preset(name: str) -> SLDConfig:
    """Return the configuration called `name`: one of PRESETS, or "off".

    Raises:
        ValueError: the name is unknown; the message names the nearest.
    """
    return named("SLD preset", name, {"off": OFF, **PRESETS})


class Momentum(NamedTuple):
    """The state of SLD: nu (b, c, h, w), in float32 as the latents, whatever the network's dtype."""

    nu: Tensor


Reading = Callable[[Predictions, Tensor, Tensor | int, SLDParams], tuple[Tensor, Tensor]]
"""A reading of the paper's equations: (eps, momentum, i, p) -> (guided prediction, next momentum)."""


@final
@dataclass(frozen=True)
class SafeLatentGuidance(Traceable[Predictions, Momentum, SLDParams]):
    """Classifier-free guidance that is pulled away from a safety concept where the text comes close to it.

    The warm-up counts network evaluations, as the official code does, and not sampler steps (51 for PNDM's 50). For
    checkpoints that predict v, the rows may be v or eps. Classifier-free guidance gives the same result in both, SLD
    does not: its thresholds act on different numbers.

    Attributes:
        config: hyper-parameters, for all images or one for each; `OFF` gives an image plain classifier-free guidance.
        reading: the equations; `sld.guidance.readings` has other ones. During the warm-up, a reading may use the safety
            prediction only for the momentum, because `idle` relies on that.
    """

    config: SLDConfig | tuple[SLDConfig, ...]
    reading: Reading = safe_latent_guidance

    rows_type: ClassVar[type[NamedTuple]] = Predictions

    def idle(self, i: int, steps: int) -> frozenset[str]:
        """Return the safety condition during a warm-up without momentum, and always at a safety scale of 0.

        With momentum its prediction is needed from the first evaluation on.
        """
        configs = self.config if isinstance(self.config, tuple) else (self.config,)
        blind = all(self._off(c) or (c.momentum_scale == 0 and i < c.warmup(steps)) for c in configs)
        return frozenset({"safety"} if blind else ())

    def start(self, steps: int) -> Start:
        """Return the warm-up, which is plain classifier-free guidance; the whole run at a safety scale of 0.

        Where every image has its own configuration, ask the rule of each (`of_image`).
        """
        if isinstance(self.config, tuple):
            return Start(0, None)
        until = steps if self._off(self.config) else self.config.warmup(steps)
        return Start(until, ("classifier-free", self.config.guidance_scale))

    def of_image(self, k: int) -> Self:
        return replace(self, config=self.config[k]) if isinstance(self.config, tuple) else self

    def _off(self, config: SLDConfig) -> bool:
        """Whether gamma is always 0. In another reading the mask may be above 0 at a safety scale of 0."""
        return config.safety_scale == 0 and self.reading is safe_latent_guidance

    def params(
        self, steps: int, batch: int, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
    ) -> SLDParams:
        if isinstance(self.config, tuple):
            return per_image([config.params(steps, device, dtype) for config in self.config], batch)
        return self.config.params(steps, device, dtype)

    def init(self, x: Tensor) -> Momentum:
        return Momentum(torch.zeros_like(x))

    def __call__(
        self, rows: Predictions, state: Momentum, i: Tensor | int, params: SLDParams
    ) -> tuple[Tensor, Momentum]:
        eps_hat, nu = self.reading(rows, state.nu, i, params)
        return eps_hat, Momentum(nu)

    def opened(self, params: SLDParams) -> SLDParams:
        return no_warmup(params)

    def masks(self, rows: Predictions, params: SLDParams) -> tuple[Tensor, ...]:
        """Return the mu that the reading itself computes, bit for bit. mu must depend on the gap alone.

        The reading returns no mu, but it returns the momentum. For the rows (-1, gap, 0) the gap is the same and
        e_S - e_0 is 1, so gamma is mu. With nu = 0 and beta_m = 0 the next momentum is gamma.
        """
        gap = rows.text - rows.safety
        zero = torch.zeros_like(gap)
        p = self.opened(params)._replace(
            momentum_beta=torch.zeros_like(params.momentum_beta), momentum_rest=torch.ones_like(params.momentum_rest)
        )
        _, mu = self.reading(Predictions(zero - 1, gap, zero), zero, 0, p)
        return (mu,)


def guidance_for(choice: str | SLDConfig, guidance_scale: float | None = None) -> Guidance:
    """Return the rule for a whole batch: SLD, or classifier-free guidance where SLD would change nothing.

    Classifier-free guidance needs two rows of the network per image in place of three.

    Args:
        choice: a preset's name, "off", or a configuration.
        guidance_scale: s_g in place of the configuration's own.

    Raises:
        ValueError: the name is unknown or the scale out of range.
    """
    config = preset(choice) if isinstance(choice, str) else choice
    if guidance_scale is not None:
        config = replace(config, guidance_scale=guidance_scale)
    if config.safety_scale == 0:
        return ClassifierFreeGuidance(config.guidance_scale)
    return SafeLatentGuidance(config)
