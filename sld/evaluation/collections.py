"""Collections of pictures that are compared as sets: those of a run's configuration, or of any folder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path

import numpy as np
from PIL import Image

from sld.evaluation import store
from sld.evaluation.results import Results, located, picture_path, read_picture, read_results
from sld.files import is_partial

ENDINGS = (".png", ".jpg", ".jpeg")


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
            return map(_any_picture, self.paths)
        return map(read_picture, self.paths, self.sha256)


def _any_picture(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    # all errors that PIL raises for broken files
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot read the picture {path}: {error}") from error


def pictures_in(folder: Path) -> Collection:
    """Return the paths of PNG and JPEG pictures in a folder and its subfolders, sorted.

    Raises:
        ValueError: there are none.
    """
    found = (path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS)
    paths = tuple(sorted(path for path in found if not is_partial(path.relative_to(folder))))
    if not paths:
        raise ValueError(f"no pictures ({', '.join(ENDINGS)}) in {folder}")
    return Collection(folder.resolve().name, None, paths)


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
