"""Files that appear whole or not at all, and the SHA-256 of a file. Importing this loads no torch.

A file is first written in a folder of its own beside the target, whose name begins with `PARTIAL`, and renamed when it
is on disk. So a reader sees the old file or the new one, whatever happens to the writer. An error removes that folder.
A process that is killed leaves it behind, and `sweep` removes it later.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

PARTIAL = ".partial-"
"""Beginning of the names of folders in which files are being written."""


@contextmanager
def whole(path: str | Path, *, replace: bool = True) -> Iterator[Path]:
    """Yield a path to write a file or a folder to; it becomes `path` when the block ends without an error.

    The path that is yielded has the target's name and suffix, and does not exist yet. What is written there is brought
    to disk (fsync) before it takes the target's place.

    Args:
        path: the target. Its folder must exist.
        replace: whether an existing file may be replaced. A folder replaces nothing, or an empty folder. Where no file
            may be, none is, also if another process makes it at the same moment.

    Raises:
        FileExistsError: the target exists and `replace` is False.
        OSError: it cannot be written. The message names the target, also for errors of the block that name no file, or
            the one being written. The old file stays.
    """
    with whole_together(path, replace=replace) as (beside,):
        yield beside


@contextmanager
def whole_together(*paths: str | Path, replace: bool = True) -> Iterator[tuple[Path, ...]]:
    """Yield a path for each of several targets, as `whole` does; none is replaced before all are on disk.

    Files take their places in the given order. If one cannot, and nothing was to be replaced, none is left there. Only
    a process that is killed between two of them leaves new files beside old ones.
    """
    targets = tuple(map(Path, paths))
    partial = tuple(target.with_name(PARTIAL + secrets.token_hex(4)) for target in targets)
    besides = tuple(folder / target.name for folder, target in zip(partial, targets, strict=True))
    with ExitStack() as cleaning:
        try:
            if not replace:
                _require_absent(targets)
            for folder in partial:
                folder.mkdir()
                cleaning.callback(shutil.rmtree, folder, ignore_errors=True)
            yield besides
            for beside in besides:
                _sync_tree(beside)
            if not replace:
                _require_absent(targets)  # another process may have made it while this one was written
            with ExitStack() as undoing:
                for beside, target in zip(besides, targets, strict=True):
                    if replace or beside.is_dir():
                        os.replace(beside, target)
                    else:
                        _put_beside_none(beside, target)
                        undoing.callback(os.unlink, target)
                undoing.pop_all()
            for folder in dict.fromkeys(target.parent for target in targets):
                _sync(folder)
        except (OSError, SafetensorError) as error:
            if (named := _about_targets(error, targets, partial)) is None:
                raise
            raise named from error


def write_whole(path: str | Path, content: str | bytes) -> None:
    """Write a file, whole or not at all; text is written as UTF-8. Missing folders above it are made.

    Raises:
        OSError: the file cannot be written; the message names it.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as beside:
        beside.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(path: str | Path, value: Any) -> None:
    """Write a value as indented JSON, whole or not at all. Missing folders above the file are made.

    Raises:
        OSError: the file cannot be written; the message names it.
        TypeError, ValueError: JSON cannot hold the value; NaN and infinity are no JSON.
    """
    write_whole(path, to_json(value))


def to_json(value: Any) -> str:
    """Return a value as JSON for a file: indented, with a newline at the end.

    Raises:
        TypeError, ValueError: JSON cannot hold the value; NaN and infinity are no JSON.
    """
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def sweep(folder: Path) -> None:
    """Remove half-written files of killed processes from a folder and from the folders in it.

    Args:
        folder: the folder. No other process may write there at the same time.
    """
    for left in sorted(folder.rglob(f"{PARTIAL}*")):
        shutil.rmtree(left, ignore_errors=True)


def is_partial(path: Path) -> bool:
    """Return whether a file is being written, or was left half written by a killed process."""
    return any(part.startswith(PARTIAL) for part in path.parts)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal. The file is read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_writable(folder: Path) -> None:
    """Refuse a folder in which nothing can be written, before work is done for it. It is made if it is missing.

    Raises:
        OSError: it cannot be made, or nothing can be made in it; the message names it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / (PARTIAL + secrets.token_hex(4))
    try:
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(folder)) from error


def _put_beside_none(beside: Path, target: Path) -> None:
    """Give a file its place, which must be free.

    Raises:
        FileExistsError: it is taken.
    """
    try:
        os.link(beside, target)  # unlike a rename, it never replaces
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        _require_absent((target,))
        os.replace(beside, target)


def _require_absent(targets: tuple[Path, ...]) -> None:
    for target in targets:
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))


def _sync_tree(path: Path) -> None:
    """Bring a file, or a folder with all that it holds, to disk."""
    if path.is_dir():
        for child in path.iterdir():
            _sync_tree(child)
    _sync(path)


def _sync(path: Path) -> None:
    if os.name == "nt":  # Windows syncs no folder, and no file that is open for reading
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _about_targets(
    error: OSError | SafetensorError, targets: tuple[Path, ...], partial: tuple[Path, ...]
) -> OSError | None:
    """Return the error as one about the files to be written; None if it is about another file."""
    if isinstance(error, SafetensorError):  # says only the system's error number when a disk is full
        number = re.search(r"\(os error (\d+)\)", str(error))
        return OSError(int(number[1]), os.strerror(int(number[1])), _listed(targets)) if number else None
    about = targets
    if error.filename is not None:
        inside = [t for t, folder in zip(targets, partial, strict=True) if _is_below(error.filename, folder)]
        if not inside:
            return None
        about = (inside[0],)
    if error.errno is None:
        return OSError(f"{_listed(about)}: {error}")
    return OSError(error.errno, error.strerror or os.strerror(error.errno), _listed(about))


def _is_below(filename: Any, folder: Path) -> bool:
    return isinstance(filename, str | os.PathLike) and Path(filename).is_relative_to(folder)


def _listed(targets: tuple[Path, ...]) -> str:
    return " and ".join(map(str, targets))
