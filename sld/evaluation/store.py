"""The files of a run. They are written whole or not at all, have checksums, and are locked while a run works.

RUN/protocol.json            everything that decides a result RUN/chunks/000007.jsonl      records of the chunk's
pictures RUN/scores/NAME/000007.jsonl verdicts of a classifier that was added later RUN/embeddings/000007.safetensors,
RUN/images/CONFIGURATION/ROW-IMAGE.png   where kept RUN/sessions.jsonl           when, where and how fast the run went
on
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from sld.files import write_json, write_whole
from sld.request import first_edition

PROTOCOL = "protocol.json"


def chunk_path(folder: Path, number: int) -> Path:
    """Return the path of a chunk's file, in the folder of a run's chunks or of a classifier's scores."""
    return folder / f"{number:06d}.jsonl"


def digest(value: Any) -> str:
    """Return the SHA-256 of a value that JSON can hold. The order of keys counts."""
    return hashlib.sha256(json.dumps(value, ensure_ascii=False).encode()).hexdigest()


def write_chunk(path: Path, header: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> None:
    """Write records, one per line, under a header. The first line is the SHA-256 of all others."""
    lines = [json.dumps(line, allow_nan=False, ensure_ascii=False) for line in (header, *records)]
    body = "".join(line + "\n" for line in lines).encode()
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
    found, *records = map(json.loads, body.decode().splitlines())
    return records if found == header else None


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
        with suppress(FileNotFoundError):
            who = holder.read_text(encoding="utf-8")
        raise ValueError(f"another run works in {folder} ({who}): wait for it or stop it") from None
    try:
        write_whole(holder, f"process {os.getpid()} on {platform.node()}")
        yield
    finally:
        holder.unlink(missing_ok=True)
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
    before = read_protocol(folder)
    now = json.loads(json.dumps(protocol))
    if changed := list(differences(before, now)):
        lines = "\n".join(f"  {name}: {_short(old)} before, {_short(new)} now" for name, old, new in changed)
        remedy = "Go on with the old one, or name another folder."
        model = before.get("model", {})
        if "exact_batch" in model and "numerics" not in model:
            remedy = (
                f"{first_edition(model['exact_batch'])}, so that its pictures and new ones would differ: name another "
                "folder. `sld report` and `sld compare` read the old one as before."
            )
        raise ValueError(f"{folder} holds a run of another protocol:\n{lines}\n{remedy}")


def read_protocol(folder: Path) -> dict[str, Any]:
    """Read the protocol of the run in `folder`.

    Raises:
        ValueError: there is no run, or its protocol is no JSON.
    """
    path = folder / PROTOCOL
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{folder} holds no run: {PROTOCOL} is missing") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged: {error}") from None


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
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:60] + f"… ({len(text)} characters)"


def log_session(folder: Path, session: Mapping[str, Any]) -> None:
    """Append a line to the record of sessions."""
    with (folder / "sessions.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(session) + "\n")


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
        stacked = iter(load(_embeddings_path(folder, number).read_bytes())["embeddings"])
        vectors = [next(stacked) if "embedding" in record else None for record in records]
    except (FileNotFoundError, SafetensorError, StopIteration, KeyError):
        return None
    if any(v is not None and _checksum(v) != r["embedding"] for v, r in zip(vectors, records, strict=True)):
        return None
    return vectors


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
    """Return the protocols of the classifiers that have judged the whole run later, by name."""
    paths = sorted((folder / "scores").glob(f"*/{PROTOCOL}"))
    return {path.parent.name: json.loads(path.read_text(encoding="utf-8")) for path in paths}


def sessions(folder: Path) -> list[dict[str, Any]]:
    """Return the record of sessions: an entry for each time that the run was started."""
    path = folder / "sessions.jsonl"
    if not path.exists():
        return []
    whole = path.read_text(encoding="utf-8").rpartition("\n")[0]  # a killed run may leave half a line
    return [json.loads(line) for line in whole.splitlines()]
