"""The results of `sld fidelity`: distances of collections from a reference, and their agreement with prompts."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sld.evaluation.classifiers.clip import CLIPEmbedder, CLIPTexts
from sld.evaluation.collections import Collection
from sld.evaluation.distances import clip_distance, clip_score, frechet_distance, frechet_statistics, kernel_distance
from sld.evaluation.features import Extract, Extractor, features
from sld.evaluation.metrics import Estimate, mean

SUBSETS = 100
"""Number of subsets of a KID, which are drawn with seed 0."""

Progress = Callable[[int], object]
"""Function that is called with the number of pictures that were processed."""


class Seen(NamedTuple):
    """Features (n, d) of a collection, and the sha256 of its pixels' hashes in their order."""

    features: Tensor
    sha256: str


class Distance(NamedTuple):
    """The distances of a collection from the reference.

    Attributes:
        fid: the squared Fréchet distance; of Inception features, FID.
        kid: the mean kernel distance over subsets.
        deviation: standard deviation of the kernel distance over subsets.
    """

    fid: float
    kid: float
    deviation: float


class Alignment(NamedTuple):
    """The agreement of pictures with their prompts.

    Attributes:
        score: the mean CLIP score, in [0, 100].
        distance: the mean CLIP distance, in [0, 2].
        cut: number of pictures whose prompts have more tokens than CLIP reads.
    """

    score: Estimate
    distance: Estimate
    cut: int


def see(collection: Collection, extract: Extract, progress: Progress = lambda _: None) -> Seen:
    """Return all features of a collection.

    All n x d numbers of 8 bytes are held in memory, because KID draws from them.

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
    """Return FID and KID of two collections. Warn if there are not more pictures than features.

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
    # of two equal sets rounding may leave less than nothing
    return Distance(max(0.0, frechet_distance(*statistics)), *kid)


def align_with_prompts(
    collection: Collection, images: CLIPEmbedder, texts: CLIPTexts, progress: Progress = lambda _: None
) -> Alignment:
    """Return CLIP score and distance of a run's pictures and their prompts, with intervals clustered by prompt.

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
    """Refuse, before pictures are read, collections that are too small for FID or KID.

    Raises:
        ValueError: a collection has fewer pictures than a subset, or subsets have fewer than two.
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
    """Return the results of `sld fidelity`, in values that JSON can hold.

    Args:
        measured: collections that are compared with the reference. The reference may be one of them.
        reference: may be None without an extractor.
        extractor: makes the features of FID and KID; None for neither.
        clip: image and text half of a CLIP; None for no CLIP score.
        subset_size: of KID.
        progress: see `Progress`.

    Returns:
        "protocol": all that the numbers depend on; "collections": by name, "pictures" and, where measured, "fid", "kid"
        and
        "kid_deviation", "clip_score" and "clip_distance", each with its interval, and "prompts_cut".

    Raises:
        ValueError: there are too few pictures, or a picture cannot be read or is not the one that the run made.
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
            score, apart, cut = align_with_prompts(collection, *clip, progress)
            found[collection.name] |= {"clip_score": _bounded(score), "clip_distance": _bounded(apart)}
            found[collection.name]["prompts_cut"] = cut
    return {"protocol": about, "collections": found}


def _bounded(estimate: Estimate) -> dict[str, Any]:
    """Return an estimate for JSON. With one prompt its bounds are infinite and left out, as JSON has no infinity."""
    bounds = {"low": estimate.low, "high": estimate.high} if estimate.prompts > 1 else {}
    return {"value": estimate.value, **bounds, "prompts": estimate.prompts}
