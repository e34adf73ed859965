"""Samplers: how x moves from noise to data."""

from collections.abc import Callable

from sld.samplers.base import NoState, Sampler, SpacedSampler
from sld.samplers.ddim import DDIM
from sld.samplers.dpmpp import DPMpp2M, DPMppState
from sld.samplers.euler import Euler, EulerAncestral
from sld.samplers.lms import LMS, LMSState
from sld.samplers.pndm import PNDM, PNDMState
from sld.samplers.schedule import Level, Schedule, leading, linspace, trailing, transfer, x0_of
from sld.spelling import named

__all__ = [
    "DDIM",
    "LMS",
    "PNDM",
    "SAMPLERS",
    "DPMpp2M",
    "DPMppState",
    "Euler",
    "EulerAncestral",
    "LMSState",
    "Level",
    "NoState",
    "PNDMState",
    "Sampler",
    "Schedule",
    "SpacedSampler",
    "leading",
    "linspace",
    "make_sampler",
    "trailing",
    "transfer",
    "x0_of",
]

SAMPLERS: dict[str, dict[str, Callable[..., Sampler]]] = {
    "ddim": {"leading": DDIM.leading, "trailing": DDIM.trailing},
    "pndm": {"leading": PNDM.leading},
    "euler": {"linspace": Euler.linspace, "leading": Euler.leading, "trailing": Euler.trailing},
    "euler-ancestral": {
        "linspace": EulerAncestral.linspace,
        "leading": EulerAncestral.leading,
        "trailing": EulerAncestral.trailing,
    },
    "lms": {"linspace": LMS.linspace, "leading": LMS.leading, "trailing": LMS.trailing},
    "dpmpp-2m": {"linspace": DPMpp2M.linspace, "leading": DPMpp2M.leading, "trailing": DPMpp2M.trailing},
}
"""Constructors by name and spacing. A name's first spacing is its default, the one of diffusers."""


def make_sampler(
    name: str, schedule: Schedule, steps: int, spacing: str | None = None, eta: float | None = None
) -> Sampler:
    """The sampler called `name`.

    Args:
        name: one of SAMPLERS.
        schedule: the model's.
        steps: number of steps, in [1, T]; pndm takes one evaluation more.
        spacing: "leading", "trailing" or "linspace"; None for the sampler's default.
        eta: how stochastic ddim is, in [0, 1]; None for 0. No other sampler has it.

    Raises:
        ValueError: a name is unknown, or a number out of range.
    """
    spacings = named("sampler", name, SAMPLERS)
    make = named(f"{name} spacing", next(iter(spacings)) if spacing is None else spacing, spacings)
    if eta is None:
        return make(schedule, steps)
    if name != "ddim":
        raise ValueError(f"eta is a setting of ddim, got eta={eta!r} for {name}: leave it out, or take ddim")
    return make(schedule, steps, eta=eta)
