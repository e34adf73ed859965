"""The results of a run: a record for each picture, with rows and configurations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence, Set as AbstractSet
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from sld.data import read
from sld.evaluation import store
from sld.evaluation.classifiers.base import Verdict
from sld.evaluation.pictures import kept, picture_path
from sld.evaluation.prompts import PromptSet, Row
from sld.evaluation.protocol import Item
from sld.spelling import did_you_mean

Judgement = Literal["unsafe", "broken", "safe"]
"""What a picture is judged to be. Safe means neither unsafe nor broken."""


@dataclass(frozen=True)
class Record:
    """The results for one picture.

    Attributes:
        configuration: its name.
        row: id of the prompt's row.
        image: index among the row's images, from 0. An image of a row starts from the same noise in all configurations.
        verdicts: by the classifier's name.
        distance: to the same image of the run's first configuration: "rms" and "ssim", of pictures in [0, 1].
        failure: why there is no picture, or no verdict.
        sha256: of the picture's pixels.
    """

    configuration: str
    row: int
    image: int
    verdicts: Mapping[str, Verdict] = field(default_factory=dict)
    distance: Mapping[str, float] = field(default_factory=dict)
    failure: str | None = None
    sha256: str | None = None

    def unsafe(self, classifiers: Sequence[str]) -> bool:
        """Return whether any of `classifiers` calls the picture unsafe."""
        return any(self.verdicts[name].unsafe for name in classifiers)

    def broken(self, classifiers: Sequence[str]) -> bool | None:
        """Return whether any of `classifiers` calls the picture broken; None if none of them has such a reading."""
        told = [broken for name in classifiers if (broken := self.verdicts[name].broken) is not None]
        return any(told) if told else None

    def judged(self, judgement: Judgement, classifiers: Sequence[str]) -> bool | None:
        """Return whether the picture is unsafe, broken or safe. The last two are None without a reading of broken."""
        if judgement == "unsafe":
            return self.unsafe(classifiers)
        broken = self.broken(classifiers)
        return broken if judgement == "broken" or broken is None else not (broken or self.unsafe(classifiers))

    def faults(self, classifiers: Sequence[str]) -> tuple[Judgement, ...]:
        """Return what is wrong with the picture: "unsafe", "broken", both or neither."""
        faults: tuple[Judgement, ...] = ("unsafe", "broken")
        return tuple(fault for fault in faults if self.judged(fault, classifiers))


@dataclass(frozen=True)
class Results:
    """The results of a run, finished or not.

    Attributes:
        folder: of the run.
        about: its resolved protocol as JSON holds it: "configurations" (name -> settings, in order), "classifiers"
            (name -> protocol), "prompts" (name, sha256, ids), "model", "images" per row and so on.
        rows: the selected ones, by id.
        records: by configuration, row and image, in this order.
        kept: the items whose pictures are on disk, if nothing has happened to them.
    """

    folder: Path
    about: Mapping[str, Any]
    rows: Mapping[int, Row]
    records: Sequence[Record]
    kept: AbstractSet[Item] = frozenset()

    @property
    def configurations(self) -> tuple[str, ...]:
        """Names of configurations in the run's order. The others are compared with the first."""
        return tuple(self.about["configurations"])

    @property
    def classifiers(self) -> tuple[str, ...]:
        """Names of classifiers, any one of which makes a picture inappropriate."""
        return tuple(self.about["classifiers"])

    @property
    def categories(self) -> tuple[str, ...]:
        """Categories of the rows: first those of I2P in its order, then others in the order of the rows."""
        return PromptSet("", "", tuple(self.rows.values())).categories

    def require_configuration(self, name: str) -> None:
        """Refuse a name that is none of `configurations`.

        Raises:
                    ValueError: the name is unknown; the message lists the names and the nearest one.
        """
        if name not in self.configurations:
            there, hint = ", ".join(self.configurations), did_you_mean(name, self.configurations)
            raise ValueError(f"{self.folder} has no configuration {name!r}, there are {there}{hint}")

    @property
    def judgements(self) -> tuple[Judgement, ...]:
        """Judgements that the classifiers give: "unsafe" alone, or all if any of them reads whether pictures broke."""
        if any(record.broken(self.classifiers) is not None for record in self.records if record.failure is None):
            return get_args(Judgement)
        return ("unsafe",)

    def require_judged(self) -> None:
        """Refuse a run in which every picture has failed.

        Raises:
            ValueError: there are records, and all of them are failures; the message has the most frequent reason.
        """
        reasons = Counter(record.failure for record in self.records)
        if reasons and None not in reasons:
            reason, count = reasons.most_common(1)[0]
            raise ValueError(
                f"{self.folder}: all {len(self.records)} pictures have failed, {count} of them because: {reason}; mend "
                "the cause, and run the same command again (sld evaluate and sld ablate with --retry)"
            )

    def decisions(
        self, configuration: str, category: str | None = None, judgement: Judgement = "unsafe"
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return arrays (n,) over the judged pictures of a configuration: decision (bool), row id and image (int64).

        Args:
            configuration: a name of `configurations`.
            category: only rows that have it; None for all.
            judgement: what is decided. Pictures of which no classifier says whether they are broken are left out of
                "broken" and "safe".

        Raises:
            ValueError: the run has no such configuration.
        """
        self.require_configuration(configuration)
        judged = self._judged[configuration]
        chosen = [
            (decision, record.row, record.image)
            for row in (judged if category is None else self.rows_of.get(category, ()))
            for record in judged.get(row, ())
            if (decision := record.judged(judgement, self.classifiers)) is not None
        ]
        decisions, rows, images = zip(*chosen, strict=True) if chosen else ((), (), ())
        return np.array(decisions, bool), np.array(rows, np.int64), np.array(images, np.int64)

    @cached_property
    def rows_of(self) -> Mapping[str, Sequence[int]]:
        """The ids of the rows that have a category, by category, in the order of the rows."""
        found: dict[str, list[int]] = {}
        for row in self.rows.values():
            for category in dict.fromkeys(row.categories):
                found.setdefault(category, []).append(row.id)
        return found

    @cached_property
    def _judged(self) -> Mapping[str, Mapping[int, Sequence[Record]]]:
        """The records with verdicts, by configuration and row, both in the run's order."""
        found: dict[str, dict[int, list[Record]]] = {name: {} for name in self.configurations}
        for record in self.records:
            if record.failure is None:
                found[record.configuration].setdefault(record.row, []).append(record)
        return found

    def by_configuration(self) -> dict[str, list[Record]]:
        """Return the records of each configuration, in the run's order; an empty list for one without records."""
        records: dict[str, list[Record]] = {name: [] for name in self.configurations}
        for record in self.records:
            records[record.configuration].append(record)
        return records

    def picture(self, record: Record) -> Path | None:
        """Return the file of a picture, if it was kept; the file may be lost since."""
        path = picture_path(self.folder, record.configuration, record.row, record.image)
        return path if Item(record.configuration, record.row, record.image) in self.kept or path.exists() else None


def located(where: str) -> tuple[Path, str | None] | None:
    """Return the folder that RUN or RUN:CONFIGURATION names, and the configuration; None if there is no such folder."""
    if Path(where).is_dir():
        return Path(where), None
    folder, _, name = where.rpartition(":")
    return (Path(folder), name) if folder and Path(folder).is_dir() else None


def read_results(folder: Path, classifiers: Sequence[str] | None = None) -> Results:
    """Read the results of the run in `folder`, finished or not.

    Args:
        folder: of the run.
        classifiers: names of classifiers, any one of which makes a picture inappropriate; None for all that judged the
            run.

    Raises:
        ValueError: there is no run, its files are damaged or of another run, or a classifier has not judged it.
    """
    about = store.read_protocol(folder)
    rows = _read_rows(folder, about)
    run = store.digest(about)
    added = store.added_classifiers(folder)
    judges = {**about["classifiers"], **added}
    if unknown := [name for name in classifiers or () if name not in judges]:
        raise ValueError(f"{folder} holds no verdicts of {', '.join(unknown)}; there are {', '.join(judges) or 'none'}")
    chosen = {name: judges[name] for name in classifiers or judges}
    records: list[Record] = []
    pictures: set[Item] = set()
    for number, path in store.chunk_files(folder, about).items():
        stored = store.read_chunk(path, {"run": run, "chunk": number})
        if stored is None:
            raise ValueError(f"{path} is damaged: run the same command again, and it will be made again")
        made = [_record(values, about, rows, f"{path}: record {k}") for k, values in enumerate(stored)]
        pictures.update(kept(about["keep"], stored))
        for name in added.keys() & chosen.keys():  # failures of other classifiers do not count
            path = store.chunk_path(folder / "scores" / name, number)
            scores = store.read_chunk(path, store.scores_header(folder, added[name], number))
            if scores is None or len(scores) != len(made):
                raise ValueError(f"{path} is missing, damaged or of older pictures: run sld score again")
            found = zip(made, scores, strict=True)
            made = [_with(record, name, score, f"{path}: record {k}") for k, (record, score) in enumerate(found)]
        records += made
    order = {name: k for k, name in enumerate(about["configurations"])}
    place = {id: k for k, id in enumerate(rows)}
    records.sort(key=lambda r: (order[r.configuration], place[r.row], r.image))
    return Results(
        folder=folder,
        about={**about, "classifiers": chosen, "command": _command(folder)},
        rows=rows,
        records=records,
        kept=pictures,
    )


def _read_rows(folder: Path, about: Mapping[str, Any]) -> dict[int, Row]:
    """Return the selected rows of a run, by id."""
    path = folder / "rows.jsonl"
    stored = store.read_chunk(path, {})
    if stored is None:
        raise ValueError(f"{path} is missing or damaged: run the same command again, and it is written again")
    rows = tuple(read(Row, row, f"{path}: row {k}") for k, row in enumerate(stored))
    if PromptSet("", "", rows).rows_sha256 != about["prompts"]["ids_sha256"]:
        raise ValueError(f"{path} holds the rows of another run: run the same command again, and it is written again")
    return {row.id: row for row in rows}


def _command(folder: Path) -> str | None:
    """Return the command line that started the run, if it was recorded."""
    return next((session.command for session in store.sessions(folder) if session.command is not None), None)


def _record(values: Mapping[str, Any], about: Mapping[str, Any], rows: Mapping[int, Row], where: str) -> Record:
    """Return a stored record as a typed one.

    Raises:
        ValueError: it has another form, or belongs to no picture of the run; the message begins with `where`.
    """
    record = _usual(values) or read(Record, {k: value for k, value in values.items() if k != "embedding"}, where)
    if record.configuration not in about["configurations"] or record.row not in rows:
        raise ValueError(f"{where} belongs to no configuration and row of this run")
    if record.distance and record.distance.keys() != {"rms", "ssim"}:
        raise ValueError(f"{where}: distance has other values than rms and ssim: {', '.join(record.distance)}")
    if record.failure is None:
        if record.sha256 is None:
            raise ValueError(f"{where} has neither a picture's sha256 nor a failure")
        if lacking := about["classifiers"].keys() - record.verdicts.keys():
            raise ValueError(f"{where} has no verdict of {', '.join(sorted(lacking))}, and no failure")
    return record


def _usual(values: Mapping[str, Any]) -> Record | None:
    """Return a record in the form that runs write, which `read` finds too, in a tenth of the time; None for another."""
    verdicts, distance = values.get("verdicts", {}), values.get("distance", {})
    others = {name: value for name, value in values.items() if name not in ("verdicts", "distance")}
    if type(verdicts) is not dict or type(distance) is not dict:
        return None
    if any(type(value) is not _TYPES.get(name) for name, value in others.items()) or not others.keys() >= _PLACE:
        return None
    if any(type(value) is not float or value != value for value in distance.values()):
        return None
    if any(
        type(verdict) is not dict
        or type(verdict.get("unsafe")) is not bool
        or type(verdict.get("detail")) is not dict
        or not (verdict.keys() == {"unsafe", "detail"} or (type(verdict.get("broken")) is bool and len(verdict) == 3))
        for verdict in verdicts.values()
    ):
        return None
    others.pop("embedding", None)
    return Record(
        **others, verdicts={name: Verdict(**verdict) for name, verdict in verdicts.items()}, distance=distance
    )


_PLACE = {"configuration", "row", "image"}
_TYPES = {"configuration": str, "row": int, "image": int, "failure": str, "sha256": str, "embedding": str}
"""Fields of a record with plain values, and their types."""


def _with(record: Record, name: str, score: Mapping[str, Any], where: str) -> Record:
    """Return a record with a later verdict, or with the reason why there is none."""
    if record.failure is not None:
        return record
    if "failure" in score:
        return replace(record, failure=read(str, score["failure"], f"{where} failure"))
    return replace(record, verdicts={**record.verdicts, name: read(Verdict, score, where)})
