"""`sld ablate` and `sld compare`: a sweep of configurations, and a comparison of two picture by picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sld.ablation.choices import Metric, Plot
from sld.ablation.sweep import OFF, Draft, expand
from sld.choices import Count, Place
from sld.cli.naming import write_beside
from sld.cli.parser import Command, argument, from_file, group, option
from sld.cli.requests import of_file
from sld.cli.runs import RunOptions, carry_out
from sld.config import Defaults
from sld.spelling import shown

if TYPE_CHECKING:
    from sld.ablation.points import Point
    from sld.evaluation.runner import Evaluation
    from sld.pipeline import Pipeline
    from sld.request import Request

Tables = tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class AblateOptions:
    """Options of `sld ablate`; see `sld.ablation.sweep` for the tables.

    Raises:
        ValueError: a table has another form, or a point is not possible.
    """

    file: Path = argument("a TOML file; docs/ablation.md says what it may hold", metavar="SWEEP", settings=True)
    run: RunOptions = group(RunOptions())
    base: Mapping[str, Any] = from_file(dict)
    grid: Tables = from_file(tuple)
    zip: Tables = from_file(tuple)
    points: Mapping[str, Mapping[str, Any]] = from_file(dict)
    baseline: str = from_file(lambda: OFF)
    metrics: tuple[Metric, ...] = from_file(tuple)
    plots: tuple[Plot, ...] = from_file(tuple)

    def __post_init__(self) -> None:
        for draft in self.drafts():
            sides = draft.settings.get("height"), draft.settings.get("width")
            self.run.model.require_sides(f"the point {shown(draft.name)}", *sides)

    def drafts(self) -> list[Draft]:
        """Return the points of the sweep, the baseline first."""
        return expand(self.base, self.grid, self.zip, self.points, self.baseline)


def ablate(options: AblateOptions) -> None:
    """Run the configurations of a sweep, and write the report of their differences."""
    points: list[Point] = []

    def configurations(pipe: Pipeline, common: Request, usual: Defaults) -> Mapping[str, Request]:
        from sld.ablation.points import resolve

        with of_file(options.file):
            points.extend(resolve(options.drafts(), common, usual.guidance_scale, pipe))
        return {point.name: point.request for point in points}

    def summary(evaluation: Evaluation, folder: Path) -> str:
        from sld.ablation.points import listing
        from sld.evaluation.summaries import cost

        return f"{listing(points)}\n{cost(evaluation, folder)}"

    def conclude(folder: Path) -> None:
        from sld.ablation import report, table
        from sld.evaluation.tabular import plain_text

        findings = table.read_findings(folder, points)
        findings.results.require_judged()
        print(plain_text(report.write_report(findings, folder / "ablation", options.metrics, options.plots)))
        print(folder / "ablation" / "index.md")

    folder = options.run.out or Path("runs") / options.file.stem
    carry_out(options.run, folder, configurations, summary, conclude)


@dataclass(frozen=True)
class CompareOptions:
    """Options of `sld compare`.

    Raises:
        ValueError: the contact sheet has another ending than .png.
    """

    a: Place = argument("RUN:CONFIGURATION, or a run's folder", metavar="A")
    b: Place = argument("the same; for two folders, all configurations of equal names are compared", metavar="B")
    pairs: Count = option(8, "pairs of pictures to list")
    out: Path | None = option(
        None, "a contact sheet of these pairs, .png; a number is added where there is such a file", metavar="FILE"
    )

    def __post_init__(self) -> None:
        if self.out is not None and self.out.suffix.lower() != ".png":
            raise ValueError(f"a contact sheet ends in .png; got {self.out.name!r}")


def compare(options: CompareOptions) -> None:
    """Print the differences of two configurations, paired by prompt and image."""
    from sld.ablation import compare
    from sld.evaluation.tabular import plain_text

    compared = compare.sides(options.a, options.b)
    print(plain_text(compare.table(compared)))
    for note in compare.notes(compared):
        print(note)
    worst = compare.most_different(compared, options.pairs)
    for pair in worst:
        print(pair.says)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        print(*write_beside(lambda path: path.write_bytes(compare.sheet(worst)), options.out))


ABLATE = Command(
    "ablate",
    AblateOptions,
    ablate,
    "run a sweep of configurations and plot what they differ in",
    "Run the configurations that a TOML file describes with [base], [[grid]], [[zip]] and [points.NAME] tables; all "
    "else in it has the names of the options here, which override it. The same command goes on where a killed one "
    "stopped, and torchrun --nproc-per-node N -m sld ablate … spreads it over N processes.",
)
COMPARE = Command(
    "compare",
    CompareOptions,
    compare,
    "compare two configurations picture by picture",
    "Compare two configurations of one run or of two, paired by prompt and image: differences with their intervals and "
    "tests, and the pairs of pictures that differ most.",
)
