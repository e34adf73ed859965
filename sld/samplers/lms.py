"""The linear multistep method in sigma (k-diffusion's sample_lms), fourth order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import NamedTuple, final

import torch
from torch import Tensor

from sld.samplers.base import Sampler, map_columns
from sld.samplers.grids import require_falling
from sld.samplers.process import Estimate, Level
from sld.samplers.schedule import Schedule, to_sigma

ORDER = 4


def adams_bashforth(sigma: Sequence[float], i: int) -> list[float]:
    """Weights of the last ORDER slopes, newest first, in the step from sigma[i] to sigma[i + 1].

    Each is the integral over the step of a Lagrange polynomial through the last min(i + 1, ORDER) sigmas; slopes not
    yet known weigh 0. Two Gauss-Legendre nodes integrate cubics exactly, where k-diffusion asks an adaptive quadrature.
    """
    known = range(i, max(i - ORDER, -1), -1)
    middle, half = (sigma[i + 1] + sigma[i]) / 2, (sigma[i + 1] - sigma[i]) / 2
    nodes = (middle - half / 3**0.5, middle + half / 3**0.5)
    weights = [
        half * sum(prod((s - sigma[k]) / (sigma[j] - sigma[k]) for k in known if k != j) for s in nodes) for j in known
    ]
    return weights + [0.0] * (ORDER - len(weights))


class Coefficients(NamedTuple):
    """One row per evaluation: the scale of x, and the weights of eps and of the last three predictions."""

    x_scale: Tensor
    w: Tensor
    w1: Tensor
    w2: Tensor
    w3: Tensor


class LMSState(NamedTuple):
    """The last three predictions, newest first, (b, c, h, w) each."""

    e1: Tensor
    e2: Tensor
    e3: Tensor


@final
@dataclass(frozen=True, eq=False)
class LMS(Sampler[Coefficients, LMSState]):
    """Adams-Bashforth in sigma, of lower order while history is short; eps is the slope k-diffusion integrates."""

    @classmethod
    def at(cls, schedule: Schedule, timesteps: Sequence[float], begun: int = 0, karras: bool = False) -> LMS:
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
        sigma, signal = to_sigma(path).tolist(), Level.of(path).signal
        weights = torch.tensor(
            [adams_bashforth(sigma, i) for i in range(len(visited))], dtype=path.dtype, device=path.device
        )
        exact = Coefficients(signal[1:] / signal[:-1], *(signal[1:, None] * weights).unbind(1))
        dtype = schedule.alpha_bar.dtype
        return cls(visited, map_columns(exact, lambda column: column.to(dtype)), alpha_bar=path[:-1].to(dtype))

    def init(self, x: Tensor) -> LMSState:
        return LMSState(*(torch.zeros_like(x) for _ in LMSState._fields))

    def step(
        self, i: Tensor | int, x: Tensor, estimate: Estimate, state: LMSState, noise: Tensor | None = None
    ) -> tuple[Tensor, LMSState]:
        row, eps = self.row(i), estimate.eps
        x = row.x_scale * x + row.w * eps + row.w1 * state.e1 + row.w2 * state.e2 + row.w3 * state.e3
        return x, LMSState(eps, state.e1, state.e2)
