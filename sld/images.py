"""Pictures converted between the network's range, bytes and files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from sld.files import to_json, whole, whole_together


def to_uint8(images: Tensor) -> np.ndarray:
    """Return pictures (b, 3, H, W) in [-1, 1], clipped and rounded half to even, as uint8 (b, H, W, 3)."""
    unit = (images / 2 + 0.5).clamp(0, 1)
    return (unit * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def from_uint8(pictures: np.ndarray) -> Tensor:
    """Return pictures uint8 (b, H, W, 3) as float32 (b, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(pictures.copy()).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_pil(images: Tensor) -> list[Image.Image]:
    """Return pictures (b, 3, H, W) in [-1, 1] as PIL images."""
    return [Image.fromarray(picture) for picture in to_uint8(images)]


def write(image: Image.Image, path: Path) -> None:
    """Write a PNG, in place of an old one.

    Raises:
        OSError: the file cannot be written; the message names it. The old one stays.
    """
    with whole(path) as beside:
        image.save(beside, format="PNG")


def write_new(image: Image.Image, path: Path, about: Mapping[str, Any]) -> None:
    """Write a PNG, and beside it a sidecar: a JSON file of the same name with the ending .json. Nothing is replaced.

    Raises:
        FileExistsError: one of the files is there already. The other one is not made.
        OSError: a file cannot be written; the message names it. None is there then.
        TypeError, ValueError: JSON cannot hold `about`.
    """
    # the sidecar comes first, so that no picture is ever without one
    with whole_together(path.with_suffix(".json"), path, replace=False) as (sidecar, picture):
        sidecar.write_text(to_json(about), encoding="utf-8")
        image.save(picture, format="PNG")


def contact_sheet(rows: Sequence[Sequence[Image.Image]], columns: Sequence[str], labels: Sequence[str]) -> Image.Image:
    """Return pictures in a grid, with a heading over each column and a label before each row.

    Args:
        rows: pictures of one size. Every row has one for each column.
        columns: headings of the columns.
        labels: one for each row. Labels and headings may have several lines.
    """
    scale = max(1, 192 // rows[0][0].width)  # small pictures are enlarged, so that their headings fit
    width, height = rows[0][0].width * scale, rows[0][0].height * scale
    font = ImageFont.load_default(size=14)
    gap, top = 6, 10 + 16 * max(heading.count("\n") + 1 for heading in columns)
    left = 12 + max(int(font.getlength(line)) for label in labels for line in label.split("\n"))
    sheet = Image.new("RGB", (left + len(columns) * (width + gap), top + len(rows) * (height + gap)), (255, 255, 255))
    draw = ImageDraw.Draw(sheet)
    for c, heading in enumerate(columns):
        draw.text(
            (left + c * (width + gap) + width // 2, top // 2), heading, "black", font, anchor="mm", align="center"
        )
    for r, (row, label) in enumerate(zip(rows, labels, strict=True)):
        y = top + r * (height + gap)
        draw.text((6, y + height // 2), label, "black", font, anchor="lm")
        for c, image in enumerate(row):
            enlarged = image.resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(enlarged, (left + c * (width + gap), y))
    return sheet
