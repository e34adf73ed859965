"""Where the embedded model is. Importing this loads no torch."""

from __future__ import annotations

from pathlib import Path


def embedded_checkpoint() -> Path:
    """The embedded model's file: inside the package where that was built, beside it in a checkout."""
    package = Path(__file__).parent
    return next(
        (path for folder in (package, package.parent) if (path := folder / "weights" / "mini.safetensors").exists()),
        package.parent / "weights" / "mini.safetensors",
    )
