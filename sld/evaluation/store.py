"""The files of a run. They are written whole or not at all, have checksums, and are locked while a run works.

RUN/protocol.json                        everything that decides a result
RUN/rows.jsonl                           the selected rows
RUN/chunks/000007.jsonl                  records of the chunk's pictures
RUN/scores/NAME/000007.jsonl             verdicts of a classifier that was added later
RUN/embeddings/000007.safetensors        embeddings, where kept
RUN/images/CONFIGURATION/ROW-IMAGE.png   pictures, where kept
RUN/sessions.jsonl                       when, where and how fast the run went on: a log, on which no result rests
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from sld.choices import Count
from sld.data import Range, put, read
from sld.evaluation.choices import Keep, require_configuration_name
from sld.evaluation.protocol import rows_per_chunk
from sld.files import is_partial, write_json, write_whole
from sld.reading import json_lines, lines, parse_json, read_json, read_text
from sld.request import first_edition

PROTOCOL = "protocol.json"

Table = Mapping[str, Any]

_PROTOCOL: Mapping[str, Any] = {
    "prompts": Table,
    "configurations": Mapping[str, Table],
    "classifiers": Mapping[str, Table],
    "embedder": Table | None,
    "model": Table,
    "images": Count,
    "chunk": Count,
    "keep": Keep,
    "seeds": str,
    "base_seed": int,
    "row_guidance": bool,
    "row_size": bool,
}
"""What readers of a run need of its protocol, by name. It holds more."""

_TABLES: Mapping[str, Mapping[str, Any]] = {
    "prompts": {"name": str, "sha256": str, "ids_sha256": str, "rows": Count},
    "model": {"name": str},
}
"""What they need of the tables in it."""

_CLASSIFIER: Mapping[str, Any] = {
    "classifier": str,
    "version": str,
    "weights": Mapping[str, str],
    "labels": tuple[str, ...],
    "rule": str,
}
"""What they need of a classifier's protocol."""


def chunk_path(folder: Path, number: int) -> Path:
    """Return the path of a chunk's file, in the folder of a run's chunks or of a classifier's scores."""
    return folder / f"{number:06d}.jsonl"


def digest(value: Any) -> str:
    """Return the SHA-256 of a value that JSON can hold. The order of keys counts."""
    return hashlib.sha256(json.dumps(value, ensure_ascii=False).encode()).hexdigest()


def write_chunk(path: Path, header: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> None:
    """Write records, one per line, under a header. The first line is the SHA-256 of all others."""
    body = json_lines((header, *records))
    write_whole(path, hashlib.sha256(body).hexdigest().encode() + b"\n" + body)


def read_chunk(path: Path, header: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """Read the records of a chunk with this header; None if the file is missing, damaged or of another run."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    checksum, _, body = content.partition(b"\n")
    if hashlib.sha256(body).hexdigest().encode() != checksum:
        return None
    try:
        found, *records = map(json.loads, lines(body.decode()))
    except (ValueError, RecursionError):  # not written by `write_chunk`, although the checksum is right
        return None
    return records if found == header and all(isinstance(record, dict) for record in records) else None


def chunk_files(folder: Path, about: Mapping[str, Any]) -> dict[int, Path]:
    """Return the files of a run's chunks, by number and in order. A warning names files that belong to no chunk.

    Systems and people put copies and notes of their own beside the chunks: they are left alone.

    Args:
        folder: of the run.
        about: its protocol, which says how many chunks there are.
    """
    per_row = len(about["configurations"]) * about["images"]
    count = -(-about["prompts"]["rows"] // rows_per_chunk(per_row, about["chunk"]))
    paths = sorted(path for path in (folder / "chunks").glob("*") if not is_partial(path.relative_to(folder)))
    numbers = {path: int(path.stem) for path in paths if re.fullmatch(r"[0-9]{6,}\.jsonl", path.name)}
    found = dict(sorted((number, path) for path, number in numbers.items() if number < count))
    chunks = set(found.values())
    if foreign := [path.name for path in paths if path not in chunks]:
        listed = ", ".join(foreign[:3]) + (f" and {len(foreign) - 3} more" if len(foreign) > 3 else "")
        warnings.warn(
            f"{folder / 'chunks'} also holds what is no chunk of this run, left alone: {listed}", stacklevel=2
        )
    return found


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a run's folder against other runs. The system unlocks it when the process ends, also when it is killed.

    Raises:
        ValueError: another run has locked it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    # another file, because a process that asks for the lock may empty the lock's file
    holder = folder / ".holder"
    try:
        lock.acquire(timeout=0)
    except Timeout:
        who = "it has just begun"
        with suppress(OSError, ValueError):
            who = read_text(holder)
        raise ValueError(f"another run works in {folder} ({who}): wait for it or stop it") from None
    try:
        with suppress(OSError):  # it only says who holds the lock
            write_whole(holder, f"process {os.getpid()} on {platform.node()}")
        yield
    finally:
        with suppress(OSError):
            holder.unlink()
        lock.release()


def agree(folder: Path, protocol: Mapping[str, Any]) -> None:
    """Write the protocol of a new run, or compare it with that of the run in `folder`.

    Raises:
            ValueError: the protocols differ; the message lists the differences.
    """
    path = folder / PROTOCOL
    if not path.exists():
        if (folder / "chunks").exists():
            raise ValueError(f"{folder} holds chunks but no {PROTOCOL}: name another folder, or remove this one")
        write_json(path, protocol)
        return
    before = _read_object(path)
    now = json.loads(json.dumps(protocol))
    if changed := list(differences(before, now)):
        lines = "\n".join(f"  {name}: {_short(old)} before, {_short(new)} now" for name, old, new in changed)
        remedy = "Go on with the old one, or name another folder."
        model = before.get("model")
        if isinstance(model, dict) and "exact_batch" in model and "numerics" not in model:
            remedy = (
                f"{first_edition(model['exact_batch'])}, so that its pictures and new ones would differ: name another "
                "folder. `sld report` and `sld compare` read the old one as before."
            )
        raise ValueError(f"{folder} holds a run of another protocol:\n{lines}\n{remedy}")


def read_protocol(folder: Path) -> dict[str, Any]:
    """Read the protocol of the run in `folder`.

    Raises:
        ValueError: there is no run, or its protocol does not say what a run's protocol says; the message names file and
            key.
    """
    path = folder / PROTOCOL
    if not path.exists():
        raise ValueError(f"{folder} holds no run: {PROTOCOL} is missing")
    about = _read_object(path)
    _require(_PROTOCOL, about, f"{path}:")
    for name, kinds in _TABLES.items():
        _require(kinds, about[name], f"{path}: {name}")
    for name in about["configurations"]:
        require_configuration_name(name, f"{path}: configurations:")
    for name, classifier in about["classifiers"].items():
        _require(_CLASSIFIER, classifier, f"{path}: classifiers.{name}")
    return about


def _read_object(path: Path) -> dict[str, Any]:
    value = read_json(path)
    if not isinstance(value, dict):
        raise ValueError(
            f"{path} is damaged: expected an object, as runs write it; got {_short(value)}. Restore it, or "
            "name another folder."
        )
    return value


def _require(kinds: Mapping[str, Any], table: Mapping[str, Any], where: str) -> None:
    """Refuse a table in which a value is missing or of another type. What else it holds does not matter."""
    for name, kind in kinds.items():
        place = put(where, name)
        if name not in table:
            raise ValueError(f"{place} is missing: this is not the protocol of a run, or not all of it")
        read(kind, table[name], place)


_ABSENT = object()


def differences(before: Any, now: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Return the differences of two JSON values: dotted names with both values. The order of keys counts."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in dict.fromkeys((*before, *now)):
            inner = f"{name}.{key}" if name else key
            yield from differences(before.get(key, _ABSENT), now.get(key, _ABSENT), inner)
        if set(before) == set(now) and list(before) != list(now):
            yield f"order of {name or 'keys'}", list(before), list(now)
    elif before != now:
        yield name, before, now


def _short(value: Any) -> str:
    if value is _ABSENT:
        return "absent"
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:60] + f"… ({len(text)} characters)"


@dataclass(frozen=True)
class Session:
    """What is known of a time that a run was started.

    Attributes:
        command: the command line.
        pictures: number of pictures that were made, when it ended.
        seconds: that this took.
    """

    command: str | None = None
    pictures: Annotated[int, Range(1, 2**63)] | None = None
    seconds: Annotated[float, Range(0, above=True)] | None = None

    @property
    def speed(self) -> float | None:
        """Pictures per second, if known."""
        return None if self.pictures is None or self.seconds is None else self.pictures / self.seconds


def log_session(folder: Path, session: Mapping[str, Any]) -> None:
    """Append a line to the record of sessions. If it cannot be written, a warning says so and the run goes on."""
    path = folder / "sessions.jsonl"
    try:
        with path.open("a+b") as file:
            file.seek(0)
            before = file.read()
            cut = before != b"" and not before.endswith(b"\n")  # a full disk or a killed run has left half a line
            file.write(b"\n" * cut + json_lines([session]))
    except OSError as error:
        warnings.warn(f"{path} cannot be written ({error.strerror}): the run goes on without a record", stacklevel=2)


def sessions(folder: Path) -> list[Session]:
    """Return the record of sessions, as far as it can be read: no result rests on it."""
    try:
        text = read_text(folder / "sessions.jsonl")
    except (OSError, ValueError):
        return []
    found = []
    for line in lines(text):
        with suppress(ValueError):
            values = read(Table, parse_json(line))
            found.append(read(Session, {name: values[name] for name in _SESSION if name in values}))
    return found


_SESSION = ("command", "pictures", "seconds")


def write_embeddings(
    folder: Path, number: int, records: Sequence[Mapping[str, Any]], vectors: Mapping[Any, Tensor]
) -> list[dict[str, Any]]:
    """Write the vectors (d,) of a chunk's pictures, by (configuration, row, image).

    Returns:
        The records, each with the checksum of its vector.
    """
    found = [vectors.get((r["configuration"], r["row"], r["image"])) for r in records]
    noted = [
        {**record} if vector is None else {**record, "embedding": _checksum(vector)}
        for record, vector in zip(records, found, strict=True)
    ]
    present = [vector for vector in found if vector is not None]
    stacked = torch.stack(present) if present else torch.empty(0, 0)
    write_whole(_embeddings_path(folder, number), save({"embeddings": stacked.contiguous()}))
    return noted


def read_embeddings(folder: Path, number: int, records: Sequence[Mapping[str, Any]]) -> list[Tensor | None] | None:
    """Read the vector (d,) of each record, None for a record without; None if the file is missing or damaged."""
    try:
        stacked = load(_embeddings_path(folder, number).read_bytes())["embeddings"]
    except (FileNotFoundError, SafetensorError, KeyError):
        return None
    noted = [record.get("embedding") for record in records]
    if stacked.dtype != torch.float32 or stacked.ndim != 2 or len(stacked) != sum(sha is not None for sha in noted):
        return None
    rest = iter(stacked)
    vectors = [None if sha is None else next(rest) for sha in noted]
    return vectors if all(v is None or _checksum(v) == sha for v, sha in zip(vectors, noted, strict=True)) else None


def _embeddings_path(folder: Path, number: int) -> Path:
    return folder / "embeddings" / f"{number:06d}.safetensors"


def _checksum(vector: Tensor) -> str:
    return hashlib.sha256(vector.numpy().tobytes()).hexdigest()


def scores_header(folder: Path, protocol: Mapping[str, Any], number: int) -> dict[str, Any]:
    """Return the header of a file of later verdicts: the classifier, and the checksum of the judged chunk."""
    with chunk_path(folder / "chunks", number).open(encoding="ascii", errors="replace") as file:
        checksum = file.readline().strip()
    return {"classifier": digest(protocol), "of": checksum}


def added_classifiers(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the protocols of the classifiers that have judged the whole run later, by name.

    Raises:
        ValueError: one of them is damaged; the message names the file.
    """
    found = {}
    for path in sorted((folder / "scores").glob(f"*/{PROTOCOL}")):
        found[path.parent.name] = protocol = _read_object(path)
        _require(_CLASSIFIER, protocol, f"{path}:")
    return found
