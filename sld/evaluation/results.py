"""The results of a run: a record for each picture, with rows and configurations."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image, UnidentifiedImageError

from sld.evaluation import store
from sld.evaluation.classifiers.base import Verdict
from sld.evaluation.prompts import PromptSet, Row
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
    """

    folder: Path
    about: Mapping[str, Any]
    rows: Mapping[int, Row]
    records: Sequence[Record]

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
        chosen = [
            (decision, record.row, record.image)
            for record in self.records
            if record.configuration == configuration
            and record.failure is None
            and (category is None or category in self.rows[record.row].categories)
            and (decision := record.judged(judgement, self.classifiers)) is not None
        ]
        decisions, rows, images = zip(*chosen, strict=True) if chosen else ((), (), ())
        return np.array(decisions, bool), np.array(rows, np.int64), np.array(images, np.int64)

    def by_configuration(self) -> dict[str, list[Record]]:
        """Return the records of each configuration, in the run's order; an empty list for one without records."""
        records: dict[str, list[Record]] = {name: [] for name in self.configurations}
        for record in self.records:
            records[record.configuration].append(record)
        return records

    def picture(self, record: Record) -> Path | None:
        """Return the file of a picture, if it was kept."""
        path = picture_path(self.folder, record.configuration, record.row, record.image)
        return path if path.exists() else None


def located(where: str) -> tuple[Path, str | None] | None:
    """Return the folder that RUN or RUN:CONFIGURATION names, and the configuration; None if there is no such folder."""
    if Path(where).is_dir():
        return Path(where), None
    folder, _, name = where.rpartition(":")
    return (Path(folder), name) if folder and Path(folder).is_dir() else None


def picture_path(folder: Path, configuration: str, row: int, image: int) -> Path:
    """Return the path at which a run in `folder` keeps a picture."""
    return folder / "images" / configuration / f"{row:05d}-{image:02d}.png"


def read_picture(path: Path, sha256: str) -> np.ndarray:
    """Read the pixels uint8 (H, W, 3) of a picture that a run has kept.

    Args:
        path: its file.
        sha256: of the pixels that the run made.

    Raises:
        ValueError: the file cannot be read, or holds other pixels.
    """
    try:
        with Image.open(path) as file:
            pixels = np.array(file.convert("RGB"))
    except (OSError, UnidentifiedImageError) as error:
        raise ValueError(f"unreadable picture: {error}") from error
    if hashlib.sha256(pixels.tobytes()).hexdigest() != sha256:
        raise ValueError(f"{path.name} is not the picture that was made")
    return pixels


def read_results(folder: Path, classifiers: Sequence[str] | None = None) -> Results:
    """Read the results of the run in `folder`, finished or not.

    Args:
        folder: of the run.
        classifiers: names of classifiers, any one of which makes a picture inappropriate; None for all that judged the
            run.

    Raises:
        ValueError: there is no run, its files are damaged, or a classifier has not judged it.
    """
    about = store.read_protocol(folder)
    rows = store.read_chunk(folder / "rows.jsonl", {})
    if rows is None:
        raise ValueError(f"{folder / 'rows.jsonl'} is missing or damaged: run the same command again")
    run = store.digest(about)
    added = store.added_classifiers(folder)
    judges = {**about["classifiers"], **added}
    if unknown := [name for name in classifiers or () if name not in judges]:
        raise ValueError(f"{folder} holds no verdicts of {', '.join(unknown)}; there are {', '.join(judges) or 'none'}")
    chosen = {name: judges[name] for name in classifiers or judges}
    records = []
    for path in sorted((folder / "chunks").glob("*.jsonl")):
        number = int(path.stem)
        made = store.read_chunk(path, {"run": run, "chunk": number})
        if made is None:
            raise ValueError(f"{path} is damaged: run the same command again, and it will be made again")
        for name in added.keys() & chosen.keys():  # failures of other classifiers do not count
            protocol = added[name]
            path = store.chunk_path(folder / "scores" / name, number)
            scores = store.read_chunk(path, store.scores_header(folder, protocol, number))
            if scores is None:
                raise ValueError(f"{path} is missing, damaged or of older pictures: run sld score again")
            made = [_with(record, name, score) for record, score in zip(made, scores, strict=True)]
        records += map(_record, made)
    order = {name: k for k, name in enumerate(about["configurations"])}
    place = {row["id"]: k for k, row in enumerate(rows)}
    records.sort(key=lambda r: (order[r.configuration], place[r.row], r.image))
    return Results(
        folder=folder,
        about={**about, "classifiers": chosen, "command": _command(folder)},
        rows={row["id"]: Row(**{**row, "categories": tuple(row["categories"])}) for row in rows},
        records=records,
    )


def _command(folder: Path) -> str | None:
    """Return the command line that started the run, if it was recorded."""
    return next((session["command"] for session in store.sessions(folder) if "command" in session), None)


def _with(record: dict[str, Any], name: str, score: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record with a later verdict, or with the reason why there is none."""
    if "failure" in record or "failure" in score:
        return {**record, "failure": record.get("failure") or score["failure"]}
    return {**record, "verdicts": {**record["verdicts"], name: score}}


def _record(values: Mapping[str, Any]) -> Record:
    verdicts = {name: Verdict(**verdict) for name, verdict in values.get("verdicts", {}).items()}
    kept = ("configuration", "row", "image", "distance", "failure", "sha256")
    return Record(**{name: values[name] for name in kept if name in values}, verdicts=verdicts)
