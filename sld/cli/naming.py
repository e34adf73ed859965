"""Files of pictures in a folder where nothing is replaced: a name that is taken by another picture gets a number."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator, Mapping
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sld.files import whole, whole_together
from sld.reading import read_json

if TYPE_CHECKING:
    from PIL import Image

LONGEST = 100
"""Bytes of a prompt in a file name. File systems take 255, for a name with everything before and after it."""


def slug(prompt: str) -> str:
    """Return a prompt as a part of a file name: letters, marks and digits of any script, and pictographs.

    Everything else becomes a hyphen. A prompt of nothing else is called "signs", and one of nothing "empty".
    """
    text = unicodedata.normalize("NFC", prompt.lower())
    words = "".join(c if _stays(c) else " " for c in text).split()
    cut = "-".join(words)[:60].encode(errors="ignore")[:LONGEST].decode(errors="ignore").strip("-")
    return cut or ("signs" if prompt.strip() else "empty")


def _stays(character: str) -> bool:
    return unicodedata.category(character)[0] in "LMN" or unicodedata.category(character) == "So"


def there(folder: Path, name: str, about: Mapping[str, Any]) -> Path | None:
    """Return the picture of this name, with or without a number, whose sidecar says the same; None if there is none.

    Args:
        folder: of the pictures.
        name: without a number and an ending.
        about: what the sidecar should hold, in values that JSON has. The size of the batch does not count: it
            changes last bits at most.
    """
    for path in _paths(folder, name):
        sidecar = path.with_suffix(".json")
        if not path.exists() and not sidecar.exists():
            return None
        if path.exists() and _says(sidecar, about):
            return path
    raise AssertionError("paths do not end")


def write_new(image: Image.Image, folder: Path, name: str, about: Mapping[str, Any]) -> Path:
    """Write a picture and its sidecar under the first free name, and return the picture's path.

    Where another process has written the same picture meanwhile, its files stay and its path is returned.

    Raises:
        OSError: the files cannot be written; the message names them. Neither is there then.
    """
    from sld import images

    for path in _paths(folder, name):
        sidecar = path.with_suffix(".json")
        try:
            images.write_new(image, path, about)
            return path
        except FileExistsError:
            if path.exists() and _says(sidecar, about):
                return path
            if not path.exists() and _content(sidecar) == about:  # whoever wrote it was killed before the picture
                images.write(image, path)
                return path
    raise AssertionError("paths do not end")


def write_beside(write: Callable[..., object], *paths: Path) -> tuple[Path, ...]:
    """Write files that belong together: under their names, or, if one is taken, all with the first free number.

    Args:
        write: takes a path for each file, and writes them. It is called once more if a name is taken meanwhile.
        paths: the files.

    Returns:
        Their paths.

    Raises:
        OSError: a file cannot be written; the message names it. None is there then.
    """
    for numbered in zip(*map(_numbered, paths), strict=True):
        try:
            with whole_together(*numbered, replace=False) as besides:
                write(*besides)
            return numbered
        except FileExistsError:
            continue
    raise AssertionError("paths do not end")


def write_once(text: str, path: Path) -> Path:
    """Write a text under its name, or, if another text has it, with the first free number, and return the path.

    Where the same text is already there, it stays and its path is returned.

    Raises:
        OSError: the file cannot be written; the message names it.
    """
    for numbered in _numbered(path):
        try:
            with whole(numbered, replace=False) as beside:
                beside.write_bytes(text.encode())
            return numbered
        except FileExistsError:
            if numbered.is_file() and numbered.read_bytes() == text.encode():
                return numbered
    raise AssertionError("paths do not end")


def _paths(folder: Path, name: str) -> Iterator[Path]:
    """Yield the paths that a picture may have."""
    return _numbered(folder / f"{name}.png")


def _numbered(path: Path) -> Iterator[Path]:
    """Yield the path without a number, then with 2, 3 and so on."""
    ending = path.suffix
    return (
        path.with_name(path.name.removesuffix(ending) + number + ending)
        for number in chain([""], map("-{}".format, count(2)))
    )


def _says(sidecar: Path, about: Mapping[str, Any]) -> bool:
    found = _content(sidecar)
    return found is not None and {**found, "batch": 1} == {**about, "batch": 1}


def _content(sidecar: Path) -> dict[str, Any] | None:
    try:
        found = read_json(sidecar)
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
