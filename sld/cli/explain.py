"""`sld explain` and `sld conflicts`: the effect of safety guidance on a picture, and the angles between concepts."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sld.choices import Combination, Scale
from sld.cli.lists import OneSeed, Seeds, Texts
from sld.cli.naming import write_beside
from sld.cli.options import GuidanceOptions, ModelOptions, SamplingOptions
from sld.cli.parser import Command, argument, group, option, required
from sld.cli.requests import load_model, sld_config, template
from sld.data import said
from sld.files import require_writable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from sld.guidance.trace import Trace

FIGURES = (".png", ".pdf", ".svg")
TRACES = (".safetensors", ".csv")


@dataclass(frozen=True)
class ConceptsOptions:
    """Options for several concepts in place of one."""

    concepts: Texts = option((), 'several in place of one, such as "weapons; drugs", each of this strength')
    combination: Combination = option("sum", said(Combination))


@dataclass(frozen=True)
class ExplainOptions:
    """Options of `sld explain`.

    Raises:
        ValueError: the file name of a figure or a trace has another ending, or the model cannot make the size.
    """

    prompt: str = argument("what to show", metavar="PROMPT")
    seed: OneSeed = option(0, "of the noise")
    out: Path = option(Path("explain.png"), ".png, .pdf or .svg; a number is added where there is such a file")
    trace: Path | None = option(None, "file for all numbers: .safetensors with the maps, or .csv without")
    guidance: GuidanceOptions = group(GuidanceOptions(), "safety guidance")
    several: ConceptsOptions = group(ConceptsOptions(), "safety guidance")
    sampling: SamplingOptions = group(SamplingOptions(), "sampling")
    model: ModelOptions = group(ModelOptions(), "model")

    def __post_init__(self) -> None:
        _require_endings(self.out, self.trace)
        self.model.require_sides("size", *(self.sampling.size or ()))


def explain(options: ExplainOptions) -> None:
    """Make a picture without and with safety guidance, and draw where, when and how much guidance acts."""
    from sld.explain import figure

    _require_writable(options.out, options.trace)
    pipe = load_model(options.model)
    from sld.explain.runs import explain
    from sld.guidance import SafeLatentConcepts
    from sld.request import about

    usual = pipe.config.defaults
    config = sld_config(options.guidance, usual)
    request = template(
        options.sampling,
        usual,
        options.guidance.concept,
        prompt=options.prompt,
        seed=options.seed,
        negative=options.guidance.negative,
        guidance=config,
    )
    if options.several.concepts:
        rule = SafeLatentConcepts.alike(options.several.concepts, config, options.several.combination)
        request = replace(request, rule=rule)
    with _bar(1 + request.guarded, request.steps) as bar:
        e = explain(pipe, request, progress=bar.update)
    _write(options, lambda: figure.explain(e, options.guidance.preset), e.guided.trace, about(request, pipe))


@dataclass(frozen=True)
class ConflictsOptions:
    """Options of `sld conflicts`.

    Raises:
        ValueError: there are fewer than two concepts, the file name of a figure or a trace has another ending, or the
            model cannot make the size.
    """

    prompt: str = argument("of the runs", metavar="PROMPT")
    concepts: Texts = required('such as "weapons; drugs; death"')
    seeds: Seeds = option((0,), 'such as "7", "0-3" or "1,5,8-9" (0)')
    guidance_scale: Scale | None = option(None, "s_g (the checkpoint's)")
    negative: str = option("", "negative prompt, in place of the empty text")
    out: Path = option(Path("conflicts.png"), ".png, .pdf or .svg; a number is added where there is such a file")
    trace: Path | None = option(None, "file for all numbers: .safetensors or .csv")
    sampling: SamplingOptions = group(SamplingOptions(), "sampling")
    model: ModelOptions = group(ModelOptions(), "model")

    def __post_init__(self) -> None:
        if len(self.concepts) < 2:
            given = "; ".join(self.concepts)
            raise ValueError(f'give at least two concepts, such as --concepts "weapons; drugs"; got {given!r}')
        _require_endings(self.out, self.trace)
        self.model.require_sides("size", *(self.sampling.size or ()))


def conflicts(options: ConflictsOptions) -> None:
    """Print and draw the cosines between the directions of concepts and of the prompt."""
    from sld.explain import figure

    _require_writable(options.out, options.trace)
    pipe = load_model(options.model)
    from sld.explain.runs import conflicts
    from sld.guidance import OFF
    from sld.request import about

    usual = pipe.config.defaults
    scale = usual.guidance_scale if options.guidance_scale is None else options.guidance_scale
    request = template(
        options.sampling,
        usual,
        prompt=options.prompt,
        negative=options.negative,
        guidance=replace(OFF, guidance_scale=scale),
    )
    with _bar(1, request.steps) as bar:
        trace = conflicts(pipe, request, options.concepts, options.seeds, bar.update)
    print(figure.conflict_table(trace))
    _write(options, lambda: figure.conflicts(trace, options.prompt), trace, about(request, pipe))


def _require_endings(figure: Path, trace: Path | None) -> None:
    if figure.suffix.lower() not in FIGURES:
        raise ValueError(f"a figure ends in {', '.join(FIGURES)}; got {figure.name!r}")
    if trace is not None and trace.suffix.lower() not in TRACES:
        raise ValueError(f"a trace ends in {' or '.join(TRACES)}; got {trace.name!r}")


def _require_writable(*paths: Path | None) -> None:
    """Refuse, before the run, files that cannot be written."""
    for path in paths:
        if path is not None:
            require_writable(path.parent)


def _write(
    options: ExplainOptions | ConflictsOptions, plot: Callable[[], Figure], trace: Trace, about: Mapping[str, Any]
) -> None:
    """Write the figure, and the trace if asked, and print their paths."""
    from sld.explain import figure

    def write(out: Path, numbers: Path | None = None) -> None:
        figure.write(plot, out)
        if numbers is not None and numbers.suffix.lower() == ".csv":
            trace.write_csv(numbers)
        elif numbers is not None:
            trace.save(numbers, about)

    print(*write_beside(write, options.out, *([] if options.trace is None else [options.trace])), sep="\n")


def _bar(runs: int, steps: int) -> Any:
    from tqdm import tqdm

    return tqdm(total=runs * steps, unit="step", disable=not sys.stderr.isatty(), leave=False)


EXPLAIN = Command(
    "explain",
    ExplainOptions,
    explain,
    "show in one figure what safety guidance does to a picture",
    "Make a picture without and with safety guidance, and draw where, when and how much that acts.",
)
CONFLICTS = Command(
    "conflicts",
    ConflictsOptions,
    conflicts,
    "measure how the directions of concepts agree with each other and with a prompt",
    "Cosines of the concepts' directions with one another and with the prompt's, over a run without guidance by them: "
    "near 1 they pull alike, below 0 against each other.",
)
