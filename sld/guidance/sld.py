"""Safe Latent Diffusion (Schramowski et al., CVPR 2023, arXiv 2211.05105).

Equation numbers are the paper's. Where its text and its authors' code (ml-research/safe-latent-diffusion, commit
a42923c) disagree, this file follows the code; `sld.guidance.readings` holds the other readings.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from numbers import Integral
from typing import ClassVar, NamedTuple, Self, final

import torch
from torch import Tensor

from sld.guidance.base import Guidance, Start, per_image, require, require_scale
from sld.guidance.cfg import ClassifierFreeGuidance
from sld.names import named

DEFAULT_CONCEPT = (
    "hate, harassment, violence, suffering, humiliation, harm, suicide, sexual, nudity, bodily fluids, blood, obscene "
    "gestures, illegal activity, drug use, theft, vandalism, weapons, child abuse, brutality, cruelty"
)
"""The safety concept of the paper and of the official repository."""

DIFFUSERS_CONCEPT = f"an image showing {DEFAULT_CONCEPT}"
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


def safety_mask(eps: Predictions, p: SLDParams) -> Tensor:
    """The paper's mu (b, c, h, w), in [0, 1]: how strongly each element is pulled away from the safety concept.

    The comparison is on the signed gap. Written as "zero where the gap reaches the threshold", it leaves NaN as NaN.
    """
    gap = eps.text - eps.safety
    phi = gap * p.safety_scale  # Eq. 6
    return torch.where(gap >= p.threshold, 0, phi.abs().clamp(max=1))  # Eq. 5, which prints max(1, |phi|)


def safe_latent_guidance(
    eps: Predictions,
    momentum: Tensor,
    i: Tensor | int,
    p: SLDParams,
    mask: Callable[[Predictions, SLDParams], Tensor] = safety_mask,
) -> tuple[Tensor, Tensor]:
    """One step of SLD, element by element and bit-equal in float32 to diffusers' StableDiffusionPipelineSafe.

    Momentum gathers from the first evaluation on, during warm-up too, and already contains itself when it is folded.

    Args:
        eps: predictions (b, c, h, w).
        momentum: nu (b, c, h, w); zeros at i = 0.
        i: index of this network evaluation, from 0; guidance is safe from i = warmup_steps on.
        p: hyper-parameters.
        mask: computes mu.

    Returns:
        The guided prediction and the next momentum, both (b, c, h, w).
    """
    mu = mask(eps, p)
    gamma = (eps.safety - eps.uncond) * mu + momentum * p.momentum_scale  # Eq. 7
    nu = momentum * p.momentum_beta + gamma * p.momentum_rest  # Eq. 8
    direction = eps.text - eps.uncond
    direction = torch.where(i >= p.warmup_steps, direction - gamma, direction)
    return eps.uncond + direction * p.guidance_scale, nu  # Eq. 3


def no_warmup(p: SLDParams) -> SLDParams:
    """The same hyper-parameters without a warm-up, for every reading of where one ends."""
    return p._replace(warmup_steps=torch.full_like(p.warmup_steps, -1))


@dataclass(frozen=True, kw_only=True)
class SLDConfig:
    """Hyper-parameters of SLD.

    Attributes:
        safety_scale: s_S >= 0. From 1 / |gap| on it makes no difference, so the presets act almost as 0/1 masks.
        threshold: lambda, any number; inf masks nothing, -inf everything. Max's 1.0 still masks gaps of 1 and more.
        momentum_scale: s_m in [0, 1].
        momentum_beta: beta_m in [0, 1).
        warmup_steps: delta >= 0, in network evaluations; a run of no more than these is plain classifier-free guidance.
        warmup_fraction: the warm-up as a part of the run, in [0, 1]. Where given it takes the place of `warmup_steps`,
            so that a preset can be rescaled with `dataclasses.replace`: the warm-up then ends at the first evaluation i
            with i / steps >= warmup_fraction.
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
        require("SLDConfig: threshold", self.threshold, lambda t: t == t, "a number (inf to mask nothing)")
        require("SLDConfig: momentum_scale", self.momentum_scale, lambda s: 0 <= s <= 1, "in [0, 1]")
        require("SLDConfig: momentum_beta", self.momentum_beta, lambda b: 0 <= b < 1, "in [0, 1)")
        require(
            "SLDConfig: warmup_steps",
            self.warmup_steps,
            lambda n: isinstance(n, Integral) and n >= 0,
            "a whole number >= 0 (for a part of the run give warmup_fraction)",
        )
        if self.warmup_fraction is not None:
            require("SLDConfig: warmup_fraction", self.warmup_fraction, lambda f: 0 <= f <= 1, "in [0, 1], or None")

    def warmup(self, steps: int) -> int:
        """Number of evaluations in the warm-up of a run of `steps` evaluations."""
        if self.warmup_fraction is None:
            return self.warmup_steps
        # ceil(fraction * steps) would make 8 of 0.14 * 50
        return next(i for i in range(steps + 1) if i / steps >= self.warmup_fraction)

    def params(
        self, steps: int, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
    ) -> SLDParams:
        """The hyper-parameters as 0-d tensors for a run of `steps` evaluations; `dtype` is that of real ones."""

        def real(value: float) -> Tensor:
            return torch.tensor(value, dtype=dtype, device=device)

        return SLDParams(
            guidance_scale=real(self.guidance_scale),
            safety_scale=real(self.safety_scale),
            threshold=real(self.threshold),
            momentum_scale=real(self.momentum_scale),
            momentum_beta=real(self.momentum_beta),
            momentum_rest=real(1 - self.momentum_beta),
            warmup_steps=torch.tensor(self.warmup(steps), dtype=torch.int64, device=device),
        )


# Values: the paper's table of configurations and the official model card. diffusers has 20 for Weak's safety scale.
WEAK = SLDConfig(warmup_steps=15, safety_scale=200, threshold=0.0, momentum_scale=0.0, momentum_beta=0.0)
MEDIUM = SLDConfig(warmup_steps=10, safety_scale=1000, threshold=0.01, momentum_scale=0.3, momentum_beta=0.4)
STRONG = SLDConfig(warmup_steps=7, safety_scale=2000, threshold=0.025, momentum_scale=0.5, momentum_beta=0.7)
MAX = SLDConfig(warmup_steps=0, safety_scale=5000, threshold=1.0, momentum_scale=0.5, momentum_beta=0.7)
PRESETS: dict[str, SLDConfig] = {"weak": WEAK, "medium": MEDIUM, "strong": STRONG, "max": MAX}
"""The paper's four configurations, weakest first."""

OFF = SLDConfig(warmup_steps=0, safety_scale=0, threshold=0.0, momentum_scale=0.0, momentum_beta=0.0)
"""Classifier-free guidance as a configuration, for a batch in which only some images are guarded."""


def preset(name: str) -> SLDConfig:
    """The configuration called `name`: one of PRESETS, or "off".

    Raises:
        ValueError: there is none of this name; the message names the nearest.
    """
    return named("SLD preset", name, {"off": OFF, **PRESETS})


class Momentum(NamedTuple):
    """The state of SLD: nu (b, c, h, w), which is to stay in the latents' float32."""

    nu: Tensor


Reading = Callable[[Predictions, Tensor, Tensor | int, SLDParams], tuple[Tensor, Tensor]]
"""A reading of the paper's equations: (eps, momentum, i, p) -> (guided prediction, next momentum)."""


@final
@dataclass(frozen=True)
class SafeLatentGuidance(Guidance[Predictions, Momentum, SLDParams]):
    """Classifier-free guidance that is pulled away from a safety concept where the text comes close to it.

    The warm-up counts network evaluations, as the official code does, and not sampler steps (51 for PNDM's 50). On
    checkpoints that predict v, the rows may be v or eps; unlike classifier-free guidance, SLD gives different results
    in the two, because its thresholds act on other numbers.

    Attributes:
        config: hyper-parameters, for all images or one for each; `OFF` for images that are not to be guarded.
        reading: the equations; `sld.guidance.readings` has others. In the warm-up the safety prediction must act
            through nu * momentum_scale only, as `idle` relies on.
    """

    config: SLDConfig | tuple[SLDConfig, ...]
    reading: Reading = safe_latent_guidance

    rows_type: ClassVar[type[NamedTuple]] = Predictions

    def idle(self, i: int, steps: int) -> frozenset[str]:
        """The safety concept, during a warm-up without momentum: what it leaves in nu is never read.

        With momentum its row is needed from the first evaluation on. At a scale of 0 the mask is 0 throughout.
        """
        configs = self.config if isinstance(self.config, tuple) else (self.config,)
        blind = all(self._off(c) or (c.momentum_scale == 0 and i < c.warmup(steps)) for c in configs)
        return frozenset({"safety"} if blind else ())

    def start(self, steps: int) -> Start:
        """The warm-up, which is plain classifier-free guidance; everything, at a scale of 0."""
        if isinstance(self.config, tuple):
            return Start(0, None)  # ask for that of each image
        until = steps if self._off(self.config) else self.config.warmup(steps)
        return Start(until, ("classifier-free", self.config.guidance_scale))

    def of_image(self, k: int) -> Self:
        return replace(self, config=self.config[k]) if isinstance(self.config, tuple) else self

    def _off(self, config: SLDConfig) -> bool:
        """Whether gamma is 0 throughout: another reading's mask need not be 0 at a scale of 0."""
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
        """As the rule itself has it, to the bit, whatever its reading: mu must depend on the gap alone.

        What is asked for are the rows (-1, gap, 0): their gap is the same and e_S - e_0 is 1, so that gamma is mu. A
        momentum that starts from nothing and forgets at once hands gamma out.
        """
        gap = rows.text - rows.safety
        zero = torch.zeros_like(gap)
        p = self.opened(params)._replace(
            momentum_beta=torch.zeros_like(params.momentum_beta), momentum_rest=torch.ones_like(params.momentum_rest)
        )
        _, mu = self.reading(Predictions(zero - 1, gap, zero), zero, 0, p)
        return (mu,)


def guidance_for(choice: str | SLDConfig, guidance_scale: float | None = None) -> Guidance:
    """The rule for a whole batch: SLD, or classifier-free guidance with its two rows where SLD would change nothing.

    Args:
        choice: a preset's name, "off", or a configuration.
        guidance_scale: takes the place of the configuration's own.

    Raises:
        ValueError: the name is unknown or the scale out of range.
    """
    config = preset(choice) if isinstance(choice, str) else choice
    if guidance_scale is not None:
        config = replace(config, guidance_scale=guidance_scale)
    if config.safety_scale == 0:
        return ClassifierFreeGuidance(config.guidance_scale)
    return SafeLatentGuidance(config)
