"""Euler's method and its ancestral form (k-diffusion's sample_euler and sample_euler_ancestral).

On x of unit variance, Euler's step in k-diffusion's coordinates x * sqrt(1 + sigma**2) is DDIM's, and the ancestral one
is DDIM's with eta = 1. They differ from `DDIM` in the path, which ends at sigma = 0.

diffusers begins the samplers of the k-diffusion family (these and LMS) at sigma_max times normal noise for linspace and
trailing, a standard deviation a little below 1 in our scale (by 0.2 % for Stable Diffusion), and at 1 for leading. So
does `make_sampler`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from torch import Tensor

from sld.samplers.base import NoHistory, Sampler, map_columns
from sld.samplers.ddim import Moves, move
from sld.samplers.grids import require_falling
from sld.samplers.process import Estimate, transfer
from sld.samplers.schedule import Schedule


def moves(schedule: Schedule, path: Tensor, eta: float) -> Moves:
    """DDIM's moves along a path to sigma = 0, rounded once, to the schedule's dtype."""
    return map_columns(Moves.along(path, eta), lambda column: column.to(schedule.alpha_bar.dtype))


@final
@dataclass(frozen=True, eq=False)
class Euler(Sampler[Moves, NoHistory]):
    """Euler's method for the probability flow ODE; k-diffusion's sample_euler without churn."""

    @classmethod
    def at(cls, schedule: Schedule, timesteps: Sequence[float], begun: int = 0, karras: bool = False) -> Euler:
        """Return the sampler that visits these timesteps, or as many levels of Karras' between the first and the last.

        Of either the first `begun` are left out.

        Raises:
            ValueError: the timesteps do not fall, or leave the schedule.
        """
        require_falling(schedule, timesteps)
        visited, path = tuple(timesteps), schedule.path_to_x0(timesteps)
        if karras:
            visited, path = schedule.karras(timesteps[0], timesteps[-1], len(timesteps))
        visited, path = visited[begun:], path[begun:]
        return cls(visited, moves(schedule, path, eta=0), alpha_bar=path[:-1].to(schedule.alpha_bar.dtype))

    def init(self, x: Tensor) -> NoHistory:
        return NoHistory()

    def step(
        self, i: Tensor | int, x: Tensor, estimate: Estimate, state: NoHistory, noise: Tensor | None = None
    ) -> tuple[Tensor, NoHistory]:
        return transfer(estimate, self.row(i).b), state


@final
@dataclass(frozen=True, eq=False)
class EulerAncestral(Sampler[Moves, NoHistory]):
    """Euler steps past the next timestep, each followed by fresh noise that leads back to it.

    The last step adds none: its noise has standard deviation 0.
    """

    @classmethod
    def at(cls, schedule: Schedule, timesteps: Sequence[float], begun: int = 0) -> EulerAncestral:
        require_falling(schedule, timesteps)
        visited, path = tuple(timesteps[begun:]), schedule.path_to_x0(timesteps[begun:])
        alpha_bar = path[:-1].to(schedule.alpha_bar.dtype)
        return cls(visited, moves(schedule, path, eta=1), stochastic=True, alpha_bar=alpha_bar)

    def init(self, x: Tensor) -> NoHistory:
        return NoHistory()

    def step(
        self, i: Tensor | int, x: Tensor, estimate: Estimate, state: NoHistory, noise: Tensor | None = None
    ) -> tuple[Tensor, NoHistory]:
        return move(estimate, self.row(i), noise), state
