"""Pairs of pictures from equal noise: which ones the page shows, in which order, and small enough for a page."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from sld.evaluation.pictures import PictureError, read_kept
from sld.evaluation.report.summary import Summary
from sld.evaluation.report.tables import label
from sld.evaluation.results import Record, Results

CAP = 12
"""Largest number of pairs that are shown of a category, so that a page stays below a few MB."""

PAIRS = 300
"""Number of pairs over all categories from which on fewer are shown of each, at least one."""

SIDE = 256
"""Length of a picture's longer side on the page, in pixels; larger pictures are reduced to it."""

_PIXELATED = 128
"""Length of the longer side up to which a picture is shown pixel by pixel, from its own PNG file."""


class Picture(NamedTuple):
    """A picture as a part of a page.

    Attributes:
        uri: the picture itself, as a data URI.
        width, height: in pixels.
        pixelated: whether its pixels are to be seen as squares.
    """

    uri: str
    width: int
    height: int
    pixelated: bool


@dataclass(frozen=True)
class Tile:
    """One side of a pair on the page.

    Attributes:
        configuration: its name.
        where: configuration, row and image in words.
        picture: None if there is none to show.
        absent: why there is no picture.
        veil: why the picture is blurred until it is asked for: "flagged" or "not judged". Empty if it is not.
        why: what the classifiers that flag it say, or why nobody judged it.
    """

    configuration: str
    where: str
    picture: Picture | None
    absent: str = ""
    veil: str = ""
    why: str = ""


@dataclass(frozen=True)
class Pair:
    """One image of a row in two configurations.

    Attributes:
        sides: records of the first configuration and of the safest other one, as far as they exist.
        flagged: configurations in which the image is unsafe, in the run's order.
    """

    sides: Sequence[Record]
    flagged: Sequence[str]


def worst(summary: Summary) -> dict[str | None, tuple[list[Pair], int]]:
    """Return the worst pairs of each category, worst first and at most `CAP`, and how many pairs the category has.

    Of very many categories fewer are shown, so that there are about `PAIRS` in all.

    Only pairs count of which a picture was kept. An image that is unsafe even in the safest configuration is worse than
    one that is safe there, and so on, back to the first configuration. Of equally bad pairs, those come first that
    differ more (RMS). A set without categories has its pairs under None.
    """
    results = summary.results
    first, safest = results.configurations[0], summary.safest
    records = {
        name: {(record.row, record.image): record for record in mine}
        for name, mine in results.by_configuration().items()
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
    by_category: dict[str | None, list[tuple[int, int]]] = {category: [] for category in results.categories or (None,)}
    for key in order:
        for category in dict.fromkeys(results.rows[key[0]].categories) if results.categories else (None,):
            by_category[category].append(key)
    cap = max(1, min(CAP, PAIRS // len(by_category)))
    chosen = {}
    for category, mine in by_category.items():
        pairs = [Pair(sides(k), [name for name in results.configurations if unsafe(name, k)]) for k in mine[:cap]]
        chosen[category] = pairs, len(mine)
    return chosen


def gallery(summary: Summary) -> list[dict[str, Any]]:
    """Return what the page shows of each category that has pairs: "label", "kept" and "pairs"."""
    return [
        {"label": label(category), "kept": kept, "pairs": [_shown(summary.results, pair) for pair in pairs]}
        for category, (pairs, kept) in worst(summary).items()
        if pairs
    ]


def _shown(results: Results, pair: Pair) -> dict[str, Any]:
    record = pair.sides[0]
    row = results.rows[record.row]
    return {
        "row": row.id,
        "image": record.image,
        "prompt": row.prompt,
        "flagged": pair.flagged,
        "tiles": [tile(results, side) for side in pair.sides],
    }


def tile(results: Results, record: Record) -> Tile:
    """Return a side of a pair. A picture that nobody has judged is veiled too, since it may be unsafe."""
    where = f"{record.configuration}, row {record.row}, image {record.image}"
    path = results.picture(record)
    try:
        picture = None if path is None else inline_picture(path, record.sha256)
    except PictureError as error:
        warnings.warn(f"{error}: the page leaves it out", stacklevel=2)
        return Tile(record.configuration, where, None, absent=f"{error.reason}: {path and path.name}")
    if picture is None:
        return Tile(record.configuration, where, None, absent=record.failure or "not kept")
    if record.failure is not None:
        return Tile(record.configuration, where, picture, veil="not judged", why=record.failure)
    if record.unsafe(results.classifiers):
        return Tile(record.configuration, where, picture, veil="flagged", why=_reasons(results.classifiers, record))
    return Tile(record.configuration, where, picture)


def _reasons(classifiers: Sequence[str], record: Record) -> str:
    """Return the details of the verdicts that flag a picture."""
    found = {name: record.verdicts[name] for name in classifiers if record.verdicts[name].unsafe}
    return "; ".join(f"{name}: {_words(verdict.detail)}" for name, verdict in found.items())


def _words(value: Any) -> str:
    """Return a JSON value without quotes and brackets."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_words(part)}" for key, part in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(_words, value)) or "none"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def inline_picture(path: Path, sha256: str | None = None) -> Picture:
    """Return a kept picture as a part of a page, reduced to `SIDE` if it is larger.

    Args:
        path: its file.
        sha256: of the pixels that the run made; None if that is not known.

    Raises:
        PictureError: the file is lost, cannot be read, or holds other pixels.
    """
    image = Image.fromarray(read_kept(path, sha256))
    pixelated = max(image.size) <= _PIXELATED
    if pixelated:
        kind, content = "png", path.read_bytes()
    else:
        image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        file = io.BytesIO()
        image.save(file, format="JPEG", quality=85)
        kind, content = "jpeg", file.getvalue()
    uri = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
    return Picture(uri, image.width, image.height, pixelated)
