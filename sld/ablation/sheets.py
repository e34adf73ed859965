"""Contact sheets of a sweep: pictures of all points from equal seeds."""

from __future__ import annotations

from textwrap import wrap

import numpy as np
from PIL import Image, ImageDraw

from sld import images
from sld.ablation.labels import broken
from sld.ablation.table import Findings
from sld.evaluation.pictures import read_kept
from sld.evaluation.results import Judgement, Record
from sld.plotting import BLUE, ORANGE

SHEETS = "sheets"
"""Name of contact sheets among the plots that a sweep asks for."""

Faults = tuple[Judgement, ...]
"""What is wrong with a picture; see `Record.faults`."""

COLUMNS, SEEDS = 10, 6
"""Largest numbers of columns and of rows of a contact sheet."""


def sheets(findings: Findings) -> list[Image.Image]:
    """Return contact sheets with points as columns and seeds as rows. The baseline is in every sheet.

    A seed is shown if its picture was kept for all points. Each row of a sheet has another prompt. Prompts whose
    baseline picture is unsafe come first. Unsafe and broken pictures have frames, see `framed`. The list is empty if no
    seed can be shown.

    Raises:
        PictureError: a kept picture is lost, damaged or exchanged; the message names its file.
    """
    points, results = findings.points, findings.results
    by_key: dict[tuple[int, int], dict[str, Record]] = {}
    for record in results.records:
        if results.picture(record) is not None:
            by_key.setdefault((record.row, record.image), {})[record.configuration] = record
    whole = {key: records for key, records in by_key.items() if len(records) == len(points)}

    def faults(record: Record) -> Faults:
        return record.faults(results.classifiers) if record.failure is None else ()

    def shown(record: Record) -> Image.Image:
        path = results.picture(record)
        assert path is not None
        return framed(read_kept(path, record.sha256), faults(record))

    order = sorted(whole, key=lambda key: ("unsafe" not in faults(whole[key][points[0].name]), key))
    first_of_row = {row: (row, image) for row, image in reversed(order)}
    chosen = [key for key in order if first_of_row[key[0]] == key][:SEEDS]
    if not chosen:
        return []
    others = points[1:]
    parts = [others[k : k + COLUMNS - 1] for k in range(0, len(others), COLUMNS - 1)] or [()]
    return [
        images.contact_sheet(
            [[shown(whole[key][point.name]) for point in (points[0], *part)] for key in chosen],
            [broken(point.label, 24) for point in (points[0], *part)],
            ["\n".join((*wrap(results.rows[row].prompt, 20)[:6], f"row {row}, image {k}")) for row, k in chosen],
        )
        for part in parts
    ]


def framed(pixels: np.ndarray, faults: Faults) -> Image.Image:
    """Return a picture. An unsafe one has a frame, a broken one a dashed frame, inside the other if both.

    Args:
        pixels: uint8 (H, W, 3).
        faults: what is wrong with the picture.
    """
    picture = Image.fromarray(pixels)
    draw, width = ImageDraw.Draw(picture), max(2, picture.width // 40)
    if "unsafe" in faults:
        draw.rectangle((0, 0, picture.width - 1, picture.height - 1), outline=ORANGE, width=width)
    if "broken" in faults:
        _dash(draw, picture.size, width if "unsafe" in faults else 0, width)
    return picture


def _dash(draw: ImageDraw.ImageDraw, size: tuple[int, int], inset: int, width: int) -> None:
    """Draw a dashed frame, so many pixels inside a picture of this size. A dash is four times as long as wide."""
    right, bottom = size[0] - inset - 1, size[1] - inset - 1
    dash = 4 * width
    for x in range(inset, right, 2 * dash):
        for y in (inset, bottom - width + 1):
            draw.rectangle((x, y, min(x + dash - 1, right), y + width - 1), fill=BLUE)
    for y in range(inset, bottom, 2 * dash):
        for x in (inset, right - width + 1):
            draw.rectangle((x, y, x + width - 1, min(y + dash - 1, bottom)), fill=BLUE)
