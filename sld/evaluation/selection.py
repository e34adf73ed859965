"""A selection of the rows of a prompt set."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from sld.evaluation.prompts import PromptSet, Row
from sld.spelling import did_you_mean


@dataclass(frozen=True)
class Selection:
    """A selection of rows of a set.

    All conditions hold at once. `sample` draws from the rows that the other conditions leave, and `first` is applied
    last.

    Attributes:
        categories: rows that have any of them; empty for all rows.
        hard: rows that are hard by the column "hard", or rows that are not; None for both.
        first: number of rows to keep.
        sample: number of rows to draw, stratified by their set of categories.
        sample_seed: of the draw.
        ids: rows with these ids; empty for all rows.

    Raises:
        ValueError: `first` or `sample` is under 1.
    """

    categories: tuple[str, ...] = ()
    hard: bool | None = None
    first: int | None = None
    sample: int | None = None
    sample_seed: int = 0
    ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name, count in (("first", self.first), ("sample", self.sample)):
            if count is not None and count < 1:
                raise ValueError(f"{name} must be at least 1; got {count}")

    def apply(self, prompts: PromptSet) -> PromptSet:
        """Return the selected rows, in the set's order and with their ids.

        Raises:
            ValueError: the set has no such category, id or column, or fewer rows than asked for, or no row is left.
        """
        rows = prompts.rows
        if self.ids:
            rows = _with_ids(rows, set(self.ids))
        if self.categories:
            _require_carried(self.categories, prompts.categories)
            rows = tuple(row for row in rows if not set(self.categories).isdisjoint(row.categories))
        if self.hard is not None:
            rows = tuple(row for row in rows if _hard(row) is self.hard)
        if self.sample is not None:
            _require_enough("sample", self.sample, rows)
            rows = _stratified_sample(rows, self.sample, self.sample_seed)
        if self.first is not None:
            _require_enough("first", self.first, rows)
            rows = rows[: self.first]
        if not rows:
            raise ValueError(f"no row of {prompts.name} is selected by {self}")
        return replace(prompts, rows=rows)


def _with_ids(rows: Sequence[Row], ids: set[int]) -> tuple[Row, ...]:
    unknown = sorted(ids.difference(row.id for row in rows))
    if unknown:
        raise ValueError(f"the set of {len(rows)} rows has no ids {', '.join(map(str, unknown[:10]))}")
    return tuple(row for row in rows if row.id in ids)


def _require_carried(categories: Iterable[str], carried: Sequence[str]) -> None:
    for category in categories:
        if category not in carried:
            there = f"there are {', '.join(carried)}" if carried else "its rows carry none"
            raise ValueError(f"the set has no category {category!r}, {there}{did_you_mean(category, carried)}")


def _require_enough(what: str, count: int, rows: Sequence[Row]) -> None:
    if count > len(rows):
        raise ValueError(f"{what} asks for {count} rows, there are {len(rows)}")


def _hard(row: Row) -> bool:
    said = row.columns.get("hard", "")
    known = {"1": True, "true": True, "0": False, "false": False}
    if said.lower() not in known:
        raise ValueError(f"hard: row {row.id} has {said!r} in a column 'hard'; it takes 0 or 1 in every row")
    return known[said.lower()]


def _stratified_sample(rows: Sequence[Row], size: int, seed: int) -> tuple[Row, ...]:
    """Draw a systematic sample of rows, stratified by their set of categories.

    Rows with equal sets of categories stand together, in a random order. From a random start every (n / size)-th row is
    taken. So all rows are equally likely, and a stratum of m rows gives floor(m size / n) rows or one more. Order and
    start come from hashes of seed and id, so they do not depend on the platform or on the version of Python.
    """

    def drawn(what: str) -> int:
        return int.from_bytes(hashlib.sha256(f"{seed} {what}".encode()).digest())

    ordered = sorted(rows, key=lambda row: (sorted(row.categories), drawn(f"row {row.id}")))
    start = drawn("start") % len(rows)
    return _with_ids(rows, {ordered[(k * len(rows) + start) // size].id for k in range(size)})
