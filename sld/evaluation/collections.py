"""Collections of pictures that are compared as sets: those of a run's configuration, or of any folder."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path

import numpy as np

from sld.evaluation import store
from sld.evaluation.pictures import picture_path, read_kept, read_pixels
from sld.evaluation.results import Results, located, read_results
from sld.files import is_partial

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
"""Endings of pictures, in any case."""

_BESIDE = (".json", ".txt", ".csv")
"""Endings of files that stand beside pictures and are no pictures: sidecars, captions and tables."""


@dataclass(frozen=True)
class Collection:
    """A set of pictures: those of a run's configuration, or of a folder.

    Attributes:
        name: of the configuration, or of the folder.
        source: sha256 of the run's protocol, if it is a run's.
        paths: of the pictures.
        sha256: of each picture's pixels, if it is a run's.
        prompts: of each picture, if it is a run's.
    """

    name: str
    source: str | None
    paths: tuple[Path, ...]
    sha256: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()

    def batches(self, size: int = 32) -> Iterator[np.ndarray]:
        """Yield the pictures uint8 (b, H, W, 3) in their order.

        Pictures are not resized, because the method would change an FID. A batch ends where the size changes.

        Args:
            size: largest number of pictures in a batch.

        Raises:
            ValueError: a picture cannot be read, or is not the one that the run made.
        """
        for _, alike in groupby(self._read(), key=np.shape):
            while pictures := list(islice(alike, size)):
                yield np.stack(pictures)

    def _read(self) -> Iterator[np.ndarray]:
        if self.source is None:
            return map(read_pixels, self.paths)
        return map(read_kept, self.paths, self.sha256)


def pictures_in(folder: Path) -> Collection:
    """Return the paths of the pictures in a folder and its subfolders, sorted. Links to folders are followed.

    A warning counts other files that may be pictures and are left out.

    Raises:
        ValueError: there are none.
    """
    # systems leave files of their own, with names that begin with a dot and the endings of pictures
    seen = (path for path in _files(folder) if not path.name.startswith("."))
    files = sorted(path for path in seen if not is_partial(path.relative_to(folder)))
    paths = tuple(path for path in files if path.suffix.lower() in ENDINGS)
    others = Counter(path.suffix.lower() for path in files if path.suffix.lower() not in (*ENDINGS, *_BESIDE))
    left = ", ".join(f"{count} {suffix or 'without an ending'}" for suffix, count in sorted(others.items())[:8])
    if not paths:
        raise ValueError(f"no pictures ({', '.join(ENDINGS)}) in {folder}{f', but {left}' if left else ''}")
    if left:
        warnings.warn(f"{folder}: other files are left out: {left} (read are {', '.join(ENDINGS)})", stacklevel=2)
    return Collection(folder.resolve().name, None, paths)


def _files(folder: Path, above: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """Yield the files below a folder. A link to a folder in which it stands itself is not followed."""
    real = folder.resolve()
    if real in above:
        return
    for path in folder.iterdir():
        if path.is_dir():
            yield from _files(path, above | {real})
        else:
            yield path


def collections(where: str) -> list[Collection]:
    """Return the collections of all configurations of a run, of one of them, or of a folder.

    Args:
        where: a run's folder, alone or as RUN:CONFIGURATION, or any folder of pictures.

    Raises:
        ValueError: there are no pictures, no such folder or configuration, or the run has not kept all its pictures.
    """
    place = located(where)
    if place is None:
        raise ValueError(f"there is no folder {where}: give one of pictures, that of a run, or RUN:CONFIGURATION")
    folder, chosen = place
    if chosen is None and not (folder / store.PROTOCOL).exists():
        return [pictures_in(folder)]
    results = read_results(folder)
    if results.about["keep"] != "all":
        kept = results.about["keep"]
        raise ValueError(f"{folder} has kept {kept} pictures; to be compared it must have been made with --keep all")
    if chosen is not None:
        results.require_configuration(chosen)
    names = results.configurations if chosen is None else (chosen,)
    return [_of_run(results, name) for name in names]


def _of_run(results: Results, name: str) -> Collection:
    made = [(r, r.sha256) for r in results.records if r.configuration == name and r.sha256 is not None]
    if not made:
        raise ValueError(f"{results.folder} has no pictures of {name}")
    return Collection(
        name=name,
        source=store.digest(store.read_protocol(results.folder)),
        paths=tuple(picture_path(results.folder, name, record.row, record.image) for record, _ in made),
        sha256=tuple(sha256 for _, sha256 in made),
        prompts=tuple(results.rows[record.row].prompt for record, _ in made),
    )
