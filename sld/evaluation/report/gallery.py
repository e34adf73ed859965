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
from sld.evaluation.results import Judgement, Record, Results

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
        broken: whether the picture is labelled as broken.
    """

    configuration: str
    where: str
    picture: Picture | None
    absent: str = ""
    veil: str = ""
    why: str = ""
    broken: bool = False


@dataclass(frozen=True)
class Pair:
    """One image of a row in two configurations.

    Attributes:
        sides: records of the first configuration and of another one, as far as they exist.
        flagged: configurations in which the image is unsafe, in the run's order.
        broken: configurations in which the image is broken, in the run's order.
    """

    sides: Sequence[Record]
    flagged: Sequence[str]
    broken: Sequence[str]


@dataclass(frozen=True)
class Group:
    """Pairs that the page shows together.

    Attributes:
        label: their category, or "broken pictures".
        pairs: the worst of them, worst first and at most `CAP`.
        kept: how many pairs there are.
    """

    label: str
    pairs: Sequence[Pair]
    kept: int


def worst(summary: Summary) -> list[Group]:
    """Return the worst pairs of each category, then those of broken pictures if there are any.

    Of very many categories fewer pairs are shown, so that there are about `PAIRS` in all.

    Only pairs count of which a picture was kept. A pair has an image in the first configuration and in the safest other
    one. An image that is unsafe even in the safest configuration is worse than one that is safe there, and so on, back
    to the first configuration. Of equally unsafe pairs, those come first that are broken, in the same order, and then
    those that differ more (RMS). Pairs of broken pictures have an image in the first configuration and in the safest
    one in which it is broken. A set without categories has its pairs under "all".
    """
    results = summary.results
    first, safest = results.configurations[0], summary.safest
    records = {
        name: {(record.row, record.image): record for record in mine}
        for name, mine in results.by_configuration().items()
    }

    def judged(judgement: Judgement, name: str, key: tuple[int, int]) -> bool:
        record = records[name].get(key)
        return record is not None and record.failure is None and bool(record.judged(judgement, results.classifiers))

    def rank(key: tuple[int, int]) -> tuple[list[bool], list[bool], float, tuple[int, int]]:
        other = records[safest[0]].get(key) if safest else None
        distance = other.distance.get("rms", 0.0) if other else 0.0
        unsafe, broken = ([not judged(j, name, key) for name in (*safest, first)] for j in ("unsafe", "broken"))
        return unsafe, broken, -distance, key

    def sides(key: tuple[int, int], others: Sequence[str]) -> list[Record]:
        return [records[name][key] for name in dict.fromkeys((first, *others[:1])) if key in records[name]]

    def pair(key: tuple[int, int], others: Sequence[str]) -> Pair:
        flagged, broken = ([c for c in results.configurations if judged(j, c, key)] for j in ("unsafe", "broken"))
        return Pair(sides(key, others), flagged, broken)

    def shown(key: tuple[int, int], others: Sequence[str]) -> bool:
        return any(map(results.picture, sides(key, others)))

    keys = dict.fromkeys((record.row, record.image) for record in results.records)
    order = sorted(keys, key=rank)
    by_category: dict[str | None, list[tuple[int, int]]] = {category: [] for category in results.categories or (None,)}
    for key in (key for key in order if shown(key, safest)):
        for category in dict.fromkeys(results.rows[key[0]].categories) if results.categories else (None,):
            by_category[category].append(key)
    cap = max(1, min(CAP, PAIRS // len(by_category)))
    groups = [
        Group(label(category), [pair(key, safest) for key in mine[:cap]], len(mine))
        for category, mine in by_category.items()
    ]
    where = {key: [c for c in (*safest, first) if judged("broken", c, key)] for key in order}
    broken = sorted((key for key in order if where[key] and shown(key, where[key])), key=lambda key: -len(where[key]))
    if broken:
        groups.append(Group("broken pictures", [pair(key, where[key]) for key in broken[:cap]], len(broken)))
    return groups


def gallery(summary: Summary) -> list[dict[str, Any]]:
    """Return what the page shows of each group that has pairs: "label", "kept" and "pairs"."""
    return [
        {"label": group.label, "kept": group.kept, "pairs": [_shown(summary.results, pair) for pair in group.pairs]}
        for group in worst(summary)
        if group.pairs
    ]


def _shown(results: Results, pair: Pair) -> dict[str, Any]:
    record = pair.sides[0]
    row = results.rows[record.row]
    return {
        "row": row.id,
        "image": record.image,
        "prompt": row.prompt,
        "flagged": pair.flagged,
        "broken": pair.broken,
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
    broken = bool(record.broken(results.classifiers))
    if record.unsafe(results.classifiers):
        why = _reasons(results.classifiers, record)
        return Tile(record.configuration, where, picture, veil="flagged", why=why, broken=broken)
    return Tile(record.configuration, where, picture, broken=broken)


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
