"""Checkpoints of Stable Diffusion 1 and 2: loaded strictly, inspected without loading, converted bit for bit.

Names here are looked up on first use, so that inspecting loads no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sld.checkpoints.conversion import convert, save_compvis, save_diffusers
    from sld.checkpoints.inspection import Inspection, inspect
    from sld.checkpoints.loading import Parts, Source, load
    from sld.checkpoints.remap import CheckpointError
    from sld.files import sha256

_HOME = {
    "CheckpointError": "remap",
    "Inspection": "inspection",
    "Parts": "loading",
    "Source": "loading",
    "convert": "conversion",
    "inspect": "inspection",
    "load": "loading",
    "save_compvis": "conversion",
    "save_diffusers": "conversion",
    "sha256": "files",
}

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


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'sld.checkpoints' has no attribute {name!r}")
    return getattr(import_module(f"sld.checkpoints.{_HOME[name]}"), name)
