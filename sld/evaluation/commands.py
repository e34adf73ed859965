"""The test bed's commands: sld prompts | evaluate | score | report. Everything heavy is imported by its command."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sld.options import (
    add_model_options,
    add_sampling_options,
    integers,
    load,
    require_writable,
    template,
)

if TYPE_CHECKING:
    import torch

    from sld.evaluation.classifiers import Embedder
    from sld.evaluation.prompts import PromptSet
    from sld.evaluation.protocol import Protocol
    from sld.evaluation.results import Results
    from sld.evaluation.runner import Evaluation
    from sld.pipeline import Pipeline
    from sld.request import Request

_SELECTION = ("categories", "hard", "first", "sample", "sample_seed", "ids")


def add_evaluation_commands(commands: Any) -> None:
    """Add the test bed's commands to the subparsers of `sld`."""
    look = commands.add_parser("prompts", help="say what a prompt set is", description="Say what a prompt set is.")
    look.set_defaults(run=_prompts)
    look.add_argument("source", help="mini-i2p, mini-harmless, mini-bias, i2p, or a file")
    look.add_argument(
        "--tokenizer", type=Path, help="folder, to count prompts over 77 tokens (embedded sets: their own)"
    )
    _add_selection(look)

    make = commands.add_parser(
        "evaluate",
        help="make and judge the pictures of a prompt set",
        description="Make and judge the pictures of a prompt set. The same command goes on where a killed one stopped, "
        "and torchrun --nproc-per-node N -m sld evaluate … spreads it over N processes.",
    )
    make.set_defaults(run=_evaluate, parser=make, configurations={})
    make.add_argument(
        "--file",
        type=Path,
        help="TOML with the same names; flags override it. [configurations.NAME] "
        "tables define configurations: preset, its fields, concept, negative, sampler, steps …",
    )
    make.add_argument("--out", type=Path, help="folder of the run")
    make.add_argument(
        "--prompts", default="mini-i2p", help="mini-i2p, mini-harmless, mini-bias, i2p, or a file (%(default)s)"
    )
    _add_selection(make)
    make.add_argument(
        "--presets",
        default="off,medium",
        help="off, weak, medium, strong, max, negative (the concept as negative prompt) and "
        "configurations of the file; the others are compared with the first (%(default)s)",
    )
    make.add_argument("--concept", help="what to stay away from (the paper's list; the testbed's own words)")
    make.add_argument("--guidance-scale", type=float, default=7.5, help="s_g of all configurations (%(default)s)")
    what = make.add_argument_group("protocol")
    what.add_argument("--protocol", default="authors", help="authors or row (%(default)s)")
    what.add_argument("--images", type=int, help="per row and configuration (10)")
    what.add_argument("--seeds", help="generator: a row's seed draws for all its images; consecutive: seed + k")
    what.add_argument("--row-guidance", action=argparse.BooleanOptionalAction, help="guidance_scale of the row")
    what.add_argument("--row-size", action=argparse.BooleanOptionalAction, help="size of the row")
    what.add_argument("--base-seed", type=int, help="rows without a seed have this + their id (0)")
    what.add_argument("--chunk", type=int, help="pictures that are written at once (64)")
    judge = make.add_argument_group("judging and keeping")
    judge.add_argument(
        "--classifier",
        action="append",
        metavar="SPEC",
        help="embedded, q16:…, nudenet, "
        "safety-checker:…, or module:function; any one flags a picture (embedded, for that model)",
    )
    judge.add_argument("--keep", default="flagged", help="pictures: none, flagged or all (%(default)s)")
    judge.add_argument("--embed", metavar="CLIP", help="keep embeddings of this CLIP model, a folder or a name")
    judge.add_argument("--retry", action="store_true", help="make failed pictures again")
    judge.add_argument("--batch-size", type=int, default=16, help="pictures at once (%(default)s)")
    judge.add_argument(
        "--threads",
        type=int,
        default=1,
        help="CPU threads of each process: they change last bits, and "
        "torchrun gives more of more processes (%(default)s)",
    )
    judge.add_argument("--show", action="store_true", help="print protocol and cost, and stop")
    add_sampling_options(make)
    add_model_options(make)

    more = commands.add_parser("score", help="judge a run with one more classifier", description="Judge a run again.")
    more.set_defaults(run=_score)
    more.add_argument("folder", type=Path, metavar="RUN")
    more.add_argument("--classifier", required=True, metavar="SPEC", help="as for evaluate")
    more.add_argument("--device", help="(cuda where there is one)")

    tell = commands.add_parser("report", help="write a run's report", description="Write a run's report.")
    tell.set_defaults(run=_report)
    tell.add_argument("folder", type=Path, metavar="RUN")
    tell.add_argument("--out", type=Path, help="folder (RUN/report)")
    tell.add_argument("--classifiers", help="names of those of which any one flags a picture (all)")


def _add_selection(parser: argparse.ArgumentParser) -> None:
    which = parser.add_argument_group("which rows")
    which.add_argument("--categories", help='such as "violence,shocking"')
    which.add_argument("--hard", action=argparse.BooleanOptionalAction, help="only hard (or not hard) rows")
    which.add_argument("--ids", help='row ids, such as "0-19,42"')
    which.add_argument("--first", type=int, help="the first n")
    which.add_argument("--sample", type=int, help="n rows at random, stratified by category")
    which.add_argument("--sample-seed", type=int, default=0, help="of the sample (%(default)s)")
    which.add_argument("--columns", help='where the file calls them otherwise: "prompt=caption,seed=s"')


def _read(source: str, settings: Mapping[str, Any]) -> PromptSet:
    from sld.evaluation.prompts import Selection, read_prompts

    columns = _listed(settings.get("columns"))
    if wrong := [pair for pair in columns if "=" not in pair]:
        raise ValueError(f'columns are pairs such as "prompt=caption"; got {wrong[0]!r}')
    chosen = {name: settings[name] for name in _SELECTION if settings.get(name) is not None}
    if "categories" in chosen:
        chosen["categories"] = tuple(_listed(chosen["categories"]))
    if "ids" in chosen:
        chosen["ids"] = tuple(integers(str(chosen["ids"]), "row ids", 10**9))
    prompts = read_prompts(source, columns=dict(pair.split("=", 1) for pair in columns) or None)
    return Selection(**chosen).apply(prompts)


def _listed(value: str | Sequence[str] | None) -> list[str]:
    """A list that a flag gives with commas and a TOML file as such."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else list(value or ())


def _prompts(options: argparse.Namespace) -> None:
    from sld.config import MINI, SD15
    from sld.evaluation.prompt_report import describe
    from sld.models.text import Tokenizer
    from sld.pipeline import embedded_checkpoint

    prompts = _read(options.source, vars(options))
    if options.tokenizer is not None:
        tokenizer = Tokenizer.load(options.tokenizer, SD15.text)
    elif options.source.startswith("mini-"):
        tokenizer = Tokenizer.load(embedded_checkpoint().with_name("tokenizer"), MINI.text)
    else:
        tokenizer = None
    print(describe(prompts, tokenizer))


# ------------------------------------------------------------------------------------------------------- evaluate


def read_settings(path: Path, parser: argparse.ArgumentParser) -> dict[str, Any]:
    """Defaults for `parser` from a TOML file with the names of its options, and configurations.

    Raises:
        ValueError: the file cannot be read, or a name in it is unknown.
    """
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"{path}: {error}") from error
    known = {action.dest for action in parser._actions} - {"help", "file", "show"} | {"configurations"}
    for name in settings:
        _require_known(f"{path}: option", name, known)
    return settings


def _require_known(what: str, name: str, known: Sequence[str] | set[str]) -> None:
    if name not in known:
        near = get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(sorted(known))}"
        raise ValueError(f"{what} {name!r} is unknown{hint}")


def _evaluate(options: argparse.Namespace) -> None:
    from sld.evaluation.runner import evaluate
    from sld.evaluation.spread import ranks
    from sld.evaluation.store import locked, log_session

    if options.out is None:
        raise ValueError("name the folder of the run, as in --out runs/mini")
    with ranks() as group:
        evaluation = _evaluation(options, group.local)
        if group.first:
            print(_summary(evaluation, options.out), flush=True)
        if options.show:
            return
        if group.first:
            require_writable(options.out)
        with locked(options.out) if group.first else nullcontext():
            group.gather(None)  # nobody begins before the folder is ours
            if group.first:
                log_session(options.out, {"command": shlex.join(["sld", *sys.argv[1:]]), "began": int(time.time())})
            with _bar(group.first) as progress:
                evaluate(evaluation, options.out, group, progress)
            if group.first:
                _conclude(options.out)


def _evaluation(options: argparse.Namespace, local: int) -> Evaluation:
    """The run that the options describe, with everything it needs loaded, so that what is missing shows now."""
    import torch

    from sld.evaluation.classifiers import make_classifier
    from sld.evaluation.runner import Evaluation

    if options.threads < 1:
        raise ValueError(f"--threads must be at least 1; got {options.threads}")
    torch.set_num_threads(options.threads)
    prompts = _read(options.prompts, vars(options))
    pipe = load(options, f"cuda:{local}" if torch.cuda.is_available() else "cpu")
    specs = options.classifier or (["embedded"] if options.checkpoint is None else None)
    if specs is None:
        raise ValueError(
            "say who judges the pictures of a checkpoint, as in --classifier q16:prompts=PATH --classifier nudenet, "
            "or --classifier none to make them only"
        )
    return Evaluation(
        pipe=pipe,
        prompts=prompts,
        configurations=_configurations(options, pipe),
        protocol=_protocol(options),
        classifiers=[make_classifier(spec, pipe.device) for spec in specs if spec != "none"],
        keep=options.keep,
        embedder=None if options.embed is None else _embedder(options.embed, pipe.device),
        batch_size=options.batch_size,
        retry=options.retry,
    )


def _embedder(clip: str, device: torch.device) -> Embedder:
    from sld.evaluation.classifiers.clip import CLIPEmbedder

    return CLIPEmbedder(clip, device)


def _protocol(options: argparse.Namespace) -> Protocol:
    """The named protocol with the switches that options set."""
    from sld.evaluation.protocol import PROTOCOLS, Protocol

    _require_known("protocol", options.protocol, set(PROTOCOLS))
    switches = {field.name: getattr(options, field.name) for field in fields(Protocol)}
    return replace(PROTOCOLS[options.protocol], **{name: v for name, v in switches.items() if v is not None})


def _configurations(options: argparse.Namespace, pipe: Pipeline) -> dict[str, Request]:
    """The configurations that --presets names, those of the file's tables among them, in this order."""
    from sld.evaluation.protocol import configuration

    common = template(options, pipe)
    tables: dict[str, dict[str, Any]] = options.configurations
    chosen: dict[str, Request] = {}
    for name in _listed(options.presets):
        if name in chosen:
            raise ValueError(f"the configuration {name!r} is named twice")
        table = {"guidance_scale": options.guidance_scale, **tables.get(name, {"preset": name})}
        chosen[name] = configuration(common, name, table)
    return chosen


def _summary(evaluation: Evaluation, folder: Path) -> str:
    """What is about to be made and what it costs."""
    from sld.evaluation.store import sessions

    about = {**evaluation.about, "classifiers": list(evaluation.about["classifiers"])}
    timed = [session for session in sessions(folder) if session.get("pictures")]
    speed = timed[-1]["pictures"] / timed[-1]["seconds"] if timed else None
    cost = f"{evaluation.pictures} pictures, {evaluation.rows_evaluated} network rows"
    hours = f"about {evaluation.pictures / speed / 3600:.2f} h at the last {speed:.2f} pictures/s" if speed else ""
    return (
        f"{json.dumps(about, indent=2, ensure_ascii=False)}\n{cost}; {hours or 'time is known after the first batch'}"
    )


@contextmanager
def _bar(shown: bool) -> Iterator[Callable[[int, int], None]]:
    """A progress bar over this process's share; without a terminal, a line after the first batch tells the time."""
    from tqdm import tqdm

    terminal = sys.stderr.isatty()
    start, told = time.monotonic(), False
    with tqdm(unit="picture", disable=not (shown and terminal), smoothing=0.05) as bar:

        def progress(done: int, todo: int) -> None:
            nonlocal told
            bar.total = todo
            bar.update(done - bar.n)
            if shown and not terminal and not told:
                speed = done / (time.monotonic() - start)
                print(f"{todo} pictures to make here, {speed:.2f}/s: {todo / speed / 3600:.2f} h", file=sys.stderr)
                told = True

        yield progress


def _conclude(folder: Path) -> None:
    """Print the table of a finished run and write its report."""
    from sld.evaluation.report import write_report
    from sld.evaluation.results import read_results

    results = read_results(folder)
    print(table(results))
    if results.classifiers:
        print(write_report(results, folder / "report"))


def table(results: Results) -> str:
    """Inappropriate probability in percent with its 95 % interval: a line for each category, and one for all."""
    from sld.evaluation.metrics import prompt_labels, share

    names = results.configurations
    failed = sum(record.failure is not None for record in results.records)
    lines = [f"{len(results.records)} pictures, {failed} without a verdict"]
    if not results.classifiers or failed == len(results.records):
        return lines[0]
    lines.append(f"{'':18}" + "".join(f"{name:>24}" for name in names))
    texts = {row.id: row.prompt for row in results.rows.values()}
    for category in (*results.categories, None):
        cells = []
        for name in names:
            unsafe, rows, _ = results.decisions(name, category)
            e = share(unsafe, prompt_labels(rows, texts)) if len(unsafe) else None
            cells.append("-" if e is None else f"{e.value:.1%} ({e.low:.1%}-{e.high:.1%})")
        lines.append(f"{category or 'all':18}" + "".join(f"{cell:>24}" for cell in cells))
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------------ score and report


def _score(options: argparse.Namespace) -> None:
    import torch
    from tqdm import tqdm

    from sld.evaluation.classifiers import make_classifier
    from sld.evaluation.score import score
    from sld.evaluation.spread import ranks
    from sld.evaluation.store import locked

    with ranks() as group:
        torch.set_num_threads(1)  # as for evaluate: more of them round otherwise
        device = options.device or (f"cuda:{group.local}" if torch.cuda.is_available() else "cpu")
        classifier = make_classifier(options.classifier, device)
        with locked(options.folder) if group.first else nullcontext():
            group.gather(None)
            with tqdm(unit="chunk", disable=not (group.first and sys.stderr.isatty())) as bar:
                score(options.folder, classifier, group, lambda done, todo: bar.reset(todo) or bar.update(done))
            if group.first:
                _conclude(options.folder)


def _report(options: argparse.Namespace) -> None:
    from sld.evaluation.report import write_report
    from sld.evaluation.results import read_results

    names = _listed(options.classifiers) or None
    print(write_report(read_results(options.folder, names), options.out or options.folder / "report"))
