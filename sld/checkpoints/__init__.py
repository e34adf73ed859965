"""Checkpoints of Stable Diffusion 1 and 2: loaded strictly, inspected without loading, converted bit for bit.

Names here are looked up on first use, so that inspecting loads no torch.
"""

from typing import TYPE_CHECKING

from sld.lazy import on_first_use

if TYPE_CHECKING:
    from sld.checkpoints.conversion import convert, save_compvis, save_diffusers
    from sld.checkpoints.inspection import inspect
    from sld.checkpoints.loading import Parts, Source, load
    from sld.checkpoints.remap import CheckpointError

__all__ = ["CheckpointError", "Parts", "Source", "convert", "inspect", "load", "save_compvis", "save_diffusers"]

_HOMES = {name: "conversion" for name in ("convert", "save_compvis", "save_diffusers")}
_HOMES |= {"inspect": "inspection", "CheckpointError": "remap"} | dict.fromkeys(("Parts", "Source", "load"), "loading")

__getattr__ = on_first_use(__name__, {name: f"{__name__}.{home}" for name, home in _HOMES.items()})
