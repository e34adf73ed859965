"""Samplers: how x moves from noise to data."""

from sld.config import SAMPLERS as SAMPLERS
from sld.samplers.base import NoHistory as NoHistory
from sld.samplers.base import Sampler as Sampler
from sld.samplers.ddim import DDIM as DDIM
from sld.samplers.dpmpp import DPMpp2M as DPMpp2M
from sld.samplers.euler import Euler as Euler
from sld.samplers.euler import EulerAncestral as EulerAncestral
from sld.samplers.grids import GRIDS as GRIDS
from sld.samplers.grids import leading as leading
from sld.samplers.grids import linspace as linspace
from sld.samplers.grids import trailing as trailing
from sld.samplers.lms import LMS as LMS
from sld.samplers.make import make_sampler as make_sampler
from sld.samplers.pndm import PNDM as PNDM
from sld.samplers.process import Estimate as Estimate
from sld.samplers.process import Level as Level
from sld.samplers.process import Process as Process
from sld.samplers.process import transfer as transfer
from sld.samplers.process import x0_of as x0_of
from sld.samplers.schedule import Schedule as Schedule
