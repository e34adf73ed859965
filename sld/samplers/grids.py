"""Grids: the timesteps that a run visits, falling from noise to data."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from sld.samplers.schedule import Schedule

Grid = Callable[[Schedule, int], tuple[float, ...]]
"""Function (schedule, steps) -> that many timesteps, falling, in [0, T - 1]."""


def leading(schedule: Schedule, steps: int, beyond: int = 0) -> tuple[int, ...]:
    """Multiples of T // steps from 0, shifted by the schedule's offset, falling; the spacing of Stable Diffusion.

    Where steps do not divide T, a run starts late: at 958 for 30 steps, at 501 for 501. A warning says so.

    Args:
        schedule: the model's.
        steps: number of timesteps.
        beyond: further steps that the schedule is divided into. They would be the last ones, and are left out.

    Raises:
        ValueError: steps is not a whole number in [1, T], or the offset moves the first timestep past T - 1.
    """
    require_steps(steps, len(schedule) - beyond)
    parts = steps + beyond
    stride, rest = divmod(len(schedule), parts)
    timesteps = tuple(k * stride + schedule.steps_offset for k in reversed(range(beyond, parts)))
    if timesteps[0] >= len(schedule):
        raise ValueError(
            f"{steps} leading steps with offset {schedule.steps_offset} start at timestep {timesteps[0]}, the last of "
            f"the schedule is {len(schedule) - 1}: take fewer steps, or trailing ones"
        )
    if rest:
        more = f" and {beyond} more, which this sampler leaves out" if beyond else ""
        warnings.warn(
            f"the {len(schedule)} timesteps of the schedule do not divide into {steps} leading steps{more}: the run "
            f"starts at {timesteps[0]}, although x is pure noise; take {_dividing(len(schedule), steps, beyond)} "
            "steps, or trailing ones (--spacing trailing)",
            stacklevel=2,
        )
    return timesteps


def trailing(schedule: Schedule, steps: int) -> tuple[int, ...]:
    """Return timesteps evenly spaced down from T - 1, without 0 (Lin et al., arXiv 2305.08891, Table 2).

    diffusers adds a timestep -1 for some numbers of steps (the first is 61 for T = 1000). We never do.

    Raises:
        ValueError: steps is not a whole number in [1, T].
    """
    require_steps(steps, len(schedule))
    spaced = np.arange(len(schedule), 0, -len(schedule) / steps)[:steps]
    return tuple(int(t) - 1 for t in spaced.round())


def linspace(schedule: Schedule, steps: int) -> tuple[float, ...]:
    """Return fractional timesteps evenly spaced from T - 1 down to 0, both included. A single step starts at T - 1.

    Raises:
        ValueError: steps is not a whole number in [1, T].
    """
    require_steps(steps, len(schedule))
    # two at least: of one, numpy keeps the start, 0, and a sampler that begins there has no noise to remove
    return tuple(np.linspace(0, len(schedule) - 1, max(steps, 2))[::-1][:steps].tolist())


GRIDS: dict[str, Grid] = {"leading": leading, "trailing": trailing, "linspace": linspace}
"""Grids by the name of their spacing."""


def require_steps(steps: int, most: int) -> None:
    """Refuse a number of steps that is no int, or is outside [1, most]. A bool counts as no int.

    Raises:
        ValueError: says what was expected and what came.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= most:
        raise ValueError(f"steps must be a whole number from 1 to {most}; got {steps!r} (50 is usual)")


def _dividing(number: int, steps: int, beyond: int) -> int:
    """Return the number of steps nearest to `steps` which, with those beyond, divides `number`."""
    fit = (parts - beyond for parts in range(1 + beyond, number + 1) if number % parts == 0)
    return min(fit, key=lambda count: abs(count - steps))


def require_falling(schedule: Schedule, timesteps: Sequence[float]) -> None:
    """Refuse a grid that is empty, does not fall, or leaves [0, T - 1].

    Raises:
        ValueError: says what was expected and what came.
    """
    last = len(schedule) - 1
    falls = all(a > b for a, b in pairwise(timesteps))
    if not timesteps or not falls or not (timesteps[-1] >= 0 and timesteps[0] <= last):
        shown = ", ".join(map(str, timesteps[:4])) + (", …" if len(timesteps) > 4 else "")
        raise ValueError(f"timesteps must fall, one by one, within [0, {last}], and be one at least; got ({shown})")
