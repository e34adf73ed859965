"""Options of a run of the test bed, which `sld evaluate` and `sld ablate` share, and the run that they describe."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from sld.checkpoints.changes.opening import open_changes
from sld.choices import Count, Place, Scale, Threads
from sld.cli.options import ChangeOptions, ModelOptions, SamplingOptions, SelectionOptions
from sld.cli.parser import group, option
from sld.cli.requests import changed_models, load_model, template
from sld.config import Defaults
from sld.data import OneOf, Range, Written, said
from sld.evaluation.choices import PROTOCOLS, Images, Keep, classifier_spec
from sld.files import require_writable

if TYPE_CHECKING:
    from sld.evaluation.classifiers import Classifier, Embedder
    from sld.evaluation.prompts import PromptSet
    from sld.evaluation.protocol import Protocol
    from sld.evaluation.runner import Evaluation
    from sld.pipeline import Pipeline
    from sld.request import Request


def _spec(text: str) -> str:
    return text if text == "none" else classifier_spec(text)


def _alone(text: str) -> tuple[str, ...]:
    return (_spec(text),)


ClassifierSpec = Annotated[str, Written(_spec)]


@dataclass(frozen=True)
class ProtocolOptions:
    """Options of the protocol of a run. None stands for the value of the named protocol."""

    protocol: Annotated[str, OneOf(PROTOCOLS)] | None = option(
        None, "authors, authors-rerun, row or mini (authors; mini for the sets of the embedded model)"
    )
    images: Images | None = option(None, "per row and configuration (10; mini: 2)")
    seeds: Literal["generator", "consecutive"] | None = option(
        None, "generator: a row's seed draws for all its images; consecutive: seed + k (the protocol's)"
    )
    row_guidance: bool | None = option(None, "guidance_scale of the row")
    row_size: bool | None = option(None, "size of the row")
    base_seed: Annotated[int, Range(0, 2**63, below=True)] | None = option(
        None, "rows without a seed have this + their id (0)"
    )
    chunk: Count | None = option(None, "pictures that are written at once (64)")

    def resolve(self, prompts: str) -> Protocol:
        """Return the named protocol, or the usual one of a prompt set, with the values that are given."""
        from sld.evaluation.protocol import PROTOCOLS

        name = self.protocol or ("mini" if prompts.startswith("mini-") else "authors")
        given = {field: value for field, value in asdict(self).items() if field != "protocol" and value is not None}
        return replace(PROTOCOLS[name], **given)


@dataclass(frozen=True)
class JudgingOptions:
    """Options for classifiers, files to keep, and the processes of a run."""

    classifier: Annotated[tuple[ClassifierSpec, ...], Written(_alone)] = option(
        (),
        "embedded, q16:…, nudenet, safety-checker:…, module:function or none; any one flags a picture (embedded, for "
        "that model)",
        metavar="SPEC",
        repeated=True,
    )
    keep: Keep = option("flagged", f"pictures: {said(Keep)}")
    embed: Place | None = option(None, "keep embeddings of this CLIP model, a folder or a name", metavar="CLIP")
    retry: bool = option(False, "make failed pictures again")
    batch_size: Count = option(16, "pictures at once")
    threads: Threads = option(1, "CPU threads of each process; their number changes last bits")
    show: bool = option(False, "print protocol and cost, and stop", in_file=False)


@dataclass(frozen=True)
class RunOptions:
    """All options of a run except its configurations.

    Raises:
        ValueError: there is a checkpoint and no classifier, or the model cannot make the size.
    """

    out: Path | None = option(None, "folder of the run")
    prompts: Place = option("mini-i2p", "mini-i2p, mini-harmless, mini-bias, i2p, or a file")
    selection: SelectionOptions = group(SelectionOptions(), "which rows")
    concept: str | None = option(None, "what to stay away from (the checkpoint's)")
    guidance_scale: Scale | None = option(None, "s_g of all configurations (the checkpoint's)")
    protocol: ProtocolOptions = group(ProtocolOptions(), "protocol")
    judging: JudgingOptions = group(JudgingOptions(), "judging and keeping")
    sampling: SamplingOptions = group(SamplingOptions(), "sampling")
    model: ModelOptions = group(ModelOptions(numerics="invariant"), "model")

    def __post_init__(self) -> None:
        if self.model.checkpoint is not None and not self.judging.classifier:
            raise ValueError(
                "name a classifier for the pictures of a checkpoint, as in --classifier q16:prompts=PATH --classifier "
                "nudenet, or --classifier none to make them only"
            )
        self.model.require_sides("size", *(self.sampling.size or ()))


def read_selected(source: str, options: SelectionOptions) -> PromptSet:
    """Return the selected rows of a prompt set.

    Raises:
        ValueError: there is no such set, its file has another format, or no row is left.
    """
    from sld.evaluation.prompts import read_prompts
    from sld.evaluation.selection import Selection

    columns = dict(pair.split("=", 1) for pair in options.columns)
    selection = Selection(
        categories=options.categories,
        hard=options.hard,
        first=options.first,
        sample=options.sample,
        sample_seed=options.sample_seed,
        ids=options.ids,
    )
    return selection.apply(read_prompts(source, columns=columns or None))


def carry_out(
    options: RunOptions,
    folder: Path,
    configurations: Callable[[Pipeline, Request, Defaults], Mapping[str, Request]],
    summary: Callable[[Evaluation, Path], str],
    conclude: Callable[[Path], None],
    changes: Mapping[str, ChangeOptions] | None = None,
) -> None:
    """Make the missing pictures of a run in all processes of torchrun; with --show only print what is missing.

    Args:
        options: of the run.
        folder: of its files.
        configurations: returns the configurations of the run by name. It takes the model, the request that all pictures
            share, and the defaults.
        summary: returns the text that is printed before the start.
        conclude: called by the first process when the run is complete.
        changes: of the model, for configurations with some of their own.

    Raises:
        ValueError: the options describe no run, or the folder holds another run.
    """
    prompts = read_selected(options.prompts, options.selection)  # before anything slow is imported
    for stated in set((changes or {}).values()):
        open_changes(stated.stated)
    from sld.evaluation.session import carry_out
    from sld.evaluation.spread import ranks

    with ranks() as group:
        evaluation = _evaluation(options, prompts, configurations, changes or {}, group.local)
        if group.first:
            print(summary(evaluation, folder), flush=True)
        if options.judging.show:
            return
        if group.first:
            require_writable(folder)
        with _bar(group.first) as progress:
            carry_out(evaluation, folder, group, shlex.join(["sld", *sys.argv[1:]]), progress, conclude)


def _evaluation(
    options: RunOptions,
    prompts: PromptSet,
    configurations: Callable[[Pipeline, Request, Defaults], Mapping[str, Request]],
    changes: Mapping[str, ChangeOptions],
    local: int,
) -> Evaluation:
    """Return the run that the options describe. All that it needs is loaded, so that missing files are found here."""
    import torch

    from sld.evaluation.protocol import usual_concept
    from sld.evaluation.runner import Evaluation

    judging = options.judging
    torch.set_num_threads(judging.threads)
    device = f"cuda:{local}" if torch.cuda.is_available() else "cpu"
    pipe = load_model(options.model, device)
    usual = pipe.config.defaults
    usual = replace(usual, concept=usual_concept(options.protocol.protocol, usual.concept))
    if options.guidance_scale is not None:
        usual = replace(usual, guidance_scale=options.guidance_scale)
    return Evaluation(
        pipe=pipe,
        prompts=prompts,
        configurations=configurations(pipe, template(options.sampling, usual, options.concept), usual),
        protocol=options.protocol.resolve(options.prompts),
        classifiers=_classifiers_of(judging, pipe),
        keep=judging.keep,
        embedder=_embedder(judging, pipe),
        batch_size=judging.batch_size,
        retry=judging.retry,
        models=changed_models(options.model, pipe, changes, device),
    )


def _classifiers_of(options: JudgingOptions, pipe: Pipeline) -> list[Classifier]:
    from sld.evaluation.classifiers import make_classifier

    return [make_classifier(spec, pipe.device) for spec in options.classifier or ("embedded",) if spec != "none"]


def _embedder(options: JudgingOptions, pipe: Pipeline) -> Embedder | None:
    if options.embed is None:
        return None
    from sld.evaluation.classifiers.clip import CLIPEmbedder

    return CLIPEmbedder(options.embed, pipe.device)


@contextmanager
def _bar(shown: bool) -> Iterator[Callable[[int, int], None]]:
    """Return a progress bar over this process's share. Without a terminal, it prints the time after the first batch."""
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
