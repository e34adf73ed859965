"""Checkpoints of Stable Diffusion 1 and 2: loaded strictly, inspected without loading, converted bit for bit.

Names here are looked up on first use, so that inspecting loads no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sld.checkpoints.conversion import convert as convert
    from sld.checkpoints.conversion import save_compvis as save_compvis
    from sld.checkpoints.conversion import save_diffusers as save_diffusers
    from sld.checkpoints.inspection import inspect as inspect
    from sld.checkpoints.loading import Parts as Parts
    from sld.checkpoints.loading import Source as Source
    from sld.checkpoints.loading import load as load
    from sld.checkpoints.remap import CheckpointError as CheckpointError

_HOMES = {
    "conversion": ("convert", "save_compvis", "save_diffusers"),
    "inspection": ("inspect",),
    "loading": ("Parts", "Source", "load"),
    "remap": ("CheckpointError",),
}


def __getattr__(name: str) -> object:
    home = next((home for home, names in _HOMES.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module 'sld.checkpoints' has no attribute {name!r}")
    return getattr(import_module(f"sld.checkpoints.{home}"), name)
