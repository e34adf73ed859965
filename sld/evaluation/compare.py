"""Sets of pictures, and what `sld fidelity` says of them: how far from other pictures, how near to their prompts."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sld.evaluation import store
from sld.evaluation.classifiers.clip import CLIPEmbedder, CLIPTexts
from sld.evaluation.features import Extract, Extractor, features
from sld.evaluation.fidelity import clip_distance, clip_score, frechet_distance, frechet_statistics, kernel_distance
from sld.evaluation.metrics import Estimate, mean
from sld.evaluation.results import Results, located, picture_path, read_picture, read_results
from sld.files import is_partial

ENDINGS = (".png", ".jpg", ".jpeg")
SUBSETS = 100
"""Of a KID, drawn with seed 0."""

Progress = Callable[[int], object]
"""Called with the number of pictures that have been seen."""


@dataclass(frozen=True)
class Collection:
    """Pictures that belong together: those of a run's configuration, or of a folder.

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
        """The pictures uint8 (b, H, W, 3), in their order.

        Nothing is resized, for how that is done changes an FID: where the size changes, a batch ends.

        Args:
            size: pictures at once, at most.

        Raises:
            ValueError: one cannot be read, or is not the one that the run made.
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
    # all that PIL has for broken files
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot read the picture {path}: {error}") from error


def pictures_in(folder: Path) -> Collection:
    """The PNG and JPEG pictures of a folder and of those in it, sorted by path.

    Raises:
        ValueError: there are none.
    """
    found = (path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS)
    paths = tuple(sorted(path for path in found if not is_partial(path.relative_to(folder))))
    if not paths:
        raise ValueError(f"no pictures ({', '.join(ENDINGS)}) in {folder}")
    return Collection(folder.resolve().name, None, paths)


def collections(where: str) -> list[Collection]:
    """The pictures of all configurations of a run, of one of them, or of a folder.

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


class Seen(NamedTuple):
    """Features (n, d) of a collection, and the sha256 of its pixels' hashes in their order."""

    features: Tensor
    sha256: str


class Distance(NamedTuple):
    """How far a collection is from the reference.

    Attributes:
        fid: the squared Fréchet distance; of Inception features, FID.
        kid: the mean kernel distance over subsets.
        deviation: of the subsets.
    """

    fid: float
    kid: float
    deviation: float


class Alignment(NamedTuple):
    """How near pictures are to their prompts.

    Attributes:
        score: the mean CLIP score, in [0, 100].
        distance: the mean CLIP distance, in [0, 2].
        cut: pictures whose prompts have more tokens than CLIP reads.
    """

    score: Estimate
    distance: Estimate
    cut: int


def see(collection: Collection, extract: Extract, progress: Progress = lambda _: None) -> Seen:
    """All features of a collection: they are held at once, n x d numbers of 8 bytes, for KID draws from them.

    Raises:
        ValueError: a picture cannot be read, or the extractor gives no features.
    """
    pixels = hashlib.sha256()

    def hashed() -> Iterator[np.ndarray]:
        for batch in collection.batches():
            for picture in batch:
                pixels.update(hashlib.sha256(picture.tobytes()).digest())
            yield batch
            progress(len(batch))

    found = list(features(hashed(), extract))
    return Seen(torch.cat(found), pixels.hexdigest())


def distance(seen: Seen, reference: Seen, subset_size: int) -> Distance:
    """FID and KID of two collections; warns where there are not more pictures than features.

    Raises:
        ValueError: there are too few pictures; see `require_enough`.
    """
    fewest, d = min(len(seen.features), len(reference.features)), seen.features.shape[1]
    if fewest <= d:
        warnings.warn(
            f"FID of {fewest} pictures with {d} features comes out too large: compare it only with FIDs of as many",
            stacklevel=2,
        )
    statistics = [frechet_statistics(f.split(1024)) for f in (reference.features, seen.features)]
    kid = kernel_distance(reference.features, seen.features, subsets=SUBSETS, subset_size=subset_size)
    return Distance(frechet_distance(*statistics), *kid)


def align(
    collection: Collection, images: CLIPEmbedder, texts: CLIPTexts, progress: Progress = lambda _: None
) -> Alignment:
    """CLIP score and distance of a run's pictures and their prompts, with intervals clustered by prompt.

    Raises:
        ValueError: a picture cannot be read.
    """
    embeddings = []
    for batch in collection.batches():
        embeddings.append(images.embed(batch))
        progress(len(batch))
    distinct = {prompt: texts.embed(prompt) for prompt in dict.fromkeys(collection.prompts)}
    image, text = torch.cat(embeddings), torch.stack([distinct[prompt] for prompt in collection.prompts])
    prompts = np.array(collection.prompts)
    score, apart = (mean(f(image, text).numpy(), prompts) for f in (clip_score, clip_distance))
    return Alignment(score, apart, sum(texts.cut(prompt) for prompt in collection.prompts))


def require_enough(collections: Iterable[Collection], subset_size: int) -> None:
    """Find out before the first picture is seen that FID or KID cannot be computed.

    Raises:
        ValueError: a collection has fewer pictures than a subset, or subsets are of fewer than two.
    """
    if subset_size < 2:
        raise ValueError(f"KID's subsets have at least 2 pictures; got {subset_size}")
    for collection in collections:
        if (n := len(collection.paths)) < subset_size:
            raise ValueError(
                f"{collection.name} has {n} pictures: KID's subsets are of {subset_size}; make more pictures, or take "
                "smaller subsets (--subset-size) and compare only with KIDs of the same size"
            )


def fidelity(
    measured: Sequence[Collection],
    reference: Collection | None,
    extractor: Extractor | None,
    clip: tuple[CLIPEmbedder, CLIPTexts] | None,
    subset_size: int,
    progress: Progress = lambda _: None,
) -> dict[str, Any]:
    """Everything that `sld fidelity` says, in values that JSON can hold.

    Args:
        measured: what is compared with the reference; the reference itself may be among them.
        reference: may be None without an extractor.
        extractor: makes the features of FID and KID; None for neither.
        clip: CLIP's halves, of one model; None for no CLIP score.
        subset_size: of KID.
        progress: see there.

    Returns:
        "protocol": what the numbers depend on; "collections": by name, "pictures" and, where measured, "fid", "kid" and
        "kid_deviation", "clip_score" and "clip_distance", each with its interval, and "prompts_cut".

    Raises:
        ValueError: there are too few pictures, one cannot be read, or is not the one that the run made.
    """
    about: dict[str, Any] = {}
    found: dict[str, dict[str, Any]] = {c.name: {"pictures": len(c.paths), "run": c.source} for c in measured}
    if extractor is not None and reference is not None:
        require_enough([reference, *measured], subset_size)
        base = see(reference, extractor.extract, progress)
        about["features"] = dict(extractor.protocol)
        about["kid"] = {"subsets": SUBSETS, "subset_size": subset_size, "seed": 0}
        about["reference"] = {
            "name": reference.name,
            "run": reference.source,
            "pictures": len(reference.paths),
            "sha256": base.sha256,
        }
        for collection in measured:
            if collection != reference:
                seen = see(collection, extractor.extract, progress)
                fid, kid, deviation = distance(seen, base, subset_size)
                found[collection.name] |= {"sha256": seen.sha256, "fid": fid, "kid": kid, "kid_deviation": deviation}
    if clip is not None:
        about["clip"] = {"images": dict(clip[0].protocol), "texts": dict(clip[1].protocol)}
        for collection in measured:
            score, apart, cut = align(collection, *clip, progress)
            found[collection.name] |= {"clip_score": _bounded(score), "clip_distance": _bounded(apart)}
            found[collection.name]["prompts_cut"] = cut
    return {"protocol": about, "collections": found}


def _bounded(estimate: Estimate) -> dict[str, Any]:
    """Bounds that there are; JSON has no infinity."""
    bounds = {"low": estimate.low, "high": estimate.high} if estimate.prompts > 1 else {}
    return {"value": estimate.value, **bounds, "prompts": estimate.prompts}
