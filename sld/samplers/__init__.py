"""Samplers: how x moves from noise to data."""

from sld.config import SAMPLERS
from sld.samplers.base import NoHistory, Sampler
from sld.samplers.ddim import DDIM
from sld.samplers.dpmpp import DPMpp2M, DPMppState
from sld.samplers.euler import Euler, EulerAncestral
from sld.samplers.grids import GRIDS, leading, linspace, trailing
from sld.samplers.lms import LMS, LMSState
from sld.samplers.make import make_sampler
from sld.samplers.pndm import PNDM, PNDMState
from sld.samplers.process import CONVERSIONS, Estimate, Level, Process, transfer, x0_of
from sld.samplers.schedule import Schedule

__all__ = [
    "CONVERSIONS",
    "DDIM",
    "GRIDS",
    "LMS",
    "PNDM",
    "SAMPLERS",
    "DPMpp2M",
    "DPMppState",
    "Estimate",
    "Euler",
    "EulerAncestral",
    "LMSState",
    "Level",
    "NoHistory",
    "PNDMState",
    "Process",
    "Sampler",
    "Schedule",
    "leading",
    "linspace",
    "make_sampler",
    "trailing",
    "transfer",
    "x0_of",
]
