"""Samplers: how x moves from noise to data."""

from sld.config import SAMPLERS as SAMPLERS
from sld.samplers.base import NoHistory as NoHistory, Sampler as Sampler
from sld.samplers.ddim import DDIM as DDIM
from sld.samplers.dpmpp import DPMpp2M as DPMpp2M
from sld.samplers.euler import Euler as Euler, EulerAncestral as EulerAncestral
from sld.samplers.grids import GRIDS as GRIDS, leading as leading, linspace as linspace, trailing as trailing
from sld.samplers.lms import LMS as LMS
from sld.samplers.make import make_sampler as make_sampler
from sld.samplers.pndm import PNDM as PNDM
from sld.samplers.process import (
    Estimate as Estimate,
    Level as Level,
    Process as Process,
    transfer as transfer,
    x0_of as x0_of,
)
from sld.samplers.schedule import Schedule as Schedule
