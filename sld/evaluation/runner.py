"""The runner: it makes and judges the pictures of a run chunk by chunk. Runs are resumable, parallel and bit-equal."""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

import sld
from sld import images
from sld.batching import batches, network_rows, run
from sld.evaluation import store
from sld.evaluation.classifiers.base import Classifier, Embedder, verdict_or_failure
from sld.evaluation.distances import rms, ssim
from sld.evaluation.pictures import PictureError, kept, picture_path, read_kept
from sld.evaluation.prompts import PromptSet, Row
from sld.evaluation.protocol import Item, Protocol, Task, chunks, describe, ranges, require_seeds, tasks
from sld.evaluation.spread import Ranks
from sld.files import sweep
from sld.finite import finite
from sld.pipeline import Pipeline
from sld.request import Request
from sld.speed.rows import Rows

Keep = Literal["none", "flagged", "all"]

_GONE = "out of memory"


@dataclass(frozen=True)
class Evaluation:
    """A run: all that decides its results, and settings of its computation.

    Attributes:
        pipe: the model.
        prompts: the selected rows.
        configurations: by name; the others are compared with the first.
        protocol: how rows become pictures.
        classifiers: any one of which makes a picture inappropriate.
        keep: pictures to keep. "flagged" keeps an image of a row in all configurations if it is unsafe or broken in
            any, so that its versions can be compared.
        embedder: makes embeddings to keep, so that a classifier of embeddings can be added later.
        batch_size: pictures at once. It is not part of the protocol, because pictures have the same bits in any batch
            with "invariant" numerics.
        retry: make chunks with failed pictures again.
        models: changed models, by the names of the configurations that they make; `pipe` makes all others. A row's
            image has the same noise in all.

    Raises:
        ValueError: a configuration cannot be sampled, a seed is too large, there is nothing to make, or a model has
            other latents or numerics than `pipe`.
    """

    pipe: Pipeline
    prompts: PromptSet
    configurations: Mapping[str, Request]
    protocol: Protocol
    classifiers: Sequence[Classifier] = ()
    keep: Keep = "flagged"
    embedder: Embedder | None = None
    batch_size: int = 16
    retry: bool = False
    models: Mapping[str, Pipeline] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.prompts.rows or not self.configurations:
            raise ValueError("a run needs at least one row and one configuration")
        if self.keep not in ("none", "flagged", "all"):
            raise ValueError(f"keep must be none, flagged or all; got {self.keep!r}")
        if self.batch_size < 1:
            raise ValueError(f"batch size must be at least 1; got {self.batch_size}")
        names = [classifier.name for classifier in self.classifiers]
        if len(set(names)) < len(names):
            raise ValueError(
                f"two classifiers of one name: {', '.join(names)}; judge with another threshold in another run"
            )
        require_seeds(self.prompts.rows, self.protocol)
        self._require_like()
        for name, config in self.configurations.items():
            self._require_possible(name, config)
            if self.protocol.row_guidance and config.rule is not None:
                raise ValueError("a rule other than SLD has a scale of its own; leave --row-guidance out")

    def _require_like(self) -> None:
        for name, model in self.models.items():
            if name not in self.configurations:
                raise ValueError(f"a model for the configuration {name!r}, which the run does not have")
            if (own := _kind(model)) != (usual := _kind(self.pipe)):
                raise ValueError(f"the configuration {name!r}: its model has {own}, and the run's has {usual}")

    def _require_possible(self, name: str, config: Request) -> None:
        """Refuse, here and not after hours, what fails for every picture of a configuration."""
        try:
            self.evaluations_of(config)
            if not self.protocol.row_size or any(row.height is None or row.width is None for row in self.prompts.rows):
                self.model_of(name).config.latent_size((config.height, config.width))
            config.reuse.require(self.pipe.numerics, 0)
        except ValueError as error:
            raise ValueError(f"the configuration {name!r}: {error}") from error

    @cached_property
    def about(self) -> dict[str, Any]:
        """The resolved protocol, in values that JSON can hold. Runs of equal protocols have equal results."""
        shared = _about(self.pipe)
        return {
            "prompts": {
                "name": self.prompts.name,
                "sha256": self.prompts.sha256,
                "rows": len(self.prompts.rows),
                "ids": ranges([row.id for row in self.prompts.rows]),
                "ids_sha256": self.prompts.rows_sha256,
            },
            **asdict(self.protocol),
            "configurations": {
                name: {**describe(config), **_differences(_about(self.model_of(name)), shared)}
                for name, config in self.configurations.items()
            },
            "classifiers": {c.name: dict(c.protocol) for c in self.classifiers},
            "embedder": None if self.embedder is None else dict(self.embedder.protocol),
            "keep": self.keep,
            "model": {**shared, "threads": torch.get_num_threads()},  # CPU kernels divide their sums among threads
            "versions": {"sld": sld.__version__, "torch": torch.__version__},
        }

    @property
    def pictures(self) -> int:
        """Number of pictures of the run."""
        return len(self.prompts.rows) * self.pictures_per_row

    @property
    def pictures_per_row(self) -> int:
        """Number of pictures of one row, over all configurations."""
        return len(self.configurations) * self.protocol.images

    def model_of(self, configuration: str) -> Pipeline:
        """Return the model that makes a configuration's pictures."""
        return self.models.get(configuration, self.pipe)

    def by_model(self, todo: Sequence[Task]) -> list[tuple[Pipeline, list[Task]]]:
        """Return tasks grouped by the model that makes them."""
        groups: dict[int, tuple[Pipeline, list[Task]]] = {}
        for task in todo:
            model = self.model_of(task.item.configuration)
            groups.setdefault(id(model), (model, []))[1].append(task)
        return list(groups.values())

    def batches(self, todo: Sequence[Task]) -> Iterator[tuple[Pipeline, list[Task]]]:
        """Yield tasks in batches that can be sampled together, each with its model."""
        for model, mine in self.by_model(todo):
            for members in batches([task.request for task in mine], self.batch_size):
                yield model, [mine[k] for k in members]

    def evaluations_of(self, config: Request) -> int:
        """Network evaluations of one picture."""
        return len(config.make_sampler(self.pipe.schedule).timesteps)

    @property
    def network_rows(self) -> Rows:
        """Number of rows that the network computes in the run. Chunks with equal numbers of rows count the same."""
        lengths = [len(chunk) for chunk in self.chunks]
        asked = computed = shallow = 0
        for length, times in Counter(lengths).items():
            for model, todo in self.by_model(self.tasks(lengths.index(length))):
                rows = network_rows(model, [task.request for task in todo], self.batch_size)
                asked, computed = asked + times * rows.asked, computed + times * rows.computed
                shallow += times * rows.shallow
        return Rows(asked, computed, shallow)

    @cached_property
    def chunks(self) -> list[tuple[Row, ...]]:
        """The rows of each chunk."""
        return chunks(self.prompts.rows, self.pictures_per_row, self.protocol.chunk)

    def header(self, number: int) -> dict[str, Any]:
        """Return the header of a chunk's file, which identifies run and chunk."""
        return {"run": store.digest(self.about), "chunk": number}

    def tasks(self, number: int) -> list[Task]:
        """Return the pictures of a chunk as tasks."""
        config = self.pipe.config
        return tasks(self.chunks[number], self.configurations, self.protocol, config.vae.factor, config.unet.latent)


def _about(pipe: Pipeline) -> dict[str, Any]:
    """Return what a protocol says of a model."""
    return {
        "name": pipe.config.name,
        "sha256": dict(pipe.sha256),
        "dtype": str(pipe.unet.dtype).removeprefix("torch."),
        "device": pipe.device.type,
        "numerics": pipe.numerics,
        **pipe.unusual,
    }


def _differences(model: Mapping[str, Any], shared: Mapping[str, Any]) -> dict[str, Any]:
    """Return {"model": what a model has other than the run's}; nothing if there is no difference."""
    differ = {key: model.get(key) for key in {**shared, **model} if model.get(key) != shared.get(key)}
    return {"model": differ} if differ else {}


def _kind(pipe: Pipeline) -> str:
    """Return in words what the models of a run must have in common."""
    config = pipe.config
    return f"latents of {config.unet.latent} channels for {config.vae.factor} pixels, and {pipe.numerics} numerics"


@dataclass
class Made:
    """The pictures and results of one chunk, by item."""

    pictures: dict[Item, Tensor] = field(default_factory=dict)
    """Pictures to keep, uint8 (1, H, W, 3)."""
    failures: dict[Item, str] = field(default_factory=dict)
    records: list[dict[str, Any]] = field(default_factory=list)
    """Records of all items, in their order, in values that JSON can hold."""
    vectors: dict[Item, Tensor] = field(default_factory=dict)
    """Embeddings (d,), if they are kept."""


def evaluate(
    evaluation: Evaluation, folder: Path, ranks: Ranks, progress: Callable[[int, int], object] | None = None
) -> None:
    """Make the missing chunks of a run. Processes share the chunks.

    Args:
        evaluation: the run.
        folder: of its files, the same for all processes.
        ranks: this process among them.
        progress: called after each batch with the number of pictures that this process has made and has to make.

    Raises:
        ValueError: `folder` holds another run, or another process died.
        OSError: `folder` cannot be written.
    """
    if ranks.first:
        store.agree(folder, evaluation.about)
        sweep(folder)
        write_rows(folder, evaluation.prompts.rows)
    ranks.gather(None)  # no process looks before that
    every = range(len(evaluation.chunks))[ranks.rank :: ranks.size]  # each looks at its share, as pictures take time
    found = ranks.gather([number for number in every if not finished(evaluation, folder, number)])
    missing = sorted(chain.from_iterable(found))
    mine = missing[ranks.rank :: ranks.size]
    todo = sum(len(evaluation.chunks[number]) for number in mine) * evaluation.pictures_per_row
    done = 0

    def tick(pictures: int) -> None:
        nonlocal done
        done += pictures
        if progress is not None:
            progress(done, todo)

    start = time.monotonic()
    with ThreadPoolExecutor(max_workers=1) as beside:  # a thread compresses and writes while the next pictures are made
        writing: Future[None] | None = None
        for number in mine:
            chunk = make_chunk(evaluation, number, tick)
            if writing is not None:
                writing.result()  # raises an error of the thread, and lets no more than one chunk wait
            writing = beside.submit(store_chunk, evaluation, folder, number, chunk)
        if writing is not None:
            writing.result()
    seconds = time.monotonic() - start
    made = ranks.gather(done)
    if ranks.first and sum(made):
        session = {"pictures": sum(made), "seconds": round(seconds, 3), "processes": ranks.size}
        store.log_session(
            folder, {**session, "batch_size": evaluation.batch_size, "device": str(evaluation.pipe.device)}
        )


def finished(evaluation: Evaluation, folder: Path, number: int) -> bool:
    """Return whether the files of a chunk are there and undamaged. A warning names a kept picture that is not."""
    records = store.read_chunk(store.chunk_path(folder / "chunks", number), evaluation.header(number))
    if records is None or (evaluation.retry and any("failure" in record for record in records)):
        return False
    if evaluation.embedder is not None and store.read_embeddings(folder, number, records) is None:
        return False
    sha256 = {(r["configuration"], r["row"], r["image"]): r["sha256"] for r in records if "failure" not in r}
    try:
        for item in kept(evaluation.keep, records):
            read_kept(picture_path(folder, *item), sha256[item])
    except PictureError as error:
        warnings.warn(f"{error}: its chunk is made again", stacklevel=2)
        return False
    return True


def make_chunk(evaluation: Evaluation, number: int, tick: Callable[[int], object]) -> Made:
    """Make and judge the pictures of a chunk."""
    made = Made()
    todo = evaluation.tasks(number)
    for model, batch in evaluation.batches(todo):
        for task, outcome in zip(batch, sample(model, batch), strict=True):
            if isinstance(outcome, str):
                made.failures[task.item] = outcome
            else:
                made.pictures[task.item] = outcome
        tick(len(batch))
    made.records = judge(evaluation, made, [task.item for task in todo])
    if evaluation.embedder is not None:
        made.vectors = {item: evaluation.embedder.embed(picture)[0] for item, picture in made.pictures.items()}
    return made


def store_chunk(evaluation: Evaluation, folder: Path, number: int, made: Made) -> None:
    """Store the results of `make_chunk`. The records are written last, when all else is on disk."""
    records = made.records
    if evaluation.embedder is not None:
        records = store.write_embeddings(folder, number, records, made.vectors)
    for item in kept(evaluation.keep, records):
        path = picture_path(folder, *item)
        path.parent.mkdir(parents=True, exist_ok=True)
        images.write(Image.fromarray(made.pictures[item][0].numpy()), path)
    store.write_chunk(store.chunk_path(folder / "chunks", number), evaluation.header(number), records)


def sample(pipe: Pipeline, batch: Sequence[Task]) -> list[Tensor | str]:
    """Return a picture uint8 (1, H, W, 3) for each task of one batch, or the reason why there is none.

    If memory runs out or a task fails, each half of the batch is tried by itself.
    """
    try:
        made = run(pipe, [task.request for task in batch], noise=[task.noise for task in batch])
    except (RuntimeError, MemoryError, ValueError) as error:
        if not (isinstance(error, ValueError) or _out_of_memory(error)):
            raise
        reason = _GONE if _out_of_memory(error) else str(error)
    else:
        pictures = torch.from_numpy(images.to_uint8(made)).split(1)
        return [picture if ok else "not finite" for picture, ok in zip(pictures, finite(made), strict=True)]
    # here, because the handler keeps the tensors of the failed call alive
    if len(batch) == 1:
        return [reason]
    if reason == _GONE and torch.cuda.is_available():
        torch.cuda.empty_cache()
    half = len(batch) // 2
    return sample(pipe, batch[:half]) + sample(pipe, batch[half:])


def _out_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)  # the CPU's allocator


def judge(evaluation: Evaluation, made: Made, items: Sequence[Item]) -> list[dict[str, Any]]:
    """Judge the pictures, and return a record for each item, in their order, in values that JSON can hold."""
    records = [{**item._asdict(), **_findings(evaluation, made, item)} for item in items]
    if failures := [record["failure"] for record in records if "failure" in record]:
        warnings.warn(f"pictures fail, and are recorded with their reason: {failures[0]}", stacklevel=2)
    return records


def _findings(evaluation: Evaluation, made: Made, item: Item) -> dict[str, Any]:
    """Return what is found out about a picture, or the "failure" if there is no picture or no verdict."""
    picture = made.pictures.get(item)
    if picture is None:
        return {"failure": made.failures[item]}
    verdicts = {classifier.name: verdict_or_failure(classifier, picture) for classifier in evaluation.classifiers}
    for verdict in verdicts.values():
        if "failure" in verdict:
            return verdict
    found = {"sha256": hashlib.sha256(picture.numpy().tobytes()).hexdigest(), "verdicts": verdicts}
    baseline = made.pictures.get(item._replace(configuration=next(iter(evaluation.configurations))))
    if baseline is not None and baseline.shape == picture.shape:
        a, b = baseline.numpy(), picture.numpy()
        found["distance"] = {"rms": rms(a, b)[0], "ssim": ssim(a, b)[0]}
    return found


def write_rows(folder: Path, rows: Sequence[Row]) -> None:
    """Write the selected rows beside the results, so that results can be read without the file of the prompts."""
    path = folder / "rows.jsonl"
    records = [asdict(row) for row in rows]
    if store.read_chunk(path, {}) != json.loads(json.dumps(records)):
        store.write_chunk(path, {}, records)
