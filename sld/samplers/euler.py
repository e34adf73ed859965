"""Euler's method and its ancestral form (k-diffusion's sample_euler and sample_euler_ancestral).

On x of unit variance, Euler's step in k-diffusion's coordinates x * sqrt(1 + sigma**2) is DDIM's, and the ancestral one
is DDIM's with eta = 1. They differ from `DDIM` in the path: it may be fractional and ends at sigma = 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from torch import Tensor

from sld.samplers.base import NoState, SpacedSampler, map_columns
from sld.samplers.ddim import Moves, move
from sld.samplers.schedule import Schedule, transfer


def moves(schedule: Schedule, timesteps: Sequence[float], eta: float) -> Moves:
    """DDIM's moves along the timesteps to sigma = 0, rounded once, to the schedule's dtype."""
    exact = Moves.along(schedule.path_to_x0(timesteps), eta)
    return map_columns(exact, lambda column: column.to(schedule.alpha_bar.dtype))


@final
@dataclass(frozen=True, eq=False)
class Euler(SpacedSampler[Moves, NoState]):
    """Euler's method for the probability flow ODE; k-diffusion's sample_euler without churn."""

    @classmethod
    def at(cls, schedule: Schedule, timesteps: Sequence[float]) -> Euler:
        return cls(tuple(timesteps), moves(schedule, timesteps, eta=0))

    def init(self, x: Tensor) -> NoState:
        return NoState()

    def step(
        self, i: Tensor | int, x: Tensor, eps: Tensor, state: NoState, noise: Tensor | None = None
    ) -> tuple[Tensor, NoState]:
        row = self.row(i)
        return transfer(x, eps, row.a, row.b), state


@final
@dataclass(frozen=True, eq=False)
class EulerAncestral(SpacedSampler[Moves, NoState]):
    """Euler steps past the next timestep, each followed by fresh noise that leads back to it.

    The last step adds none: its noise has standard deviation 0.
    """

    @classmethod
    def at(cls, schedule: Schedule, timesteps: Sequence[float]) -> EulerAncestral:
        return cls(tuple(timesteps), moves(schedule, timesteps, eta=1), stochastic=True)

    def init(self, x: Tensor) -> NoState:
        return NoState()

    def step(
        self, i: Tensor | int, x: Tensor, eps: Tensor, state: NoState, noise: Tensor | None = None
    ) -> tuple[Tensor, NoState]:
        return move(x, eps, self.row(i), noise), state
