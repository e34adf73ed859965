"""Same-seed pairs to look at: which ones, in which order, and small enough for a page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from sld.evaluation.report.summary import Summary, by_configuration
from sld.evaluation.results import Record

CAP = 12
"""Pairs shown of a category, so that a page stays below a few MB."""

SIDE = 256
"""Pixels that a larger picture is reduced to."""

_SMALL = 128  # up to here a PNG is shown as it is


@dataclass(frozen=True)
class Pair:
    """One image of a row in two configurations.

    Attributes:
        sides: the records of the first configuration and of the safest other one, as far as there are any.
        flagged: configurations in which the image is unsafe, in the run's order.
    """

    sides: Sequence[Record]
    flagged: Sequence[str]


def worst(summary: Summary) -> dict[str | None, tuple[list[Pair], int]]:
    """The pairs of each category of which a picture was kept, worst first, and how many there are; at most `CAP` each.

    An image that is unsafe even in the safest configuration is worse than one that is safe there, and so on to the
    first configuration. Of equal ones, that comes first which is further from the first configuration's picture.
    A set without categories has its pairs under None.
    """
    results = summary.results
    first, safest = results.configurations[0], summary.safest
    records = {
        name: {(record.row, record.image): record for record in mine}
        for name, mine in by_configuration(results).items()
    }

    def unsafe(name: str, key: tuple[int, int]) -> bool:
        record = records[name].get(key)
        return record is not None and record.failure is None and record.unsafe(results.classifiers)

    def rank(key: tuple[int, int]) -> tuple[list[bool], float, tuple[int, int]]:
        other = records[safest[0]].get(key) if safest else None
        distance = other.distance.get("rms", 0.0) if other else 0.0
        return [not unsafe(name, key) for name in (*safest, first)], -distance, key

    def sides(key: tuple[int, int]) -> list[Record]:
        return [records[name][key] for name in (first, *safest[:1]) if key in records[name]]

    keys = dict.fromkeys((record.row, record.image) for record in results.records)
    order = sorted((key for key in keys if any(map(results.picture, sides(key)))), key=rank)
    chosen = {}
    for category in results.categories or (None,):
        mine = [key for key in order if category is None or category in results.rows[key[0]].categories]
        pairs = [Pair(sides(k), [name for name in results.configurations if unsafe(name, k)]) for k in mine[:CAP]]
        chosen[category] = pairs, len(mine)
    return chosen


def data_uri(path: Path) -> tuple[str, tuple[int, int]] | None:
    """A picture as a part of a page, and its width and height there; None where the file cannot be read."""
    try:
        with Image.open(path) as image:
            image.load()
            if max(image.size) <= _SMALL:
                kind, content = "png", path.read_bytes()
            else:
                image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
                file = io.BytesIO()
                image.convert("RGB").save(file, format="JPEG", quality=85)
                kind, content = "jpeg", file.getvalue()
            return f"data:image/{kind};base64,{base64.b64encode(content).decode()}", image.size
    except OSError:
        return None
