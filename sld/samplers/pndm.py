"""PNDM's pseudo linear multistep method (Liu et al., arXiv 2202.09778), as Stable Diffusion runs it (PLMS)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, final

import torch
from torch import Tensor

from sld.samplers.base import Sampler
from sld.samplers.grids import require_falling
from sld.samplers.process import CONVERSIONS, Estimate, Level
from sld.samplers.schedule import Schedule

# Weights of e and of the three predictions before it, then a factor and a divisor. The first rows start the method with
# what history there is, the second as the trapezoid of both ends of the first step. Factor and divisor both stay,
# because diffusers multiplies by 1 / 24 where it divides by 2 and 12, and the last bits differ.
_WEIGHTS = (
    (1, 0, 0, 0, 1, 1),
    (1, 1, 0, 0, 1, 2),
    (3, -1, 0, 0, 1, 2),
    (23, -16, 5, 0, 1, 12),
    (55, -59, 37, -9, 1 / 24, 1),
)


class Coefficients(NamedTuple):
    """One row per evaluation: if it repeats the first step, the multistep combination, the transfer from `start`."""

    again: Tensor
    w: Tensor
    w1: Tensor
    w2: Tensor
    w3: Tensor
    factor: Tensor
    divisor: Tensor
    x_scale: Tensor
    gap: Tensor
    e_divisor: Tensor
    start: Level


class PNDMState(NamedTuple):
    """The state: the start of the last step, and the last three predictions, newest first; (b, c, h, w) each."""

    x: Tensor
    e1: Tensor
    e2: Tensor
    e3: Tensor


@final
@dataclass(frozen=True, eq=False)
class PNDM(Sampler[Coefficients, PNDMState]):
    """Fourth-order multistep sampler; in float32 bit-equal to diffusers' PNDMScheduler with skip_prk_steps=True.

    The first step is taken twice: its end is a second place to ask the network, and from the mean of both answers it is
    taken again from its start. So 50 steps are 51 evaluations (1 step is 1), the second timestep is visited twice, and
    whatever counts evaluations, as SLD's warm-up does, counts 51. The answer at the provisional end is not kept.

    On checkpoints that predict v, the history holds eps. diffusers keeps a history of v, and converts their combination
    with the x of the step alone, which is another method (diffusers' issue 14816). `history="output"` is that reading.

    A run that begins late, as from a picture, begins with a first step that is taken twice, as any run. diffusers
    leaves out the first evaluations of the whole run instead, and with them the repetition, but still counts the second
    of the rest as one. From there on x is one timestep noisier than the network is told. `history="output"` does so.

    Attributes:
        read: how a combination of raw outputs is read, where these are what is kept.
    """

    read: Callable[[Tensor, Tensor, Level], Estimate] | None = None

    @classmethod
    def at(
        cls,
        schedule: Schedule,
        timesteps: Sequence[float],
        begun: int = 0,
        history: Literal["eps", "output"] = "eps",
    ) -> PNDM:
        """The sampler that visits these timesteps, falling, in [0, T - 1], the second of them twice.

        Args:
            schedule, timesteps, begun: as for `Sampler.at`.
            history: what the multistep combination is made of: the noise that each output stands for, or the outputs
                themselves, as in diffusers. On checkpoints that predict eps they are the same.

        Raises:
            ValueError: the timesteps are no such grid, or there is no such history.
        """
        require_falling(schedule, timesteps)
        if history not in ("eps", "output"):
            raise ValueError(f"PNDM's history must be 'eps', or 'output' for diffusers' reading; got {history!r}")
        if history == "eps":
            timesteps, begun = timesteps[begun:], 0
        visited = (*timesteps[:2], *timesteps[1:])[begun:]
        path = schedule.path(timesteps)
        order = torch.arange(len(visited), device=path.device)
        place = order + begun  # among all evaluations, of which the third is at the timestep of the second
        start = place - (place > 1).int() - (order == 1).int()
        a, b = path[start], path[start + 1]
        return cls(
            visited,
            Coefficients(
                order == 1,
                *torch.tensor(_WEIGHTS, dtype=path.dtype, device=path.device)[order.clamp(max=4)].unbind(1),
                x_scale=(b / a) ** 0.5,
                gap=b - a,
                e_divisor=a * (1 - b) ** 0.5 + (a * (1 - a) * b) ** 0.5,
                start=Level.of(a),
            ),
            read=CONVERSIONS[schedule.prediction] if history == "output" else None,
        )

    def init(self, x: Tensor) -> PNDMState:
        return PNDMState(*(torch.zeros_like(x) for _ in PNDMState._fields))

    def step(
        self, i: Tensor | int, x: Tensor, estimate: Estimate, state: PNDMState, noise: Tensor | None = None
    ) -> tuple[Tensor, PNDMState]:
        row = self.row(i)
        e = estimate.eps if self.read is None else estimate.output
        start = torch.where(row.again, state.x, x)
        history = (
            torch.where(row.again, kept, shifted)
            for kept, shifted in zip(state[1:], (e, state.e1, state.e2), strict=True)
        )
        e = row.w * e + row.w1 * state.e1 + row.w2 * state.e2 + row.w3 * state.e3  # Eq. 12
        e = row.factor * e / row.divisor
        if self.read is not None:
            e = self.read(e, start, row.start).eps
        return row.x_scale * start - row.gap * e / row.e_divisor, PNDMState(start, *history)  # Eq. 9
