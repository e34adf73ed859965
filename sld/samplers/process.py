"""The noise process: the parts of signal and noise in x at a timestep, and the meaning of a network's output.

Three letters need care, for the papers share them. `alpha_bar` is the square of the signal's part of x (DDPM's
cumulative product; DDIM prints it as alpha). `sigma` is k-diffusion's ratio of noise to signal everywhere but in
`sld.samplers.ddim`, where it is DDIM's: the part of fresh noise. The two parts of x themselves are a `Level`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from sld.config import Prediction


class Level(NamedTuple):
    """The level of x = signal * x0 + noise * eps. Unit variance means signal**2 + noise**2 = 1."""

    signal: Tensor
    noise: Tensor

    @classmethod
    def of(cls, alpha_bar: Tensor) -> Level:
        """The level of unit variance whose signal has the power alpha_bar, any shape."""
        return cls(alpha_bar**0.5, (1 - alpha_bar) ** 0.5)

    def over(self, x: Tensor) -> Level:
        """The level () or (b,) shaped to broadcast over x (b, c, h, w)."""
        return Level._make(part.reshape(part.shape + (1,) * (x.ndim - 1) * part.ndim) for part in self)

    def noisy(self, x0: Tensor, eps: Tensor) -> Tensor:
        """Return latents at this level, 0-d or shaped by `over`, of clean ones and noise (b, c, h, w)."""
        return self.signal * x0 + self.noise * eps  # DDPM Eq. 4


class Estimate(NamedTuple):
    """A network's output with the eps and x0 that it implies, all (b, c, h, w).

    Attributes:
        output: as the network, or the guidance rule after it, gave it.
        eps: the noise in x.
        x0: the clean latents in x.
    """

    output: Tensor
    eps: Tensor
    x0: Tensor


def x0_of(x: Tensor, eps: Tensor, a: Level) -> Tensor:
    """Return the x0 in x at level a if its noise is eps."""
    return (x - a.noise * eps) / a.signal  # DDIM Eq. 9


def from_eps(output: Tensor, x: Tensor, a: Level) -> Estimate:
    """Read an output as the noise in x at level a, whose signal is not 0."""
    return Estimate(output, output, x0_of(x, output, a))


def from_v(output: Tensor, x: Tensor, a: Level) -> Estimate:
    """Read an output as v = signal * eps - noise * x0 (Salimans & Ho, arXiv 2202.00512, App. D), of unit variance."""
    return Estimate(output, a.signal * output + a.noise * x, a.signal * x - a.noise * output)


CONVERSIONS: dict[Prediction, Callable[[Tensor, Tensor, Level], Estimate]] = {"eps": from_eps, "v": from_v}
"""Functions (output, x, level of x) -> estimate, by what the network predicts."""


def transfer(estimate: Estimate, b: Level) -> Tensor:
    """Return x of an estimate at level b. With less than unit variance, b leaves room for fresh noise.

    Levels instead of their alpha_bar keep square roots out of a step, where a compiler would round them differently.
    The form and the order of operations are those of diffusers' DDIMScheduler, to the last bit in float32.
    """
    return b.signal * estimate.x0 + b.noise * estimate.eps  # DDIM Eq. 12 without its last term


class Process(ABC):
    """A noise process: the level of x at every timestep, and what the network predicts.

    Attributes:
        prediction: what the network predicts, a key of `CONVERSIONS`.
    """

    prediction: Prediction

    @abstractmethod
    def level(self, t: float | Tensor) -> Level:
        """The level at timestep t, in the shape of t."""

    def estimate(self, output: Tensor, x: Tensor, a: Level) -> Estimate:
        """Return the estimate of a network's output at x.

        Args:
            output: what the network predicted, (b, c, h, w).
            x: the network's input, (b, c, h, w).
            a: the level of x, 0-d or (b,) each.
        """
        return CONVERSIONS[self.prediction](output, x, a.over(x))

    def add_noise(self, x0: Tensor, eps: Tensor, t: float | Tensor) -> Tensor:
        """Noisy latents at timestep t, a number, 0-d or one per image (b,), from clean ones and noise (b, c, h, w)."""
        return self.level(t).over(x0).noisy(x0, eps)
