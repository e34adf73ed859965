"""The commands of ablations: sld ablate | compare. Each imports what is heavy itself."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sld.evaluation.commands import add_run_options, carry_out, cost
from sld.options import template
from sld.spelling import named

if TYPE_CHECKING:
    from sld.ablation.sweep import Point
    from sld.evaluation.runner import Evaluation
    from sld.pipeline import Pipeline
    from sld.request import Request


def add_ablation_commands(commands: Any) -> None:
    """Add both commands to the subparsers of `sld`."""
    vary = commands.add_parser(
        "ablate",
        help="run a sweep of configurations and plot what they differ in",
        description="Run the configurations that a TOML file describes with [base], [[grid]], [[zip]] and "
        "[points.NAME] tables; all else in it has the names of the options here, which override it. The same command "
        "goes on where a killed one stopped, and torchrun --nproc-per-node N -m sld ablate … spreads it over N "
        "processes.",
    )
    tables: dict[str, Any] = {"base": {}, "grid": [], "zip": [], "points": {}, "baseline": "off"}
    vary.set_defaults(run=_ablate, parser=vary, **tables, metrics=[], plots=[])
    vary.add_argument("file", type=Path, metavar="SWEEP", help="a TOML file; docs/ablation.md says what it may hold")
    add_run_options(vary)

    pair = commands.add_parser(
        "compare",
        help="compare two configurations picture by picture",
        description="Compare two configurations of one run or of two, paired by prompt and image: differences with "
        "their intervals and tests, and the pairs of pictures that differ most.",
    )
    pair.set_defaults(run=_compare)
    pair.add_argument("a", metavar="A", help="RUN:CONFIGURATION, or a run's folder")
    pair.add_argument("b", metavar="B", help="the same; of two folders all configurations of one name are compared")
    pair.add_argument("--pairs", type=int, default=8, help="pairs of pictures to name (%(default)s)")
    pair.add_argument("--out", type=Path, metavar="FILE", help="a contact sheet of these pairs, .png")


def _ablate(options: argparse.Namespace) -> None:
    from sld.ablation import report, sweep, table

    for name in _list("metrics", options.metrics):
        named("metric", name, dict.fromkeys(table.NAMES))
    for name in _list("plots", options.plots):
        named("plot", name, dict.fromkeys(report.KINDS))
    drafts = sweep.expand(options.base, options.grid, options.zip, options.points, options.baseline)
    if options.out is None:
        options.out = Path("runs") / options.file.stem
    points: list[Point] = []

    def configurations(pipe: Pipeline) -> Mapping[str, Request]:
        points.extend(sweep.resolve(drafts, template(options, pipe), options.guidance_scale, pipe))
        return {point.name: point.request for point in points}

    def summary(evaluation: Evaluation, folder: Path) -> str:
        return f"{sweep.listing(points)}\n{cost(evaluation, folder)}"

    def conclude(folder: Path) -> None:
        from sld.evaluation.results import read_results
        from sld.evaluation.tabular import plain_text

        findings = table.Findings(tuple(points), read_results(folder), table.read_embeddings(folder))
        shown = report.write_report(findings, folder / "ablation", options.metrics, options.plots)
        print(plain_text(shown))
        print(folder / "ablation" / "index.md")

    carry_out(options, configurations, summary, conclude)


def _list(name: str, values: Any) -> Sequence[str]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ValueError(f'{name} is a list of names, as in {name} = ["unsafe"]; got {values!r}')
    return values


def _compare(options: argparse.Namespace) -> None:
    from sld.ablation import compare
    from sld.evaluation.tabular import plain_text
    from sld.files import write_whole

    if options.pairs < 1:
        raise ValueError(f"--pairs must be at least 1; got {options.pairs}")
    if options.out is not None and options.out.suffix != ".png":
        raise ValueError(f"a contact sheet ends in .png; got {options.out.name!r}")
    compared = compare.sides(options.a, options.b)
    print(plain_text(compare.table(compared)))
    for note in compare.notes(compared):
        print(note)
    worst = compare.most_different(compared, options.pairs)
    for pair in worst:
        print(pair.says)
    if options.out is not None:
        write_whole(options.out, compare.sheet(worst))
        print(options.out)
