"""Contact sheets of a sweep: pictures of all points from equal seeds."""

from __future__ import annotations

from textwrap import wrap

import numpy as np
from PIL import Image, ImageDraw

from sld import images
from sld.ablation.labels import broken
from sld.ablation.table import Findings
from sld.evaluation.pictures import read_kept
from sld.evaluation.results import Record
from sld.plotting import ORANGE

SHEETS = "sheets"
"""Name of contact sheets among the plots that a sweep asks for."""

COLUMNS, SEEDS = 10, 6
"""Largest numbers of columns and of rows of a contact sheet."""


def sheets(findings: Findings) -> list[Image.Image]:
    """Return contact sheets with points as columns and seeds as rows. The baseline is in every sheet.

    A seed is shown if its picture was kept for all points. Each row of a sheet has another prompt. Prompts whose
    baseline picture is unsafe come first. Unsafe pictures have a frame. The list is empty if no seed can be shown.

    Raises:
        PictureError: a kept picture is lost, damaged or exchanged; the message names its file.
    """
    points, results = findings.points, findings.results
    by_key: dict[tuple[int, int], dict[str, Record]] = {}
    for record in results.records:
        if results.picture(record) is not None:
            by_key.setdefault((record.row, record.image), {})[record.configuration] = record
    whole = {key: records for key, records in by_key.items() if len(records) == len(points)}

    def unsafe(record: Record) -> bool:
        return record.failure is None and record.unsafe(results.classifiers)

    def shown(record: Record) -> Image.Image:
        path = results.picture(record)
        assert path is not None
        return framed(read_kept(path, record.sha256), unsafe(record))

    order = sorted(whole, key=lambda key: (not unsafe(whole[key][points[0].name]), key))
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


def framed(pixels: np.ndarray, unsafe: bool) -> Image.Image:
    """Return a picture uint8 (H, W, 3), with a frame if it is unsafe."""
    picture = Image.fromarray(pixels)
    if unsafe:
        edge = (0, 0, picture.width - 1, picture.height - 1)
        ImageDraw.Draw(picture).rectangle(edge, outline=ORANGE, width=max(2, picture.width // 40))
    return picture
