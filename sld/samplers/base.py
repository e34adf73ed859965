"""The interface of samplers: frozen tables of coefficients, and a step that is a pure function of tensors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, NamedTuple, Self, TypeVar

import torch
from torch import Tensor

from sld.samplers.grids import GRIDS
from sld.samplers.process import Estimate, Level, Process
from sld.samplers.schedule import Schedule
from sld.spelling import named

Table = TypeVar("Table", bound=NamedTuple)
State = TypeVar("State", bound=NamedTuple)


class NoHistory(NamedTuple):
    """The state of a sampler that remembers nothing."""


def map_columns(table: Table, f: Callable[[Tensor], Tensor]) -> Table:
    """Return the table with f applied to every column. A column is a tensor or a table."""
    return table._make(f(column) if isinstance(column, Tensor) else map_columns(column, f) for column in table)


@dataclass(frozen=True, eq=False)
class Sampler(ABC, Generic[Table, State]):
    """A sampler, which moves x from noise to data by the estimates of a network.

    A sampler knows no network and no guidance. Everything that changes during a run is handed in and handed back, and
    no image of a batch sees another. In every sampler x has unit variance at every timestep, and goes to the network as
    it is. It begins as normal noise.

    Attributes:
        timesteps: where the network is asked, in visiting order; PNDM visits its second timestep twice.
        table: coefficients, one row per evaluation. Computed once, so that a compiled step holds no square roots.
        stochastic: whether `step` needs noise.
        begin: standard deviation of x before the first evaluation.
        alpha_bar: (n,), of x at the evaluations, where the sampler's path says it; None for the schedule's table at
            `timesteps`. The two differ for Karras' sigmas, and where the terminal SNR is 0 but sigma ends at 4096.
    """

    timesteps: tuple[float, ...]
    table: Table
    stochastic: bool = False
    begin: float = 1.0
    alpha_bar: Tensor | None = None

    @classmethod
    @abstractmethod
    def at(cls, schedule: Schedule, timesteps: Sequence[float], begun: int = 0) -> Self:
        """Return the sampler that visits these timesteps, or the last of them.

        Args:
            schedule: the model's.
            timesteps: falling, in [0, T - 1]; whole numbers read the schedule's table, others lie between its entries.
            begun: number of the first timesteps that are left out, for a run that starts from a picture.

        Raises:
            ValueError: they do not fall, or leave the schedule.
        """

    @classmethod
    def grid(cls, schedule: Schedule, steps: int, spacing: str) -> tuple[float, ...]:
        """Return the timesteps of a run of `steps` steps.

        Args:
            schedule: the model's.
            steps: in [1, T].
            spacing: a key of `GRIDS`.

        Raises:
            ValueError: there is no such spacing, or the steps do not fit the schedule.
        """
        return named("spacing", spacing, GRIDS)(schedule, steps)

    @classmethod
    def leading(cls, schedule: Schedule, steps: int, **settings: Any) -> Self:
        """Return the sampler on `steps` leading timesteps; `settings` go to `at`."""
        return cls.at(schedule, cls.grid(schedule, steps, "leading"), **settings)

    @classmethod
    def trailing(cls, schedule: Schedule, steps: int, **settings: Any) -> Self:
        """Return the sampler on `steps` trailing timesteps; `settings` go to `at`."""
        return cls.at(schedule, cls.grid(schedule, steps, "trailing"), **settings)

    @classmethod
    def linspace(cls, schedule: Schedule, steps: int, **settings: Any) -> Self:
        """Return the sampler on `steps` timesteps from T - 1 to 0, fractional; `settings` go to `at`."""
        return cls.at(schedule, cls.grid(schedule, steps, "linspace"), **settings)

    def to(self, device: torch.device | str) -> Self:
        """Return the same sampler with its table on `device`."""
        alpha_bar = None if self.alpha_bar is None else self.alpha_bar.to(device)
        return replace(self, table=map_columns(self.table, lambda column: column.to(device)), alpha_bar=alpha_bar)

    def levels(self, process: Process) -> Level:
        """Return the level of x at every evaluation, (n,) each, in a process."""
        if self.alpha_bar is not None:
            return Level.of(self.alpha_bar)
        return process.level(torch.tensor(self.timesteps))

    def row(self, i: Tensor | int) -> Table:
        """Return the coefficients of evaluation i, 0-d each."""
        # not column[i]: a 0-d index is read as a number, for which the host waits
        return map_columns(
            self.table, lambda column: column.gather(0, torch.as_tensor(i, device=column.device).reshape(1)).squeeze()
        )

    @abstractmethod
    def init(self, x: Tensor) -> State:
        """Return the state before the first evaluation of latents x (b, c, h, w), with their dtype and device."""

    @abstractmethod
    def step(
        self, i: Tensor | int, x: Tensor, estimate: Estimate, state: State, noise: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Return x at the next timestep, or clean latents after the last one, and the next state.

        Args:
            i: index of this network evaluation, from 0; as a 0-d int64 tensor it costs a compiled step no new graph.
            x: latents (b, c, h, w) at `timesteps[i]`, float32 or wider.
            estimate: what the (guided) prediction says of x; see `Process.estimate`.
            state: what `init` or the previous call returned.
            noise: standard normal (b, c, h, w), read only by a stochastic sampler.

        Raises:
            ValueError: the sampler is stochastic and there is no noise.
        """
