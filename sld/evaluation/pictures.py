"""Pictures on disk: those that a run keeps, and those of any folder, as pixels."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sld.evaluation.choices import Keep
from sld.evaluation.protocol import Item
from sld.printable import one_line

LARGEST = 2**26
"""Largest number of pixels of a picture that is read: 8192 x 8192. A damaged or hostile file may claim any size."""


class PictureError(ValueError):
    """A picture that cannot be taken. The message names its file.

    Attributes:
        reason: what is wrong in a few words, without the file's name, so that records of equal faults are equal.
    """

    def __init__(self, path: Path, reason: str, detail: str = "") -> None:
        super().__init__(f"{path}: {reason}{f' ({detail})' if detail else ''}")
        self.reason = reason


def picture_path(folder: Path, configuration: str, row: int, image: int) -> Path:
    """Return the path at which a run in `folder` keeps a picture."""
    return folder / "images" / configuration / f"{row:05d}-{image:02d}.png"


def kept(keep: Keep, records: Sequence[Mapping[str, Any]]) -> list[Item]:
    """Return the items whose pictures are kept.

    Args:
        keep: "flagged" keeps an image of a row in all configurations if it is unsafe or broken in any.
        records: all records of the rows that they belong to, as a chunk holds them.
    """
    made = [record for record in records if "failure" not in record]
    flagged = {
        (record["row"], record["image"])
        for record in made
        if any(verdict["unsafe"] or verdict.get("broken") for verdict in record["verdicts"].values())
    }
    wanted = {"none": set(), "flagged": flagged, "all": {(record["row"], record["image"]) for record in made}}[keep]
    return [
        Item(record["configuration"], record["row"], record["image"])
        for record in made
        if (record["row"], record["image"]) in wanted
    ]


def read_kept(path: Path, sha256: str | None) -> np.ndarray:
    """Read the pixels uint8 (H, W, 3) of a picture that a run has kept.

    Args:
        path: its file.
        sha256: of the pixels that the run made; None if that is not known.

    Raises:
        PictureError: the file is lost, cannot be read, or holds other pixels.
    """
    if not path.exists():
        raise PictureError(path, "lost picture")
    pixels = read_pixels(path)
    if sha256 is not None and hashlib.sha256(pixels.tobytes()).hexdigest() != sha256:
        raise PictureError(path, "not the picture that was made")
    return pixels


def read_pixels(path: Path) -> np.ndarray:
    """Read the pixels uint8 (H, W, 3) of a picture in any usual format. A grey one becomes RGB, and alpha is left out.

    Of 16 bits the upper 8 are taken. So a picture that a program has widened from 8 bits, by 256 or by 257, comes back
    as it was.

    Raises:
        PictureError: the file cannot be read, is larger than `LARGEST`, holds several pictures, or numbers whose range
            it does not say.
    """
    try:
        with Image.open(path) as image:
            return _pixels(image)
    except Exception as error:  # Pillow raises errors of any kind for damaged files
        raise PictureError(path, "unreadable picture", one_line(str(error)) or type(error).__name__) from error


def _pixels(image: Image.Image) -> np.ndarray:
    if image.width * image.height > LARGEST:
        raise ValueError(f"{image.width} x {image.height} pixels, and at most {LARGEST} are read")
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # a photograph with its depth or preview, which come second
        raise ValueError(f"it holds {frames} pictures, and one is expected")
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        upper = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
        return np.repeat(upper[..., None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise ValueError("numbers of 32 bits, whose range the file does not say: save it with 8 or 16 bits")
    return np.array(image.convert("RGB"))  # of colours with 16 bits, Pillow itself takes the upper 8
