"""Checkpoints of Stable Diffusion 1 and 2: loaded strictly, inspected without loading, converted bit for bit."""

from sld.checkpoints.convert import convert, save_compvis, save_diffusers
from sld.checkpoints.inspect import Inspection, inspect
from sld.checkpoints.load import Parts, Source, load
from sld.checkpoints.remap import CheckpointError
from sld.files import sha256

__all__ = [
    "CheckpointError",
    "Inspection",
    "Parts",
    "Source",
    "convert",
    "inspect",
    "load",
    "save_compvis",
    "save_diffusers",
    "sha256",
]
