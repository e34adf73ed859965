"""The quality of the embedded model and the effect of guidance on it, measured by the detector.

`python -m sld.testbed.quality --checkpoint weights/mini.safetensors --out runs/quality.json`

The result for each picture is written to `quality.jsonl` at once. The same command goes on where a killed run stopped,
on any device. On the CPU several processes share the pictures. On another device (`--device cuda`) there is one.
Picture k of a cell has seed k and the k-th prompt of its family with every preset, so cells of a family are paired.
With `--fidelity` the pictures of harmless prompts are also compared with as many fresh renders.
"""

from __future__ import annotations

import argparse
import json
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from einops import rearrange
from PIL import Image
from torch import Tensor, multiprocessing
from tqdm import tqdm

import sld
from sld import images
from sld.checkpoints.examine import examine
from sld.config import SAMPLERS
from sld.devices import usable
from sld.files import sha256, write_json
from sld.guidance import guidance_for
from sld.pipeline import Pipeline
from sld.spelling import named
from sld.testbed.art import ArtError
from sld.testbed.cells import Cell, cells
from sld.testbed.detector import Detector, load_detector, shipped_detector
from sld.testbed.rates import Record, features, fidelity, fresh_render, less_unsafe, summarise, table

BATCH, DEVICE_BATCH = 32, 256
"""Pictures of a batch, on the CPU and on other devices."""

SHEET = 24
"""Pictures of a contact sheet."""

_COLUMNS = 8


@dataclass(frozen=True)
class Settings:
    """Settings that all pictures of a run share.

    Attributes:
        checkpoint: the diffusion model.
        detector: reads the pictures.
        sampler: a key of `sld.config.SAMPLERS`.
        steps: of the sampler, at least 1.
        guidance_scale: s_g, finite and at least 0.
        device: of the model and the detector. A picture's noise is the same on every device.
    """

    checkpoint: Path
    detector: Path
    sampler: str
    steps: int
    guidance_scale: float
    device: str = "cpu"

    def about(self) -> dict[str, Any]:
        """Return what decides the pictures and their reading, with files by their SHA-256."""
        return {
            "checkpoint": sha256(self.checkpoint),
            "detector": sha256(self.detector),
            "sampler": self.sampler,
            "steps": self.steps,
            "guidance_scale": self.guidance_scale,
        }


@dataclass(frozen=True)
class Plan:
    """What is measured, and how.

    Attributes:
        settings: of all pictures.
        cells: that are measured.
        n: pictures in each cell.
        out: JSON file of the rates. Results of single pictures go to a .jsonl beside it.
        batch: pictures that are made together.
        processes: that share the pictures, with one thread each. 1 is this process.
        sheets: folder for contact sheets; None for none.
        fidelity: whether pictures of harmless prompts are compared with fresh renders.
    """

    settings: Settings
    cells: tuple[Cell, ...]
    n: int
    out: Path
    batch: int = BATCH
    processes: int = 1
    sheets: Path | None = None
    fidelity: bool = False


class Job(NamedTuple):
    """A batch of pictures of a cell. The first batch of a cell also writes a contact sheet to `sheets`."""

    settings: Settings
    cell: Cell
    pictures: tuple[int, ...]
    sheets: Path | None


@cache
def _models(settings: Settings) -> tuple[Pipeline, Detector]:
    pipe = sld.load(settings.checkpoint, device=settings.device, numerics="fast")
    return pipe, load_detector(settings.detector).to(pipe.device)


def judge(job: Job) -> list[Record]:
    """Sample the pictures of a job, and return for each its cell, number k, what the detector reads, and features."""
    settings, cell = job.settings, job.cell
    pipe, detector = _models(settings)
    *_, last = pipe.sample(
        [cell.prompt(k).text for k in job.pictures],
        job.pictures,
        sampler=pipe.sampler(settings.sampler, settings.steps),
        guidance=guidance_for(cell.safety, settings.guidance_scale),
        concept=cell.concept,
    )
    made = pipe.decode(last.x)
    if job.sheets and job.pictures[0] == 0:
        write_sheet(made[:SHEET], job.sheets / f"{cell.name.replace('/', '-')}.png")
    records = []
    for k, read, seen in zip(job.pictures, detector.read(made), features(detector, made), strict=True):
        record = {"cell": cell.name, "k": k, "subject": read.subject, "place": read.place, "props": sorted(read.props)}
        if read.broken is not None:
            record["broken"] = read.broken
        if cell.family == "harmless":
            record["features"] = seen
        records.append(record)
    return records


def write_sheet(pictures: Tensor, path: Path) -> None:
    """Write pictures (b, 3, h, w) in rows of 8, or in one row if they are fewer. A last row that is not full is cut."""
    columns = min(len(pictures), _COLUMNS)
    shown = images.to_uint8(pictures[: len(pictures) // columns * columns])
    grid = rearrange(shown, "(row column) h w rgb -> (row h) (column w) rgb", column=columns)
    images.write(Image.fromarray(grid), path)


def recorded(log: Path, run: dict[str, Any]) -> list[Record]:
    """Return the records in `log`. A new log begins with the line `run`. A half line that a killed run left is cut off.

    Raises:
        ValueError: the log belongs to another run.
    """
    if not log.exists():
        log.write_text(json.dumps(run) + "\n", encoding="utf-8")
    whole = log.read_bytes().rpartition(b"\n")[0]
    os.truncate(log, len(whole) + 1)
    first, *records = map(json.loads, whole.splitlines())
    if first != run:
        changed = [name for name in first | run if first.get(name) != run.get(name)]
        other = ", ".join(f"{name} {first.get(name)}, not {run.get(name)}" for name in changed)
        raise ValueError(f"{log} holds results with {other}: remove it, or write to another file")
    return records


def missing(
    chosen: Sequence[Cell], n: int, records: Sequence[Record], batch: int
) -> Iterator[tuple[Cell, tuple[int, ...]]]:
    """Return batches of those of the first n pictures of every cell that are not in `records`."""
    done = {(record["cell"], record["k"]) for record in records}
    for cell in chosen:
        left = [k for k in range(n) if (cell.name, k) not in done]
        yield from ((cell, tuple(left[i : i + batch])) for i in range(0, len(left), batch))


def measure(plan: Plan) -> list[Record]:
    """Make and judge the pictures that are still missing, and return the records of all, in the order of k.

    Raises:
        ValueError: the log beside `plan.out` belongs to another run.
        OSError: a file cannot be written.
    """
    plan.out.parent.mkdir(parents=True, exist_ok=True)
    log = plan.out.with_suffix(".jsonl")
    records = recorded(log, plan.settings.about())
    if plan.sheets:
        plan.sheets.mkdir(parents=True, exist_ok=True)
    left = missing(plan.cells, plan.n, records, plan.batch)
    jobs = [Job(plan.settings, cell, pictures, plan.sheets) for cell, pictures in left]
    for new in tqdm(_judged(jobs, plan.processes), total=len(jobs), unit="batch"):
        with log.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(record) + "\n" for record in new)
        records += new
    return sorted((record for record in records if record["k"] < plan.n), key=lambda record: record["k"])


def _judged(jobs: Sequence[Job], processes: int) -> Iterator[list[Record]]:
    """Yield the records of each job, in any order."""
    if processes == 1:
        yield from map(judge, jobs)
        return
    with multiprocessing.get_context("spawn").Pool(processes, torch.set_num_threads, (1,)) as pool:
        yield from pool.imap_unordered(judge, jobs)


def summaries(plan: Plan, records: Sequence[Record]) -> dict[str, dict[str, Any]]:
    """Return the rates of each cell of the plan by its name, with what it has less than "off" of its family, and FID.

    Raises:
        ArtError: renders to compare with are asked for, and the sprites are not there.
    """
    by_cell: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        by_cell[record["cell"]].append(record)
    found = {}
    for cell in plan.cells:
        mine = by_cell[cell.name]
        found[cell.name] = summarise(cell, mine)
        if cell.safety != "off" and (off := by_cell.get(f"{cell.family}/off")):
            found[cell.name]["less"] = less_unsafe(cell, off, mine)
        if plan.fidelity and cell.family == "harmless":
            found[cell.name]["fid"] = round(fidelity(mine, load_detector(plan.settings.detector)), 3)
    return found


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    p = argparse.ArgumentParser(description="Measure the embedded model with the detector.")
    p.add_argument("--checkpoint", type=Path, required=True, help="single file, its tokenizer beside it")
    p.add_argument("--out", type=Path, default=Path("runs/quality.json"), help="rates, as JSON (%(default)s)")
    p.add_argument("--n", type=int, default=400, help="pictures in each cell (%(default)s)")
    p.add_argument("--cells", help="families of prompts, separated by commas (all)")
    p.add_argument("--presets", help="only these, separated by commas (all)")
    p.add_argument("--sampler", help="(the checkpoint's)")
    p.add_argument("--steps", type=int, help="(the checkpoint's)")
    p.add_argument("--guidance-scale", type=float, help="s_g (the checkpoint's)")
    p.add_argument("--detector", type=Path, default=shipped_detector(), help="(%(default)s)")
    p.add_argument("--fidelity", action="store_true", help="FID of harmless pictures; needs the emoji sprites")
    p.add_argument("--device", default="cpu", help="of the model and the detector (%(default)s)")
    p.add_argument("--batch", type=int, help=f"pictures made together ({BATCH} on the CPU, else {DEVICE_BATCH})")
    p.add_argument("--processes", type=int, help="on the CPU, with one thread each (2)")
    p.add_argument("--sheets", type=Path, help=f"folder for a sheet of each cell's first {SHEET} pictures")
    return p


def plan_of(options: argparse.Namespace) -> Plan:
    """Return what the options ask for. All that they name is tried before: hours may pass until it is needed.

    Raises:
        ValueError: an option names what is not there, or a number is too small; the message says which.
        ArtError: renders are asked for, and the sprites are not there.
    """
    on_cpu = usable(options.device).type == "cpu"
    batch, processes = (BATCH, 2) if on_cpu else (DEVICE_BATCH, 1)
    batch = batch if options.batch is None else options.batch
    processes = processes if options.processes is None else options.processes
    if not on_cpu and processes != 1:
        raise ValueError(f"processes share the pictures on the CPU alone: leave out --processes on {options.device}")
    _require("--n", options.n, 2 if options.fidelity else 1)  # a covariance needs two pictures
    _require("--batch", batch, 1)
    _require("--processes", processes, 1)
    if options.fidelity:
        fresh_render(0)
    chosen = _cells(options.cells, options.presets)
    return Plan(_settings(options), chosen, options.n, options.out, batch, processes, options.sheets, options.fidelity)


def _settings(options: argparse.Namespace) -> Settings:
    """Return the settings that options give, with the checkpoint's defaults.

    Raises:
        ValueError: a file is not what it should be, or a setting is out of range.
    """
    defaults = examine(options.checkpoint).config.defaults
    settings = Settings(
        options.checkpoint,
        options.detector,
        options.sampler or defaults.sampler,
        defaults.steps if options.steps is None else options.steps,
        defaults.guidance_scale if options.guidance_scale is None else options.guidance_scale,
        options.device,
    )
    if not settings.detector.is_file():
        raise ValueError(f"{settings.detector}: there is no such file; expected a detector of the embedded world")
    load_detector(settings.detector)
    named("sampler", settings.sampler, SAMPLERS)
    _require("--steps", settings.steps, 1)
    guidance_for("off", settings.guidance_scale)
    return settings


def _require(option: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{option} must be at least {least}, got {value}")


def _cells(families: str | None, presets: str | None) -> tuple[Cell, ...]:
    """Return the cells of these families and presets, which are separated by commas; None for all.

    Raises:
        ValueError: a name is unknown, or no cell has both.
    """
    in_family = _chosen("--cells", families, [cell.family for cell in cells()])
    with_preset = _chosen("--presets", presets, [cell.safety for cell in cells()])
    chosen = tuple(cell for cell in cells() if cell.family in in_family and cell.safety in with_preset)
    if not chosen:
        raise ValueError(f"no cell of {families} has a preset of {presets}")
    return chosen


def _chosen(option: str, value: str | None, known: Sequence[str]) -> set[str]:
    names = set(known if value is None else value.split(","))
    if unknown := names.difference(known):
        listed = ", ".join(dict.fromkeys(known))
        raise ValueError(f"{option}: there is no {', '.join(sorted(unknown))}; there are {listed}")
    return names


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what the command line asks for, write the rates and print a table."""
    command = parser()
    options = command.parse_args(arguments)
    try:
        plan = plan_of(options)
        records = measure(plan)
    except (ValueError, ArtError, OSError) as error:
        command.error(str(error))
    found = summaries(plan, records)
    write_json(plan.out, {**plan.settings.about(), "n": plan.n, "cells": found})
    print(table(found))


if __name__ == "__main__":
    main()
