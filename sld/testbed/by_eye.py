"""Pictures that were called broken or whole by eye: `by_eye.png`, all of them in a grid, with `by_eye.json`.

`weights/training` has those that the shipped detector learned from, `tests/testbed/by_eye` those that it is tested on.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from sld.embedded import embedded_checkpoint
from sld.testbed.scenes import SIZE

NAME = "by_eye"


@dataclass(frozen=True)
class Labelled:
    """Pictures (n, 64, 64, 3) uint8, and whether each is broken, (n,) bool."""

    pictures: np.ndarray
    broken: Tensor


def read_labelled(folder: Path | None = None) -> Labelled:
    """Return the pictures of a folder, row by row; None for those to learn from, beside the embedded model.

    The last places of the grid may be empty: they have no label.

    Raises:
        FileNotFoundError: one of the two files is missing.
        ValueError: the grid is not made of pictures of 64 x 64, or there are more labels than pictures.
    """
    folder = folder or embedded_checkpoint().with_name("training")
    entries = json.loads((folder / f"{NAME}.json").read_text(encoding="utf-8"))["pictures"]
    with Image.open(folder / f"{NAME}.png") as sheet:
        grid = np.asarray(sheet.convert("RGB"))
    if grid.shape[0] % SIZE or grid.shape[1] % SIZE:
        raise ValueError(
            f"{folder / NAME}.png is {grid.shape[1]} x {grid.shape[0]}; expected a grid of pictures of {SIZE} x {SIZE}"
        )
    pictures = rearrange(grid, "(row h) (column w) rgb -> (row column) h w rgb", h=SIZE, w=SIZE)
    if len(entries) > len(pictures):
        raise ValueError(f"{folder / NAME}.json has {len(entries)} labels, for a grid of {len(pictures)} pictures")
    return Labelled(pictures[: len(entries)], torch.tensor([bool(entry["broken"]) for entry in entries]))
