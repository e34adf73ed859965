"""The tidy table of a sweep: a line for each point, metric and group of rows, with its interval and protocol."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow
from pyarrow import parquet
from torch import Tensor

from sld.ablation.points import Point
from sld.evaluation import store
from sld.evaluation.classifiers.base import tag
from sld.evaluation.distances import clip_distance
from sld.evaluation.habits import HABITS
from sld.evaluation.metrics import (
    DRAWS,
    Decisions,
    Estimate,
    align,
    expected_maximum,
    mean,
    paired_difference,
    prompt_labels,
    share,
)
from sld.evaluation.recognition import recognised
from sld.evaluation.results import Judgement, Record, Results, read_results
from sld.evaluation.tabular import csv_text
from sld.files import write_whole

Embeddings = Mapping[tuple[str, int, int], Tensor]
"""CLIP embeddings (d,) of pictures, by configuration, row and image."""


class Findings(NamedTuple):
    """The results of a sweep.

    Attributes:
        points: the baseline first.
        results: of the run.
        embeddings: of its pictures, if they were kept.
    """

    points: tuple[Point, ...]
    results: Results
    embeddings: Embeddings


def read_findings(folder: Path, points: Sequence[Point]) -> Findings:
    """Read the results of a sweep from the folder of its run.

    Raises:
        ValueError: `folder` holds no run.
    """
    return Findings(tuple(points), read_results(folder), read_embeddings(folder))


@dataclass(frozen=True)
class Metric:
    """A quantity that is measured for each picture, and the estimate from these values.

    Attributes:
        says: its name in tables and plots.
        read: returns its value for a picture; None if the picture has none.
        estimate: makes an estimate from values (n,) and the prompts they belong to (n,).
        paired: whether points are compared with the baseline picture by picture. This is so for shares. A distance to
            the baseline's picture is a comparison already.
        loss: its name in plots as a loss caused by guidance; None if it is no loss.
        inverted: whether the loss is drawn as one minus the value, so that a share of right pictures becomes that of
            wrong ones.
    """

    says: str
    read: Callable[[Findings, Record], float | bool | None]
    estimate: Callable[[np.ndarray, np.ndarray], Estimate]
    paired: bool
    loss: str | None = None
    inverted: bool = False


def _unsafe(findings: Findings, record: Record) -> bool | None:
    results = findings.results
    meant = results.rows[record.row].categories or not results.categories
    return record.unsafe(results.classifiers) if results.classifiers and meant else None


def _judged(judgement: Judgement) -> Callable[[Findings, Record], bool | None]:
    def read(findings: Findings, record: Record) -> bool | None:
        return record.judged(judgement, findings.results.classifiers)

    return read


def _right(kind: str) -> Callable[[Findings, Record], bool | None]:
    def read(findings: Findings, record: Record) -> bool | None:
        return dict(recognised(findings.results, record)).get(kind)

    return read


def _clip(findings: Findings, record: Record) -> float | None:
    key = (record.configuration, record.row, record.image)
    mine, other = (findings.embeddings.get(k) for k in (key, (findings.points[0].name, *key[1:])))
    return None if mine is None or other is None else float(clip_distance(mine[None], other[None])[0])


def _distance(read: Callable[[Mapping[str, float]], float]) -> Callable[[Findings, Record], float | None]:
    return lambda _, record: read(record.distance) if record.distance else None


_SSIM = "1 \N{MINUS SIGN} SSIM"

METRICS: dict[str, Metric] = {
    "unsafe": Metric("unsafe share", _unsafe, share, True),
    "broken": Metric("broken share", _judged("broken"), share, True, "broken share"),
    "safe": Metric("safe share", _judged("safe"), share, True),
    "subject": Metric("right subject", _right("subject"), share, True, "wrong subject, share", inverted=True),
    "place": Metric("right place", _right("place"), share, True, "wrong place, share", inverted=True),
    "prop": Metric("harmless prop shown", _right("prop"), share, True, "harmless prop lost, share", inverted=True),
    "rms": Metric("RMS", _distance(lambda d: d["rms"]), mean, False),  # drawn as 1 - SSIM
    "1-ssim": Metric(_SSIM, _distance(lambda d: 1 - d["ssim"]), mean, False, f"{_SSIM} to the baseline"),
    "clip": Metric("CLIP", _clip, mean, False, "CLIP distance to the baseline"),
}
"""Metrics by name. Unsafe shares are over the rows that have a category, or over all rows if no row has one.

Broken and safe pictures are counted over all rows. Both have values only if a classifier reads whether pictures are
broken. Safe means neither unsafe nor broken."""

MAXIMUM = "maximum"
"""Name of the metric "expected maximum of the unsafe shares of prompts", which has no interval."""

NAMES = (*METRICS, MAXIMUM)
"""Names of all metrics that a sweep can measure."""

LOSSES = tuple(name for name, metric in METRICS.items() if metric.loss)


class Group(NamedTuple):
    """A group of rows that has its own lines: all rows, those of a category, or those of a place with a habit."""

    by: str
    name: str
    rows: frozenset[int]


class Line(NamedTuple):
    """A line of the table.

    Attributes:
        point: name of the point.
        metric: one of NAMES.
        by, group: which rows of the prompt set; see `Group`.
        value, low, high: the estimate and its interval; low and high are None if it has none.
        images, prompts: numbers of images and prompts in the estimate.
        difference, difference_low, difference_high: to the baseline, of pictures from equal noise; None for the
            baseline itself and for metrics that are not paired.
        p: p value of the exact sign-flip test on prompts, not corrected for the number of points.
    """

    point: str
    metric: str
    by: str
    group: str
    value: float
    low: float | None
    high: float | None
    images: int
    prompts: int
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None
    p: float | None = None


def lines(findings: Findings, metrics: Sequence[str] = ()) -> list[Line]:
    """Return all lines of the table, point by point.

    Args:
        findings: of a run, finished or not.
        metrics: some of NAMES in the wanted order; empty for all. Metrics without values have no lines.
    """
    wanted = metrics or NAMES
    groups = _groups(findings.results)
    records = findings.results.by_configuration()
    texts = {row.id: row.prompt for row in findings.results.rows.values()}
    seen: dict[tuple[str, str], Decisions] = {}
    for name, metric in METRICS.items():
        if name in wanted or (name == "unsafe" and MAXIMUM in wanted):
            for point in findings.points:
                seen[point.name, name] = _observed(findings, metric, records[point.name])
    first = findings.points[0].name
    made = []
    for point in findings.points:
        for name in wanted:
            observed = seen[point.name, "unsafe" if name == MAXIMUM else name]
            for group in groups:
                mine = _within(observed, group)
                if not len(mine[0]):
                    continue
                if name == MAXIMUM:
                    made += _maximum(point, group, mine, texts)
                    continue
                metric = METRICS[name]
                e = metric.estimate(mine[0], prompt_labels(mine[1], texts))
                line = Line(point.name, name, group.by, group.name, e.value, *_bounds(e), e.images, e.prompts)
                if metric.paired and point.name != first:
                    line = _compared(line, mine, _within(seen[first, name], group), texts)
                made.append(line)
    return made


def _groups(results: Results) -> list[Group]:
    rows = results.rows.values()
    places = dict.fromkeys(place for row in rows if (place := row.columns.get("place")) in HABITS)
    return [
        Group("all", "", frozenset(results.rows)),
        *(Group("category", c, frozenset(r.id for r in rows if c in r.categories)) for c in results.categories),
        *(Group("habit place", p, frozenset(r.id for r in rows if r.columns.get("place") == p)) for p in places),
    ]


def _observed(findings: Findings, metric: Metric, records: Sequence[Record]) -> Decisions:
    """Return values, row ids and images, each (n,), of the pictures that have a value."""
    found = [(metric.read(findings, r), r.row, r.image) for r in records if r.failure is None]
    kept = [(value, row, image) for value, row, image in found if value is not None]
    values, rows, images = zip(*kept, strict=True) if kept else ((), (), ())
    return np.array(values), np.array(rows, np.int64), np.array(images, np.int64)


def _within(observed: Decisions, group: Group) -> Decisions:
    inside = np.isin(observed[1], list(group.rows))
    values, rows, images = (array[inside] for array in observed)
    return values, rows, images


def _bounds(e: Estimate) -> tuple[float | None, float | None]:
    """Return the ends of an interval; None for both if there is only one prompt, which gives no interval."""
    return (e.low, e.high) if math.isfinite(e.low) else (None, None)


def _maximum(point: Point, group: Group, unsafe: Decisions, texts: Mapping[int, str]) -> Iterator[Line]:
    labels = prompt_labels(unsafe[1], texts)
    shares = np.bincount(labels, weights=unsafe[0]) / np.bincount(labels)
    if len(shares) >= DRAWS:
        value, _ = expected_maximum(shares, DRAWS)
        yield Line(point.name, MAXIMUM, group.by, group.name, value, None, None, len(labels), len(shares))


def _compared(line: Line, mine: Decisions, baseline: Decisions, texts: Mapping[int, str]) -> Line:
    pairs = align(mine, baseline)
    if not len(pairs.row):
        return line
    d = paired_difference(pairs.a, pairs.b, prompt_labels(pairs.row, texts))
    return line._replace(difference=d.value, difference_low=d.low, difference_high=d.high, p=d.p)


def read_embeddings(folder: Path) -> dict[tuple[str, int, int], Tensor]:
    """Return all embeddings that a run has kept; an empty dict if it was made without --embed."""
    run = store.digest(store.read_protocol(folder))
    found = {}
    for path in sorted((folder / "chunks").glob("*.jsonl")):
        records = store.read_chunk(path, {"run": run, "chunk": int(path.stem)}) or []
        vectors = store.read_embeddings(folder, int(path.stem), records) or [None] * len(records)
        for record, vector in zip(records, vectors, strict=True):
            if vector is not None:
                found[record["configuration"], record["row"], record["image"]] = vector
    return found


# -------------------------------------------------------------------------------------------------------------- files


def tidy(findings: Findings, found: Sequence[Line]) -> list[dict[str, Any]]:
    """Return the lines of the table with all columns: those of the estimate, the fields of the point, and the protocol.

    "protocol" is the SHA-256 of the run's `protocol.json`; "judged_by" describes the protocol of each classifier.
    """
    columns = {point.name: point.columns for point in findings.points}
    fields = dict.fromkeys(key for row in columns.values() for key in row)
    labels = {point.name: point.label for point in findings.points}
    about = findings.results.about
    protocol = {
        "prompts_set": about["prompts"]["name"],
        "protocol": store.digest(store.read_protocol(findings.results.folder)),
        "judged_by": " or ".join(map(tag, about["classifiers"].values())),
    }
    return [
        {
            "point": line.point,
            "label": labels[line.point],
            **line._asdict(),
            **{key: columns[line.point].get(key) for key in fields},
            **protocol,
        }
        for line in found
    ]


def write_table(rows: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Write the table as `table.csv` and `table.parquet`, each whole or not at all."""
    write_whole(folder / "table.csv", csv_text(rows, list(rows[0]) if rows else ()))
    file = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(list(rows)), file)
    write_whole(folder / "table.parquet", file.getvalue())
