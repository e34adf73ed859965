"""DDIM (Song et al., arXiv 2010.02502), and the stochastic steps between it and DDPM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import NamedTuple, final

from torch import Tensor

from sld.samplers.base import NoHistory, Sampler
from sld.samplers.grids import require_falling
from sld.samplers.process import Estimate, Level, transfer
from sld.samplers.schedule import Schedule


class Moves(NamedTuple):
    """First-order steps, n rows: to level b, then fresh noise with standard deviation sigma."""

    b: Level
    sigma: Tensor

    @classmethod
    def along(cls, alpha_bar: Tensor, eta: float) -> Moves:
        """Return the moves along a path (n + 1,) of rising alpha_bar; eta is 0 for DDIM and 1 for DDPM."""
        a, b = alpha_bar[:-1], alpha_bar[1:]
        sigma = eta * ((1 - b) / (1 - a) * (1 - a / b)) ** 0.5  # Eq. 16
        return cls(Level(b**0.5, (1 - b - sigma**2) ** 0.5), sigma)


def move(estimate: Estimate, row: Moves, noise: Tensor | None) -> Tensor:
    """Return x after a first-order step of a stochastic sampler. Arguments are those of `Sampler.step`.

    Raises:
        ValueError: there is no noise.
    """
    if noise is None:
        raise ValueError(
            "a stochastic sampler needs noise at every step; pass noise=torch.randn_like(x), or take eta=0"
        )
    return transfer(estimate, row.b) + row.sigma * noise  # Eq. 12


@final
@dataclass(frozen=True, eq=False)
class DDIM(Sampler[Moves, NoHistory]):
    """First-order sampler. With eta = 0 it is deterministic; eta = 1 samples as DDPM does.

    In float32 bit-equal to diffusers' DDIMScheduler where steps divides T. Where it does not, that scheduler leaves the
    path: it moves by T // steps whatever the next timestep is. This one always arrives where it goes on.
    """

    @classmethod
    def at(cls, schedule: Schedule, timesteps: Sequence[float], begun: int = 0, eta: float = 0.0) -> DDIM:
        """Return the sampler that visits these timesteps, falling, in [0, T - 1], but for the first `begun`.

        Raises:
            ValueError: the timesteps are no such grid, or eta is not in [0, 1].
        """
        require_falling(schedule, timesteps)
        if isinstance(eta, bool) or not isinstance(eta, Real) or not 0 <= eta <= 1:
            raise ValueError(f"eta must be a number in [0, 1], 0 for DDIM and 1 for DDPM; got {eta!r}")
        timesteps = timesteps[begun:]
        return cls(tuple(timesteps), Moves.along(schedule.path(timesteps), eta), stochastic=eta > 0)

    def init(self, x: Tensor) -> NoHistory:
        return NoHistory()

    def step(
        self, i: Tensor | int, x: Tensor, estimate: Estimate, state: NoHistory, noise: Tensor | None = None
    ) -> tuple[Tensor, NoHistory]:
        row = self.row(i)
        return move(estimate, row, noise) if self.stochastic else transfer(estimate, row.b), state
