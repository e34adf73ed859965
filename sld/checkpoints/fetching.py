"""Tensors fetched from files of weights, and refused where they are not finite."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from torch import Tensor

from sld.checkpoints.files import WeightsFile
from sld.checkpoints.remap import CheckpointError
from sld.finite import all_finite


def finite_tensors(file: WeightsFile, keys: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
    """Yield keys with their tensors. The file is open no longer than that, which unmaps what was copied.

    Raises:
        CheckpointError: after the last one, if any is not finite.
    """
    read = file.reader()
    broken: list[str] = []
    for key in keys:
        tensor = read(key)
        if not all_finite(tensor):
            broken.append(key)
        yield key, tensor
    if broken:
        raise CheckpointError(_not_finite(file.path, broken))


def _not_finite(path: Path, keys: list[str]) -> str:
    more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
    return (
        f"{path}: weights are NaN or infinite in {keys[0]}{more}: the training diverged, or a conversion to half "
        "precision overflowed; use another copy of the file"
    )
