"""The test bed's commands: sld prompts | evaluate | score | fidelity | report. Each imports what is heavy itself."""

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
from functools import partial
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
from sld.spelling import did_you_mean

if TYPE_CHECKING:
    import torch

    from sld.evaluation.classifiers import Embedder
    from sld.evaluation.classifiers.clip import CLIPEmbedder, CLIPTexts
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
    make.add_argument(
        "--presets",
        default="off,medium",
        help="off, weak, medium, strong, max, negative (the concept as negative prompt) and "
        "configurations of the file; the others are compared with the first (%(default)s)",
    )
    add_run_options(make)

    more = commands.add_parser("score", help="judge a run with one more classifier", description="Judge a run again.")
    more.set_defaults(run=_score)
    more.add_argument("folder", type=Path, metavar="RUN")
    more.add_argument("--classifier", required=True, metavar="SPEC", help="as for evaluate")
    more.add_argument("--device", help="(cuda where there is one)")

    near = commands.add_parser(
        "fidelity",
        help="FID and KID of pictures against others, CLIP score against their prompts",
        description="FID and KID of a run's configurations, or of a folder of pictures, against other pictures; CLIP "
        "score and CLIP distance of a run's pictures and their prompts. A run must have been made with --keep all.",
    )
    near.set_defaults(run=_fidelity)
    near.add_argument("pictures", metavar="PICTURES", help="folder of a run, RUN:CONFIGURATION, or any folder")
    near.add_argument("reference", nargs="?", metavar="REFERENCE", help="the same (the run's first configuration)")
    near.add_argument(
        "--features", metavar="SPEC", help="of FID and KID: embedded, clip:MODEL, a network's file, or module:function"
    )
    near.add_argument("--subset-size", type=int, default=1000, help="pictures in a subset of KID (%(default)s)")
    near.add_argument(
        "--clip", metavar="MODEL", help="of CLIP score and distance: a folder, or a name in the hub's cache"
    )
    near.add_argument("--device", help="(cuda where there is one)")
    near.add_argument("--out", type=Path, metavar="FILE", help="the same as JSON")

    tell = commands.add_parser("report", help="write a run's report", description="Write a run's report.")
    tell.set_defaults(run=_report)
    tell.add_argument("folder", type=Path, metavar="RUN")
    tell.add_argument("--out", type=Path, help="folder (RUN/report)")
    tell.add_argument("--classifiers", help="names of those of which any one flags a picture (all)")


def add_run_options(make: argparse.ArgumentParser) -> None:
    """What `carry_out` reads: all that a run needs but its configurations."""
    make.add_argument("--out", type=Path, help="folder of the run")
    make.add_argument(
        "--prompts", default="mini-i2p", help="mini-i2p, mini-harmless, mini-bias, i2p, or a file (%(default)s)"
    )
    _add_selection(make)
    make.add_argument("--concept", help="what to stay away from (the paper's list; the testbed's own words)")
    make.add_argument("--guidance-scale", type=float, default=7.5, help="s_g of all configurations (%(default)s)")
    what = make.add_argument_group("protocol")
    what.add_argument("--protocol", help="authors, row or mini (authors; mini for the sets of the embedded model)")
    what.add_argument("--images", type=int, help="per row and configuration (10; mini: 2)")
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
    from sld.embedded import embedded_checkpoint
    from sld.evaluation.prompt_report import describe
    from sld.models.text import Tokenizer

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
    """Defaults for `parser` from a TOML file with the names of its options, and of its other defaults, as tables.

    Raises:
        ValueError: the file cannot be read, or a name in it is unknown.
    """
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"{path}: {error}") from error
    known = {action.dest for action in parser._actions} | set(parser._defaults)
    known -= {"help", "file", "show", "run", "parser"}
    for name in settings:
        _require_known(f"{path}: option", name, known)
    return settings


def _require_known(what: str, name: str, known: Sequence[str] | set[str]) -> None:
    if name not in known:
        hint = did_you_mean(name, known) or f"; there are {', '.join(sorted(known))}"
        raise ValueError(f"{what} {name!r} is unknown{hint}")


def _evaluate(options: argparse.Namespace) -> None:
    carry_out(options, partial(_configurations, options), _summary, _conclude)


def carry_out(
    options: argparse.Namespace,
    configurations: Callable[[Pipeline], Mapping[str, Request]],
    summary: Callable[[Evaluation, Path], str],
    conclude: Callable[[Path], None],
) -> None:
    """Make what is missing of a run, in all processes that torchrun has started; with --show only say what that is.

    Args:
        options: of `add_run_options`.
        configurations: those of the run, by name, for the model that the options name.
        summary: what is printed before the start, of the run and its folder.
        conclude: called by the first process when the folder holds the whole run.

    Raises:
        ValueError: the options describe no run, or the folder holds another.
    """
    from sld.evaluation.runner import evaluate
    from sld.evaluation.spread import ranks
    from sld.evaluation.store import locked, log_session

    if options.out is None:
        raise ValueError("name the folder of the run, as in --out runs/mini")
    with ranks() as group:
        evaluation = _evaluation(options, configurations, group.local)
        if group.first:
            print(summary(evaluation, options.out), flush=True)
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
                conclude(options.out)


def _evaluation(
    options: argparse.Namespace, configurations: Callable[[Pipeline], Mapping[str, Request]], local: int
) -> Evaluation:
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
        configurations=configurations(pipe),
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

    name = options.protocol or ("mini" if options.prompts.startswith("mini-") else "authors")
    _require_known("protocol", name, set(PROTOCOLS))
    switches = {field.name: getattr(options, field.name) for field in fields(Protocol)}
    return replace(PROTOCOLS[name], **{switch: v for switch, v in switches.items() if v is not None})


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
    about = {**evaluation.about, "classifiers": list(evaluation.about["classifiers"])}
    return f"{json.dumps(about, indent=2, ensure_ascii=False)}\n{cost(evaluation, folder)}"


def cost(evaluation: Evaluation, folder: Path) -> str:
    """What a run costs, in pictures, rows of the network and, where that is known, time."""
    from sld.evaluation.store import sessions

    timed = [session for session in sessions(folder) if session.get("pictures")]
    speed = timed[-1]["pictures"] / timed[-1]["seconds"] if timed else None
    rows = evaluation.network_rows
    said = f"{evaluation.pictures} pictures, {rows.computed} network rows of {rows.asked} that the rules ask for"
    if rows.shallow:
        said += f", {rows.shallow} of them through the last block alone"
    hours = f"about {evaluation.pictures / speed / 3600:.2f} h at the last {speed:.2f} pictures/s" if speed else ""
    return f"{said}; {hours or 'time is known after the first batch'}"


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


# -------------------------------------------------------------------------------------- score, fidelity and report


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


def _fidelity(options: argparse.Namespace) -> None:
    import torch
    from tqdm import tqdm

    from sld.evaluation.collections import collections
    from sld.evaluation.features import load_extractor
    from sld.evaluation.fidelity import fidelity
    from sld.files import write_json

    if options.features is None and options.clip is None:
        raise ValueError("say what to measure: --features SPEC for FID and KID, --clip MODEL for CLIP score, or both")
    measured = collections(options.pictures)
    reference = None
    if options.features is not None:
        reference = collections(options.reference)[0] if options.reference else measured[0]
        if measured == [reference]:
            raise ValueError(f"{options.pictures} is one set of pictures: name another one that it is compared with")
    elif options.reference:
        raise ValueError("a reference is for FID and KID: say of which --features")
    if options.clip is not None and measured[0].source is None:
        raise ValueError(f"{options.pictures} is no run, so that nothing tells the prompts that --clip needs")
    torch.set_num_threads(1)  # as for evaluate: more of them round otherwise
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    extractor = None if options.features is None else load_extractor(options.features, device)
    clip = None if options.clip is None else _clip(options.clip, device)
    with tqdm(unit="picture", disable=not sys.stderr.isatty(), leave=False) as bar:
        found = fidelity(measured, reference, extractor, clip, options.subset_size, bar.update)
    if options.out is not None:
        write_json(options.out, found)
    print(_distances(found))


def _clip(model: str, device: str) -> tuple[CLIPEmbedder, CLIPTexts]:
    from sld.evaluation.classifiers.clip import CLIPEmbedder, CLIPTexts

    return CLIPEmbedder(model, device), CLIPTexts(model, device)


def _distances(found: Mapping[str, Any]) -> str:
    """What `fidelity` has found: a line for each collection, and the protocol under them."""
    columns = {
        "fid": ("FID", lambda c: f"{c['fid']:.4f}"),
        "kid": ("KID x 1000", lambda c: f"{1000 * c['kid']:.4f} ± {1000 * c['kid_deviation']:.4f}"),
        "clip_score": ("CLIP score", lambda c: _interval(c["clip_score"])),
        "clip_distance": ("CLIP distance", lambda c: _interval(c["clip_distance"])),
    }
    shown = {key: column for key, column in columns.items() if any(key in c for c in found["collections"].values())}
    lines = [f"{'':18}{'pictures':>10}" + "".join(f"{title:>28}" for title, _ in shown.values())]
    for name, c in found["collections"].items():
        cells = [said(c) if key in c else "-" for key, (_, said) in shown.items()]
        lines.append(f"{name:18}{c['pictures']:10}" + "".join(f"{cell:>28}" for cell in cells))
    return "\n".join([*lines, json.dumps(found["protocol"], indent=2, ensure_ascii=False)])


def _interval(estimate: Mapping[str, Any]) -> str:
    bounds = f" ({estimate['low']:.4f}-{estimate['high']:.4f})" if "low" in estimate else ""
    return f"{estimate['value']:.4f}{bounds}"


def _report(options: argparse.Namespace) -> None:
    from sld.evaluation.report import write_report
    from sld.evaluation.results import read_results

    names = _listed(options.classifiers) or None
    print(write_report(read_results(options.folder, names), options.out or options.folder / "report"))
