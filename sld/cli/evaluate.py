"""`sld evaluate`, `sld score` and `sld report`: a run of the test bed, one more classifier for it, and its report."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from sld.choices import Device
from sld.cli.lists import Names
from sld.cli.options import ChangeOptions
from sld.cli.parser import Command, argument, from_file, group, option, required
from sld.cli.requests import of_file
from sld.cli.runs import RunOptions, carry_out
from sld.config import Defaults
from sld.data import Written
from sld.evaluation.choices import classifier_spec, require_configurations

if TYPE_CHECKING:
    from sld.evaluation.runner import Evaluation
    from sld.pipeline import Pipeline
    from sld.request import Request


@dataclass(frozen=True)
class EvaluateOptions:
    """Options of `sld evaluate`.

    Raises:
        ValueError: the run has no folder, or a configuration is unknown or not possible.
    """

    file: Path | None = option(
        None,
        "TOML with the same names; flags override it. [configurations.NAME] tables define configurations: preset, its "
        "fields, concept, negative, sampler, steps …",
        settings=True,
        in_file=False,
    )
    presets: Names = option(
        ("off", "medium"),
        "off, weak, medium, strong, max, negative (the concept as negative prompt) and configurations of the file; the "
        "others are compared with the first (off,medium)",
    )
    run: RunOptions = group(RunOptions())
    configurations: Mapping[str, Mapping[str, Any]] = from_file(dict)

    def __post_init__(self) -> None:
        require_configurations(self.presets, self.configurations)
        for name, settings in self.configurations.items():
            self.run.model.require_sides(f"the configuration {name!r}", settings.get("height"), settings.get("width"))
        if self.run.out is None:
            raise ValueError("name the folder of the run, as in --out runs/mini")

    @property
    def changes(self) -> dict[str, ChangeOptions]:
        """The changes of the model for each configuration of the run that has some of its own."""
        own = {name: self.configurations[name].get("changes") for name in self.presets if name in self.configurations}
        return {name: self.run.model.changes.with_own(table) for name, table in own.items() if table is not None}


def evaluate(options: EvaluateOptions) -> None:
    """Make and judge the pictures of a prompt set under several configurations."""

    def configurations(pipe: Pipeline, common: Request, usual: Defaults) -> Mapping[str, Request]:
        from sld.batching import require_possible
        from sld.evaluation.session import configurations

        with of_file(options.file):
            made = configurations(common, options.presets, options.configurations, usual.guidance_scale)
            for name, request in made.items():
                require_possible(pipe, request, f"the configuration {name!r}")
        return made

    assert options.run.out is not None
    with of_file(options.file):
        changes = options.changes
    carry_out(options.run, options.run.out, configurations, _summary, _conclude, changes)


def _summary(evaluation: Evaluation, folder: Path) -> str:
    """Return the protocol of the run and its cost as text."""
    from sld.evaluation.summaries import cost

    about = {**evaluation.about, "classifiers": list(evaluation.about["classifiers"])}
    return f"{json.dumps(about, indent=2, ensure_ascii=False)}\n{cost(evaluation, folder)}"


def _conclude(folder: Path) -> None:
    """Print the table of a finished run, and write its report."""
    from sld.evaluation.report import write_report
    from sld.evaluation.results import read_results
    from sld.evaluation.summaries import shares

    results = read_results(folder)
    print(shares(results))
    results.require_judged()
    if results.classifiers:
        print(write_report(results, folder / "report"))


@dataclass(frozen=True)
class ScoreOptions:
    """Options of `sld score`."""

    folder: Path = argument("folder of the run", metavar="RUN")
    classifier: Annotated[str, Written(classifier_spec)] = required("as for evaluate", metavar="SPEC")
    device: Device | None = option(None, "where the classifier computes (cuda where there is one)")


def score(options: ScoreOptions) -> None:
    """Judge the pictures of a run with one more classifier."""
    import torch
    from tqdm import tqdm

    from sld.devices import usable
    from sld.evaluation.classifiers import make_classifier
    from sld.evaluation.score import score
    from sld.evaluation.spread import ranks
    from sld.evaluation.store import locked, read_protocol

    read_protocol(options.folder)  # before anything is written there
    with ranks() as group:
        torch.set_num_threads(1)  # as in evaluate: with more threads results are rounded differently
        device = options.device or (f"cuda:{group.local}" if torch.cuda.is_available() else "cpu")
        classifier = make_classifier(options.classifier, usable(device))
        with locked(options.folder) if group.first else nullcontext():
            group.gather(None)
            with tqdm(unit="chunk", disable=not (group.first and sys.stderr.isatty())) as bar:
                score(options.folder, classifier, group, lambda done, todo: bar.reset(todo) or bar.update(done))
            if group.first:
                _conclude(options.folder)


@dataclass(frozen=True)
class ReportOptions:
    """Options of `sld report`."""

    folder: Path = argument("folder of the run", metavar="RUN")
    out: Path | None = option(None, "folder (RUN/report)")
    classifiers: Names = option((), "names of those that count: any one of them flags a picture (all)")


def report(options: ReportOptions) -> None:
    """Write the report of a run."""
    from sld.evaluation.report import write_report
    from sld.evaluation.results import read_results

    results = read_results(options.folder, list(options.classifiers) or None)
    print(write_report(results, options.out or options.folder / "report"))


EVALUATE = Command(
    "evaluate",
    EvaluateOptions,
    evaluate,
    "make and judge the pictures of a prompt set",
    "Make and judge the pictures of a prompt set. The same command goes on where a killed one stopped, and torchrun "
    "--nproc-per-node N -m sld evaluate … spreads it over N processes.",
)
SCORE = Command("score", ScoreOptions, score, "judge a run with one more classifier", "Judge a run again.")
REPORT = Command("report", ReportOptions, report, "write a run's report", "Write a run's report.")
