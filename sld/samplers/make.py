"""Construction of a sampler by name."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from typing import Any

from sld.choices import steps_taken
from sld.config import SAMPLERS
from sld.samplers.base import Sampler
from sld.samplers.schedule import Schedule
from sld.spelling import named


def make_sampler(
    name: str,
    schedule: Schedule,
    steps: int,
    spacing: str | None = None,
    eta: float | None = None,
    strength: float = 1.0,
) -> Sampler[Any, Any]:
    """Return the sampler called `name`.

    Args:
        name: one of `SAMPLERS`.
        schedule: the model's.
        steps: number of steps, in [1, T]; pndm takes one evaluation more.
        spacing: "leading", "trailing" or "linspace"; None for the sampler's usual one.
        eta: how stochastic ddim is, in [0, 1]; None for 0. No other sampler has it.
        strength: the part of the steps that is taken, in (0, 1], rounded down; the first ones are left out. It is below
            1 for a run that starts from a picture.

    Raises:
        ValueError: a name is unknown, or a number out of range.
    """
    entry = named("sampler", name, SAMPLERS)
    spacing = entry.spacings[0] if spacing is None else spacing
    named(f"{name} spacing", spacing, dict.fromkeys(entry.spacings))
    settings = dict(entry.settings)
    if eta is not None:
        if name != "ddim":
            raise ValueError(f"eta is a setting of ddim, got eta={eta!r} for {name}: leave it out, or take ddim")
        settings["eta"] = eta
    module, attribute = entry.home.split(":")
    sampler: type[Sampler[Any, Any]] = getattr(import_module(module), attribute)
    timesteps = sampler.grid(schedule, steps, spacing)
    made = sampler.at(schedule, timesteps, len(timesteps) - steps_taken(len(timesteps), strength), **settings)
    if entry.k_diffusion and spacing != "leading":  # as diffusers begins
        return replace(made, begin=float(made.levels(schedule).noise[0]))
    return made
