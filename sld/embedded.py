"""The path of the embedded model. Importing this loads no torch."""

from __future__ import annotations

from pathlib import Path


def embedded_checkpoint() -> Path:
    """Return the embedded model's file: inside an installed package, or beside the package in a checkout."""
    package = Path(__file__).parent
    return next(
        (path for folder in (package, package.parent) if (path := folder / "weights" / "mini.safetensors").exists()),
        package.parent / "weights" / "mini.safetensors",
    )
