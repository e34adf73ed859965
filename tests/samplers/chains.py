"""Whole runs on a synthetic network, for the tests of this folder."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sld.config import ScheduleConfig
from sld.samplers import DDIM, LMS, PNDM, DPMpp2M, Estimate, Euler, EulerAncestral, Sampler, Schedule

SAMPLERS: dict[str, Callable[[Schedule, int], Sampler]] = {
    "ddim leading": DDIM.leading,
    "ddim trailing": DDIM.trailing,
    "ddim eta": lambda schedule, steps: DDIM.leading(schedule, steps, eta=0.7),
    "pndm leading": PNDM.leading,
    "pndm trailing": PNDM.trailing,
    "pndm of outputs": lambda schedule, steps: PNDM.leading(schedule, steps, history="output"),
    "euler leading": Euler.leading,
    "euler trailing": Euler.trailing,
    "euler linspace": Euler.linspace,
    "ancestral leading": EulerAncestral.leading,
    "ancestral trailing": EulerAncestral.trailing,
    "ancestral linspace": EulerAncestral.linspace,
    "lms leading": LMS.leading,
    "lms trailing": LMS.trailing,
    "lms linspace": LMS.linspace,
    "dpmpp leading": DPMpp2M.leading,
    "dpmpp trailing": DPMpp2M.trailing,
    "dpmpp linspace": DPMpp2M.linspace,
}


def schedule(dtype: torch.dtype = torch.float32, **changes: Any) -> Schedule:
    return Schedule.from_config(replace(ScheduleConfig(), **changes), dtype)


def normal(seed: int, dtype: torch.dtype = torch.float32, shape: tuple[int, ...] = (2, 4, 6, 5)) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def network(x: Tensor, t: float) -> Tensor:
    """A nonlinear function of every pixel, its neighbour and the timestep, about as large as noise."""
    t = float(t)
    return torch.tanh(1.3 * x + 0.5 * math.sin(t / 90)) + 0.3 * math.cos(t / 250) * x.roll(1, -1)


def estimate(output: Tensor, x: Tensor, t: float, process: Schedule | None = None) -> Estimate:
    """What an output at timestep t says of x, on the schedule of x's dtype where no other is given."""
    process = process or schedule(x.dtype)
    return process.estimate(output, x, process.level(t))


def steps(sampler: Sampler, x: Tensor, state: Any, start: int = 0) -> Iterator[tuple[Tensor, Any]]:
    """(x, state) after every evaluation from `start` on; the noise of evaluation i has the seed 100 + i."""
    for i in range(start, len(sampler.timesteps)):
        noise = normal(100 + i, x.dtype, tuple(x.shape)) if sampler.stochastic else None
        x, state = sampler.step(i, x, estimate(network(x, sampler.timesteps[i]), x, sampler.timesteps[i]), state, noise)
        yield x, state


def chain(sampler: Sampler, x: Tensor) -> Tensor:
    """x after every evaluation, (n, b, c, h, w)."""
    return torch.stack([x for x, _ in steps(sampler, x, sampler.init(x))])
