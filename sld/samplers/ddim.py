"""DDIM (Song et al., arXiv 2010.02502), and the stochastic steps between it and DDPM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import NamedTuple, final

from torch import Tensor

from sld.samplers.base import NoState, Sampler
from sld.samplers.schedule import Level, Schedule, leading, trailing, transfer


class Moves(NamedTuple):
    """First-order steps, n rows: from level a to level b, then fresh noise with standard deviation sigma."""

    a: Level
    b: Level
    sigma: Tensor

    @classmethod
    def along(cls, alpha_bar: Tensor, eta: float) -> Moves:
        """The moves along a path (n + 1,) of rising alpha_bar; eta is 0 for DDIM and 1 for DDPM."""
        a, b = alpha_bar[:-1], alpha_bar[1:]
        sigma = eta * ((1 - b) / (1 - a) * (1 - a / b)) ** 0.5  # Eq. 16
        return cls(Level.of(a), Level(b**0.5, (1 - b - sigma**2) ** 0.5), sigma)


def move(x: Tensor, eps: Tensor, row: Moves, noise: Tensor | None) -> Tensor:
    """One first-order step of a stochastic sampler; arguments as for `Sampler.step`.

    Raises:
        ValueError: there is no noise.
    """
    if noise is None:
        raise ValueError(
            "a stochastic sampler needs noise at every step; pass noise=torch.randn_like(x), or take eta=0"
        )
    return transfer(x, eps, row.a, row.b) + row.sigma * noise  # Eq. 12


@final
@dataclass(frozen=True, eq=False)
class DDIM(Sampler[Moves, NoState]):
    """First-order sampler. With eta = 0 it is deterministic; eta = 1 samples as DDPM does.

    In float32 bit-equal to diffusers' DDIMScheduler where steps divides T. Where it does not, that scheduler leaves the
    path: it moves by T // steps whatever the next timestep is. This one always arrives where it goes on.
    """

    @classmethod
    def leading(cls, schedule: Schedule, steps: int, eta: float = 0.0) -> DDIM:
        """On `steps` leading timesteps.

        Raises:
            ValueError: steps does not fit the schedule, or eta is not in [0, 1].
        """
        return cls._at(schedule, leading(schedule, steps), eta)

    @classmethod
    def trailing(cls, schedule: Schedule, steps: int, eta: float = 0.0) -> DDIM:
        """On `steps` trailing timesteps.

        Raises:
            ValueError: steps does not fit the schedule, or eta is not in [0, 1].
        """
        return cls._at(schedule, trailing(schedule, steps), eta)

    @classmethod
    def _at(cls, schedule: Schedule, timesteps: Sequence[int], eta: float) -> DDIM:
        if isinstance(eta, bool) or not isinstance(eta, Real) or not 0 <= eta <= 1:
            raise ValueError(f"eta must be a number in [0, 1], 0 for DDIM and 1 for DDPM; got {eta!r}")
        return cls(tuple(timesteps), Moves.along(schedule.path(timesteps), eta), stochastic=eta > 0)

    def init(self, x: Tensor) -> NoState:
        return NoState()

    def step(
        self, i: Tensor | int, x: Tensor, eps: Tensor, state: NoState, noise: Tensor | None = None
    ) -> tuple[Tensor, NoState]:
        row = self.row(i)
        if self.stochastic:
            return move(x, eps, row, noise), state
        return transfer(x, eps, row.a, row.b), state
