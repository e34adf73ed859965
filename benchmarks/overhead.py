"""What the runner costs beside the model, what it stores, and how far batch sizes change pictures.

`python -m benchmarks.overhead` (ten minutes of one CPU core) prints JSON. Times are of the embedded model on one CPU
thread: by the clock, which also counts waiting for the disk, and of the processor, which does not count other work.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import sld
from benchmarks.measure import Device, Spent, spent
from sld import images
from sld.batching import batches
from sld.evaluation import store
from sld.evaluation.classifiers import Classifier, Verdict, make_classifier
from sld.evaluation.prompts import PromptSet, read_prompts
from sld.evaluation.protocol import Protocol, Task, configuration
from sld.evaluation.report import write_report
from sld.evaluation.results import read_results
from sld.evaluation.runner import Evaluation, finished, make_chunk, store_chunk, write_rows
from sld.evaluation.selection import Selection
from sld.guidance import guidance_for
from sld.pipeline import Pipeline
from sld.request import Request
from sld.samplers import make_sampler

CPU = Device("cpu")
CONFIGURATIONS = ("off", "weak", "medium", "strong", "max")
IMAGES = 10
BATCH = 16
MADE = 2
"""Chunks that are really made, after the recorded ones."""

BATCHES = (3, 8, 16)
COMPARED = 16
"""Pictures made alone and in batches."""


@dataclass
class Timed:
    """A classifier that notes how long it takes."""

    inner: Classifier
    spent: Spent = Spent()  # noqa: RUF009 (frozen)
    name: str = field(init=False)

    def __post_init__(self) -> None:
        self.name = self.inner.name

    @property
    def protocol(self) -> Mapping[str, Any]:
        return self.inner.protocol

    def __call__(self, pictures: Tensor) -> Sequence[Verdict]:
        start = Spent.now()
        verdicts = self.inner(pictures)
        self.spent = self.spent.plus(Spent.now().since(start))
        return verdicts


def paper_like(rows: int, judge: Classifier) -> Evaluation:
    """A run of the paper's shape: five configurations, ten images, so many rows of mini-I2P's prompts over and over."""
    pipe = sld.load(numerics="invariant")
    template = Request(
        prompt="",
        concept=pipe.config.defaults.concept,
        height=pipe.config.defaults.size,
        width=pipe.config.defaults.size,
    )
    prompts = read_prompts("mini-i2p")
    repeated = tuple(
        replace(prompts.rows[k % len(prompts.rows)], id=k, prompt=f"{prompts.rows[k % len(prompts.rows)].prompt} {k}")
        for k in range(rows)
    )
    return Evaluation(
        pipe=pipe,
        prompts=PromptSet("overhead", prompts.sha256, repeated),
        configurations={name: configuration(template, name, {"preset": name}) for name in CONFIGURATIONS},
        protocol=Protocol(images=IMAGES, chunk=len(CONFIGURATIONS) * IMAGES),  # a row; so many the default gives
        classifiers=[judge],
        batch_size=BATCH,
    )


def record(evaluation: Evaluation, folder: Path, pattern: int, chunks: int) -> None:
    """Write the first chunks as if they had been made: the records of chunk `pattern`, with verdicts by chance."""
    chance = random.Random(0)
    made = store.read_chunk(store.chunk_path(folder / "chunks", pattern), evaluation.header(pattern))
    assert made is not None
    for number in range(chunks):
        row = evaluation.chunks[number][0].id
        records = [
            {
                **old,
                "row": row,
                "verdicts": {n: {**v, "unsafe": chance.random() < 0.3} for n, v in old["verdicts"].items()},
            }
            for old in made
        ]
        store.write_chunk(store.chunk_path(folder / "chunks", number), evaluation.header(number), records)


def overhead(folder: Path, recorded: int) -> dict[str, Any]:
    """Times of a run with so many recorded pictures: what is not the model's and not the classifiers' is overhead."""
    per_chunk = len(CONFIGURATIONS) * IMAGES
    chunks = recorded // per_chunk
    judge = Timed(make_classifier("embedded"))
    evaluation = paper_like(chunks + MADE, judge)
    store.agree(folder, evaluation.about)
    write_rows(folder, evaluation.prompts.rows)
    times: dict[str, Spent] = defaultdict(Spent)

    def make(number: int) -> None:
        preparing = spent(CPU, lambda: evaluation.tasks(number))
        ticks, judge.spent = [Spent.now()], Spent()
        made = make_chunk(evaluation, number, lambda _: ticks.append(Spent.now()))
        store_chunk(evaluation, folder, number, made)
        parts = {
            "noise and requests": preparing,
            "model": ticks[-1].since(ticks[0]).since(preparing),
            "classifier": judge.spent,
            "distances, records and files": Spent.now().since(ticks[-1]).since(judge.spent),
        }
        for what, part in parts.items():
            times[what] = times[what].plus(part)

    make(chunks)  # also warms up
    times.clear()
    write = spent(CPU, lambda: record(evaluation, folder, chunks, chunks))
    for number in range(chunks, chunks + MADE):
        make(number)
    pictures = MADE * per_chunk
    scan = spent(CPU, lambda: [n for n in range(chunks) if not finished(evaluation, folder, n)])
    read = spent(CPU, lambda: read_results(folder))
    report = spent(CPU, lambda: write_report(read_results(folder), folder / "report")).since(read)
    each = {what: value.over(pictures) for what, value in times.items()}
    own = each["noise and requests"].plus(each["distances, records and files"]).plus(scan.over(recorded))
    files = [p.stat().st_size for p in (folder / "chunks").iterdir()]
    kept = [p.stat().st_size for p in (folder / "images").rglob("*.png")]
    return {
        "recorded pictures": recorded,
        "seconds per picture": {what: value._asdict() for what, value in each.items()},
        "seconds per picture, overhead with one resume": own._asdict(),
        "overhead / model": [mine / its for mine, its in zip(own, each["model"], strict=True)],
        "seconds": {
            what: value._asdict()
            for what, value in {"writing all": write, "resume": scan, "reading": read, "report": report}.items()
        },
        "bytes": {
            "record": sum(files) / (recorded + pictures),
            "record of q16 and nudenet": record_of_the_paper(),
            "embedding": embedding(folder),
            "png, 64 x 64": sum(kept) / len(kept) if kept else None,
        },
    }


def record_of_the_paper() -> int:
    """Bytes of a record with the paper's classifiers and one detection, in the shape that `runner.judge` gives it."""
    found = {"label": "FEMALE_BREAST_EXPOSED", "score": 0.6123456789012345}
    verdicts = {
        "q16": {"unsafe": True, "detail": {"p": 0.5123456789012345}},
        "nudenet": {"unsafe": True, "detail": {"detections": [found]}},
    }
    distance = {"rms": 0.2123456789012345, "ssim": 0.5123456789012345}
    place = {"configuration": "medium", "row": 4702, "image": 9, "sha256": "0" * 64}
    return len(json.dumps({**place, "verdicts": verdicts, "distance": distance})) + 1


def embedding(folder: Path, pictures: int = 50, width: int = 768) -> float:
    """Bytes of one picture's embedding: its part of the file, and the checksum in its record."""
    place = [{"configuration": "off", "row": 0, "image": k} for k in range(pictures)]
    vectors = {("off", 0, k): torch.zeros(width) for k in range(pictures)}
    noted = store.write_embeddings(folder / "sizes", 0, place, vectors)
    (file,) = (folder / "sizes" / "embeddings").iterdir()
    in_records = len(json.dumps(noted)) - len(json.dumps(place))
    return (file.stat().st_size + in_records) / pictures


def batch_differences(name: str) -> dict[str, Any]:
    """How far latents and pixels of pictures made in batches are from those made alone, and whether verdicts change."""
    pipe = sld.load()
    judge = make_classifier("embedded")
    asked = {"preset": name, "guidance_scale": pipe.config.defaults.guidance_scale}
    template = Request(
        prompt="",
        concept=pipe.config.defaults.concept,
        height=pipe.config.defaults.size,
        width=pipe.config.defaults.size,
    )
    run = Evaluation(
        pipe=pipe,
        prompts=Selection(first=COMPARED).apply(read_prompts("mini-i2p")),
        configurations={name: configuration(template, name, asked)},
        protocol=Protocol(images=1),
    )
    todo = [task for number in range(len(run.chunks)) for task in run.tasks(number)]

    def made(size: int) -> tuple[Tensor, Tensor]:
        latents, pictures = zip(*(sample(pipe, [todo[k] for k in members]) for members in _groups(size)), strict=True)
        return torch.cat(latents), torch.from_numpy(images.to_uint8(torch.cat(pictures)))

    def _groups(size: int) -> list[list[int]]:
        return batches([task.request for task in todo], size)

    alone, pictures = made(1)
    verdicts = [verdict.unsafe for verdict in judge(pictures)]
    found: dict[str, Any] = {"latents, root mean square": float(alone.square().mean().sqrt())}
    for size in BATCHES:
        latents, others = made(size)
        apart = (others.int() - pictures.int()).abs()
        found[f"batch of {size}"] = {
            "latents, largest difference": float((latents - alone).abs().max()),
            "pixels, largest difference of 255": int(apart.max()),
            "pixel values that differ": float((apart > 0).float().mean()),
            "pictures that differ": int((apart > 0).flatten(1).any(1).sum()),
            "verdicts that differ": sum(v.unsafe != before for v, before in zip(judge(others), verdicts, strict=True)),
        }
    return found


def sample(pipe: Pipeline, batch: Sequence[Task]) -> tuple[Tensor, Tensor]:
    """Last latents and decoded pictures of tasks of one configuration."""
    first = batch[0].request
    *_, last = pipe.sample(
        [task.request.prompt for task in batch],
        [task.request.seed for task in batch],
        sampler=make_sampler(first.sampler, pipe.schedule, first.steps),
        guidance=guidance_for(first.guidance),
        concept=first.concept,
        noise=torch.stack([task.noise for task in batch]),
    )
    return last.x, pipe.decode(last.x)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=100_000, help="recorded before the run goes on (%(default)s)")
    parser.add_argument("--folder", type=Path, help="on the disk to be measured (the system's for temporary files)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        found: dict[str, Any] = overhead(Path(folder), options.pictures)
    found["batches"] = {name: batch_differences(name) for name in ("off", "strong")}
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
