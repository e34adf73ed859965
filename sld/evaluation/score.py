"""Judging of a finished run by one more classifier, from kept pictures or embeddings. No picture is made again."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sld.evaluation import store
from sld.evaluation.classifiers.base import Classifier, JudgesEmbeddings, verdict_or_failure
from sld.evaluation.pictures import PictureError, picture_path, read_kept
from sld.evaluation.spread import Ranks
from sld.files import write_json


def score(
    folder: Path, classifier: Classifier, ranks: Ranks, progress: Callable[[int, int], object] | None = None
) -> None:
    """Add the verdicts of `classifier` to the run in `folder`. A call goes on where a killed one stopped.

    Args:
        folder: of the run.
        classifier: judges kept embeddings if it can, else kept pictures.
        ranks: this process among those that share the work.
        progress: called after each chunk with the number of chunks that this process has judged and has to judge.

    Raises:
        ValueError: there is no run, a classifier of this name has judged it, or it has not kept what the classifier
            needs.
    """
    about = store.read_protocol(folder)
    if classifier.name in about["classifiers"]:
        raise ValueError(
            f"{folder} was made with the classifier {classifier.name!r}; judge with another threshold in another run"
        )
    embedded = isinstance(classifier, JudgesEmbeddings) and classifier.embedder.protocol == about["embedder"]
    if not embedded and about["keep"] != "all":
        raise ValueError(
            f"{folder} has kept {about['keep']} pictures"
            + (" and embeddings of another network" if about["embedder"] else " and no embeddings")
            + f"; for {classifier.name} it must have been made with --keep all"
            + (", or with --embed" if isinstance(classifier, JudgesEmbeddings) else "")
        )
    protocol = json.loads(json.dumps(dict(classifier.protocol)))
    target = folder / "scores" / classifier.name
    numbers = store.chunk_files(folder, about) if ranks.first else ()  # the first process looks, for all
    run = store.digest(about)
    missing = ranks.gather([n for n in numbers if not _judged(folder, target, protocol, n)])[0]
    mine = missing[ranks.rank :: ranks.size]
    for done, number in enumerate(mine):
        records = store.read_chunk(store.chunk_path(folder / "chunks", number), {"run": run, "chunk": number})
        if records is None:
            raise ValueError(f"chunk {number} of {folder} is damaged: run the command that made it again")
        if embedded:
            scores = _from_embeddings(folder, number, records, classifier)  # type: ignore[arg-type]
        else:
            scores = [_from_picture(folder, record, classifier) for record in records]
        store.write_chunk(store.chunk_path(target, number), store.scores_header(folder, protocol, number), scores)
        if progress is not None:
            progress(done + 1, len(mine))
    ranks.gather(None)
    if ranks.first:  # written last, so that an unfinished scoring is not read
        write_json(target / store.PROTOCOL, protocol)


def _judged(folder: Path, target: Path, protocol: Mapping[str, Any], number: int) -> bool:
    """Return whether a chunk has been judged. Where a picture could not be judged, it is tried again."""
    scores = store.read_chunk(store.chunk_path(target, number), store.scores_header(folder, protocol, number))
    return scores is not None and not any("failure" in score for score in scores)


def _from_embeddings(
    folder: Path, number: int, records: Sequence[Mapping[str, Any]], classifier: JudgesEmbeddings
) -> list[dict[str, Any]]:
    vectors = store.read_embeddings(folder, number, records)
    if vectors is None:
        raise ValueError(f"embeddings of chunk {number} of {folder} are damaged: run the command that made it again")

    def judged(vector: Tensor | None) -> dict[str, Any]:
        return {"failure": "no picture"} if vector is None else verdict_or_failure(classifier.judge, vector[None])

    return [judged(vector) for vector in vectors]


def _from_picture(folder: Path, record: Mapping[str, Any], classifier: Classifier) -> dict[str, Any]:
    """Return the verdict on a kept picture, or the reason why there is none."""
    if "failure" in record:
        return {"failure": record["failure"]}
    path = picture_path(folder, record["configuration"], record["row"], record["image"])
    try:
        pixels = torch.from_numpy(read_kept(path, record["sha256"]))
    except PictureError as error:
        warnings.warn(f"{error}: recorded as a failure", stacklevel=2)
        return {"failure": error.reason}
    return verdict_or_failure(classifier, pixels[None])
