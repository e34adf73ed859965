"""DPM-Solver++(2M) (Lu et al., arXiv 2211.01095, Algorithm 2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from torch import Tensor

from sld.samplers.base import Sampler, map_columns
from sld.samplers.grids import leading, linspace, require_falling, require_steps
from sld.samplers.process import Estimate, Level
from sld.samplers.schedule import Schedule


class Coefficients(NamedTuple):
    """Coefficients, one row per evaluation: the extrapolation of x0, and the weights of x and of the result."""

    extrapolation: Tensor
    x_scale: Tensor
    gain: Tensor


class DPMppState(NamedTuple):
    """The state: the x0 of the last evaluation, (b, c, h, w)."""

    x0: Tensor


@final
@dataclass(frozen=True, eq=False)
class DPMpp2M(Sampler[Coefficients, DPMppState]):
    """Second-order multistep sampler that integrates x0 instead of eps; diffusers' "dpmsolver++", midpoint, order 2.

    The first step has no history and the last ends at sigma = 0, where the step in log-SNR is infinite; both are of
    first order, and the last returns x0 itself. diffusers does the same for its final_sigmas_type="zero".

    Leading and linspace divide the schedule into one step more than they take, as diffusers does here and nowhere else,
    so that their last timestep is not next to 0; linspace is rounded to whole timesteps.
    """

    @classmethod
    def grid(cls, schedule: Schedule, steps: int, spacing: str) -> tuple[float, ...]:
        if spacing == "leading":
            return leading(schedule, steps, beyond=1)
        if spacing == "linspace":
            require_steps(steps, len(schedule) - 1)
            return tuple(round(t) for t in linspace(schedule, steps + 1)[:-1])
        return super().grid(schedule, steps, spacing)

    @classmethod
    def at(cls, schedule: Schedule, timesteps: Sequence[float], begun: int = 0, karras: bool = False) -> DPMpp2M:
        """Return the sampler that visits these timesteps, or as many levels of Karras' over the whole schedule.

        Between Karras' the network is asked at the nearest whole timesteps, as in diffusers. Of either the first
        `begun` are left out.

        Raises:
            ValueError: the timesteps do not fall, or leave the schedule.
        """
        require_falling(schedule, timesteps)
        visited, path = tuple(timesteps), schedule.path_to_x0(timesteps)
        if karras:
            near, path = schedule.karras(len(schedule) - 1, 0, len(timesteps))
            visited = tuple(map(round, near))
        visited, path = visited[begun:], path[begun:]
        levels = Level.of(path)
        log_snr = levels.signal.log() - levels.noise.log()
        h = log_snr.diff()
        # 1 / (2 r), with r the last step's h over this one's
        extrapolation = h[1:-1] / h[:-2] / 2 if len(h) > 1 else h[:0]
        zero = torch.zeros_like(h[:1])
        exact = Coefficients(
            extrapolation=torch.cat([zero, extrapolation, zero])[: len(h)],
            x_scale=levels.noise[1:] / levels.noise[:-1],
            gain=-levels.signal[1:] * torch.expm1(-h),
        )
        dtype = schedule.alpha_bar.dtype
        return cls(visited, map_columns(exact, lambda column: column.to(dtype)), alpha_bar=path[:-1].to(dtype))

    def init(self, x: Tensor) -> DPMppState:
        return DPMppState(torch.zeros_like(x))

    def step(
        self, i: Tensor | int, x: Tensor, estimate: Estimate, state: DPMppState, noise: Tensor | None = None
    ) -> tuple[Tensor, DPMppState]:
        row, x0 = self.row(i), estimate.x0
        D = x0 + row.extrapolation * (x0 - state.x0)  # Algorithm 2
        return row.x_scale * x + row.gain * D, DPMppState(x0)  # Algorithm 2
