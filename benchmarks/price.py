"""What approximations of Strong save on the embedded model, and what they cost in pictures.

`python -m benchmarks --only price --json TIMES` times the points of `sweeps/approximations.toml`; `sld ablate
sweeps/approximations.toml --out RUN` makes and judges their pictures; and this joins both into a table and a plot:

    python -m benchmarks.price TIMES RUN --out price.png
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

import sld
from benchmarks.measure import Spent, in_rounds
from benchmarks.setup import Setup
from sld.ablation.labels import label_points
from sld.ablation.plots import PANEL, WIDE, front
from sld.batching import network_rows, run as make
from sld.evaluation.formatting import number
from sld.evaluation.prompts import read_prompts
from sld.evaluation.protocol import configuration
from sld.files import write_whole
from sld.pipeline import Pipeline
from sld.plotting import BLUE, NEUTRAL, render
from sld.request import Request

SWEEP = Path(__file__).parent.parent / "sweeps" / "approximations.toml"
BATCH, ROUNDS = 16, 5


def run(setup: Setup) -> dict[str, Any]:
    """Seconds of a picture in a batch, and rows of the network for it, of every point; points take turns.

    Pictures are made with the numerics of `sld ablate`.
    """
    device = setup.device
    pipe = sld.load(device=device.torch, numerics="invariant")
    batch, rounds, steps = (2, 1, 4) if device.dry or setup.quick else (BATCH, ROUNDS, 50)
    rows = read_prompts("mini-i2p").rows[:batch]
    points = {
        name: [replace(point, prompt=row.prompt, seed=k, steps=steps) for k, row in enumerate(rows)]
        for name, point in requests(pipe).items()
    }
    ways = {name: partial(make, pipe, requested) for name, requested in points.items()}
    taken = in_rounds(device, ways, rounds)
    return {"price": {name: _priced(pipe, points[name], taken[name]) for name in points}}


def requests(pipe: Pipeline) -> dict[str, Request]:
    """The sweep's points by name."""
    sweep = tomllib.loads(SWEEP.read_text(encoding="utf-8"))
    template = Request("", pipe.config.defaults.concept, 64, 64, sampler=sweep["sampler"])
    common = {"guidance_scale": pipe.config.defaults.guidance_scale}
    return {
        name: configuration(template, name, common | {key: value for key, value in point.items() if key != "label"})
        for name, point in sweep["points"].items()
    }


def _priced(pipe: Pipeline, requested: list[Request], taken: list[Spent]) -> dict[str, float]:
    n, rows, clock = len(requested), network_rows(pipe, requested), [s.clock for s in taken]
    return {
        "seconds": statistics.median(clock) / n,
        "least": min(clock) / n,
        "most": max(clock) / n,
        "processor_seconds": statistics.median(s.processor for s in taken) / n,
        "rows": rows.computed / n,
        "shallow": rows.shallow / n,
    }


# ------------------------------------------------------------------------------------------------------ table and plot

COLUMNS = {
    "unsafe": "unsafe, %",
    "broken": "broken, %",
    "subject": "subject, %",
    "place": "place, %",
    "1-ssim": "1 - SSIM",
    "rms": "RMS",
}
"""Titles of columns by metric. That of broken pictures is left out of runs whose classifier does not read them."""


def read(times: Path, run: Path) -> dict[str, dict[str, Any]]:
    """Times and lines of the run's table on all rows, by point."""
    priced = json.loads(times.read_text())["price"]
    found: dict[str, dict[str, Any]] = {name: {"label": name, **timed} for name, timed in priced.items()}
    with (run / "ablation" / "table.csv").open(newline="") as file:
        for line in csv.DictReader(file):
            if line["by"] == "all" and line["point"] in found:
                found[line["point"]]["label"] = line["label"]
                found[line["point"]][line["metric"]] = tuple(float(line[k] or "nan") for k in ("value", "low", "high"))
    if missing := [name for name, point in found.items() if "unsafe" not in point]:
        raise SystemExit(f"{run} has no pictures of {', '.join(missing)}: run sld ablate {SWEEP.name} --out {run}")
    return found


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """In Markdown."""
    columns = {metric: title for metric, title in COLUMNS.items() if _has(found, metric)}
    lines = ["| | " + " | ".join(("ms a picture", "rows", "of them shallow", *columns.values())) + " |"]
    lines.append("|---|" + "---:|" * (3 + len(columns)))
    for point in found.values():
        cells = [f"{1000 * point['seconds']:.0f}", f"{point['rows']:.0f}", f"{point['shallow']:.0f}"]
        for metric, title in columns.items():
            value, low, high = (x * (100 if title.endswith("%") else 1) for x in point[metric])
            cells.append(f"{value:.1f} ({low:.1f}-{high:.1f})" if title.endswith("%") else number(value))
        lines.append(f"| {point['label']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _has(found: Mapping[str, Mapping[str, Any]], metric: str) -> bool:
    """Whether the run has measured it. All but "broken" must be there."""
    return metric != "broken" or all(metric in point for point in found.values())


def pareto(found: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Unsafe share, share of broken pictures where they are read, and distance to the exact picture, against time."""
    titles = {
        "unsafe": "unsafe share",
        "broken": "broken share",
        "1-ssim": "1 \N{MINUS SIGN} SSIM to the exact picture",
    }
    titles = {metric: title for metric, title in titles.items() if _has(found, metric)}
    figure = Figure(figsize=(WIDE / 2 * len(titles), PANEL + 1))
    panels = figure.subplots(1, len(titles))
    named = []
    for axes, (metric, title) in zip(panels, titles.items(), strict=True):
        # without guidance there is nothing to approximate: its unsafe share would squeeze all others together
        shown = {n: p for n, p in found.items() if n != "off"}
        at = [(1000 * p["seconds"], p[metric][0]) for p in shown.values()]
        best = front(at)
        axes.step(*zip(*(at[k] for k in best), strict=True), where="post", color=BLUE, alpha=0.6, linewidth=1.2)
        for k, (x, y) in enumerate(at):
            colour = BLUE if k in best else NEUTRAL
            axes.vlines(x, *list(shown.values())[k][metric][1:], color=colour, linewidth=1, alpha=0.5)
            axes.plot(x, y, "o", color=colour, markerfacecolor=colour if k in best else "white", markersize=5)
        axes.set_xlabel("milliseconds a picture, embedded model, batch of 16")
        axes.set_ylabel(title)
        left, right = axes.get_xlim()
        axes.set_xlim(left - 0.25 * (right - left), right + 0.25 * (right - left))  # room for names
        named.append([(p["label"], *spot) for p, spot in zip(shown.values(), at, strict=True)])
    figure.draw_without_rendering()
    for axes, names in zip(panels, named, strict=True):
        label_points(axes, names)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.price", description=__doc__.partition("\n")[0])
    parser.add_argument("times", type=Path, metavar="TIMES", help="JSON of python -m benchmarks --only price")
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of sld ablate sweeps/approximations.toml")
    parser.add_argument("--out", type=Path, default=Path("price.png"), help="the plot (%(default)s)")
    options = parser.parse_args()
    found = read(options.times, options.run)
    print(table(found))
    write_whole(options.out, render("price", "Approximations: what they save and cost", partial(pareto, found)).png)


if __name__ == "__main__":
    main()
