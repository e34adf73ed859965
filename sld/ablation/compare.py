"""Comparison of two configurations picture by picture (`sld compare`): their differences, and the most different pairs.

The two may belong to one run or to two runs. Pictures are paired by row and image.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from textwrap import wrap
from typing import get_args

import numpy as np

from sld import images
from sld.ablation.sheets import Faults, framed
from sld.ablation.table import METRICS
from sld.evaluation import store
from sld.evaluation.distances import rms
from sld.evaluation.formatting import interval, number, p_value, prompts
from sld.evaluation.metrics import Decisions, align, paired_difference, prompt_labels
from sld.evaluation.pictures import read_kept, read_pixels
from sld.evaluation.recognition import recognised
from sld.evaluation.results import Judgement, Record, Results, located, read_results
from sld.evaluation.tabular import Cell, Table

SHARES = ("unsafe", "broken", "safe", "subject", "place", "prop")
"""Names of the metrics that are compared. All are shares of pictures."""

WIDTH = 24
"""Largest number of characters in a line of text on contact sheets."""

_ALIKE = ("seeds", "base_seed", "row_guidance", "row_size", "model", "prompts")
"""Parts of the protocol that must be equal in two runs. Otherwise pairs of pictures differ in noise or prompt."""


@dataclass(frozen=True)
class Side:
    """One side of a comparison: a configuration of a run.

    Attributes:
        results: of the run, with only the verdicts of classifiers that have judged both sides.
        configuration: its name in the run.
        says: its name in tables. If there are two runs, it contains the folder of the run.
    """

    results: Results
    configuration: str
    says: str

    @cached_property
    def records(self) -> dict[tuple[int, int], Record]:
        """The records of pictures that were made, by row and image."""
        mine = (r for r in self.results.records if r.configuration == self.configuration and r.failure is None)
        return {(record.row, record.image): record for record in mine}

    def require_pictures(self) -> None:
        """Refuse a picture of the side that is lost, damaged or exchanged, and so could not be judged later.

        Raises:
            PictureError: there is such a picture; the message names its file.
        """
        for record in self.results.records:
            if record.configuration == self.configuration and record.failure is not None:
                _kept(self, record)

    def observed(self, metric: str) -> Decisions:
        """Return values of a metric, row ids and images, each (n,), of the pictures that have a value."""
        found = []
        for (row, image), record in self.records.items():
            known: dict[str, bool] = dict(recognised(self.results, record))
            if self.results.classifiers:
                judged = {name: record.judged(name, self.results.classifiers) for name in get_args(Judgement)}
                known |= {name: decision for name, decision in judged.items() if decision is not None}
            if metric in known:
                found.append((known[metric], row, image))
        values, rows, numbers = zip(*found, strict=True) if found else ((), (), ())
        return np.array(values, bool), np.array(rows, np.int64), np.array(numbers, np.int64)


Two = tuple[Side, Side]
"""Two configurations to compare, the first minus the second."""


def sides(a: str, b: str) -> list[Two]:
    """Return the configurations to compare.

    Args:
        a, b: each RUN:CONFIGURATION, or the folder of a run. If one of them names a configuration, it counts for both.
            If none does, all configurations are compared whose name is in both runs.

    Raises:
        ValueError: there is no such run or configuration, the two are the same, no classifier has judged both, or a
            row has different prompts in the two runs.
    """
    (folder_a, name_a), (folder_b, name_b) = _place(a), _place(b)
    judges_a, judges_b = (read_results(folder).about["classifiers"] for folder in (folder_a, folder_b))
    common = [name for name in judges_a if judges_a[name] == judges_b.get(name)]
    if not common and (judges_a or judges_b):
        raise ValueError(f"no classifier has judged both {a} and {b}: run sld score on one of them")
    runs = [read_results(folder, common) for folder in (folder_a, folder_b)]
    for row in runs[0].rows.keys() & runs[1].rows.keys():
        if runs[0].rows[row].prompt != runs[1].rows[row].prompt:
            raise ValueError(f"row {row} has another prompt in {folder_b} than in {folder_a}: they cannot be paired")
    names = [(name_a or name_b, name_b or name_a)] if name_a or name_b else _shared(*runs)
    for results, chosen in zip(runs, zip(*names, strict=True), strict=True):
        for name in chosen:
            results.require_configuration(str(name))
    if folder_a == folder_b and any(x == y for x, y in names):
        raise ValueError(f"{a} and {b} are the same: name two configurations, as in {folder_a}:off {folder_a}:max")
    made = []
    for x, y in names:
        called = (x, y) if folder_a == folder_b else (f"{folder_a}:{x}", f"{folder_b}:{y}")
        made.append((Side(runs[0], str(x), str(called[0])), Side(runs[1], str(y), str(called[1]))))
    return made


def _place(where: str) -> tuple[Path, str | None]:
    """Return the folder of a run, and the name of a configuration if one is given."""
    place = located(where)
    if place is None:
        raise ValueError(f"there is no run {where}: give its folder, or RUN:CONFIGURATION")
    return place


def _shared(a: Results, b: Results) -> list[tuple[str, str]]:
    common = [(name, name) for name in a.configurations if name in b.configurations]
    if not common:
        raise ValueError(
            f"{a.folder} has {', '.join(a.configurations)}, {b.folder} has {', '.join(b.configurations)}: name one of "
            "each, as in RUN:CONFIGURATION"
        )
    return common


def table(compared: Sequence[Two]) -> Table:
    """Return the paired differences, a line for each metric of each two configurations.

    Raises:
        ValueError: they have no judged picture of one row and image in common.
    """
    rows = []
    for a, b in compared:
        for metric in SHARES:
            pairs = align(a.observed(metric), b.observed(metric))
            if not len(pairs.row):
                continue
            texts = {row.id: row.prompt for row in a.results.rows.values()}
            d = paired_difference(pairs.a, pairs.b, prompt_labels(pairs.row, texts))
            rows.append(
                [
                    Cell(f"{a.says} \N{MINUS SIGN} {b.says}, {METRICS[metric].says}"),
                    Cell(number(float(np.mean(pairs.a)))),
                    Cell(number(float(np.mean(pairs.b)))),
                    Cell(number(d.value), interval(d.low, d.high)),
                    Cell(p_value(d.p)),
                    Cell(p_value(d.mcnemar)),
                    Cell(str(d.only_a)),
                    Cell(str(d.only_b)),
                    Cell(str(d.images), prompts([d.prompts])),
                ]
            )
    if not rows:
        raise ValueError("the two have no judged picture of one row and image in common")
    header = ("", "first", "second", "difference", "p", "McNemar", "only first", "only second", "pairs")
    return Table("Paired differences", header, rows)


def notes(compared: Sequence[Two]) -> list[str]:
    """Return a line for each difference of the two protocols in the parts that `_ALIKE` names."""
    a, b = (side.results.about for side in compared[0])
    found = store.differences({key: a[key] for key in _ALIKE}, {key: b[key] for key in _ALIKE})
    return [f"the runs differ in {name}: {old} and {new}" for name, old, new in found]


@dataclass(frozen=True)
class Pair:
    """Two pictures of one row and image.

    Attributes:
        row, image: id of the row, and index of the image.
        prompt: of the row.
        apart: RMS distance of the pixels, with values in [0, 1].
        paths: files of the two pictures.
        faults: what is wrong with each of them: "unsafe", "broken", both or neither.
        names: of the two configurations.
    """

    row: int
    image: int
    prompt: str
    apart: float
    paths: tuple[Path, Path]
    faults: tuple[Faults, Faults]
    names: tuple[str, str]

    @property
    def says(self) -> str:
        """The pair in three lines for a terminal: row, image, distance and verdicts, then the two files."""
        verdicts = [" + ".join(faults) or "safe" for faults in self.faults]
        where = f"row {self.row}, image {self.image}: RMS {self.apart:.3f}, {verdicts[0]} and {verdicts[1]}"
        return f"{where}\n  {self.paths[0]}\n  {self.paths[1]}"


def most_different(compared: Sequence[Two], count: int) -> list[Pair]:
    """Return the pairs of kept pictures that differ most.

    Pairs of which one picture is unsafe, or one is broken, come before pairs that agree in this. Both groups are in the
    order of falling distance.

    Args:
        compared: what to compare.
        count: how many pairs to return at most.

    Raises:
        ValueError: a kept picture is not the one that was made.
    """
    found = [pair for two in compared for pair in _pairs(*two)]
    return sorted(found, key=lambda pair: (pair.faults[0] == pair.faults[1], -pair.apart, pair.row, pair.image))[:count]


def _pairs(a: Side, b: Side) -> list[Pair]:
    of_a, of_b = a.records, b.records
    for side in (a, b):
        side.require_pictures()
    made = []
    for key in of_a.keys() & of_b.keys():
        mine, other = _kept(a, of_a[key]), _kept(b, of_b[key])
        if mine is None or other is None or mine[1].shape != other[1].shape:
            continue
        made.append(
            Pair(
                row=key[0],
                image=key[1],
                prompt=a.results.rows[key[0]].prompt,
                apart=rms(mine[1][None], other[1][None])[0],
                paths=(mine[0], other[0]),
                faults=(of_a[key].faults(a.results.classifiers), of_b[key].faults(b.results.classifiers)),
                names=(a.says, b.says),
            )
        )
    return made


def _kept(side: Side, record: Record) -> tuple[Path, np.ndarray] | None:
    path = side.results.picture(record)
    return (path, read_kept(path, record.sha256)) if path is not None and record.sha256 else None


def sheet(pairs: Sequence[Pair]) -> bytes:
    """Return a contact sheet of pairs as a PNG file. Unsafe and broken pictures have frames, see `framed`.

    Raises:
        ValueError: there are no pairs.
    """
    if not pairs:
        raise ValueError("no pair of pictures was kept; make the runs with --keep all, or --keep flagged")
    rows = [
        [framed(read_pixels(path), faults) for path, faults in zip(pair.paths, pair.faults, strict=True)]
        for pair in pairs
    ]
    file = io.BytesIO()
    alike = len({pair.names for pair in pairs}) == 1
    columns = ["\n".join(wrap(name, WIDTH)) for name in pairs[0].names] if alike else ["first", "second"]
    labels = [
        "\n".join([f"row {pair.row}, image {pair.image}", *("" if alike else wrap(" and ".join(pair.names), WIDTH))])
        for pair in pairs
    ]
    images.contact_sheet(rows, columns, labels).save(file, format="PNG")
    return file.getvalue()
