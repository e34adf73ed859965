"""`sld generate`: pictures from prompts, each with a sidecar."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sld.choices import Count, steps_taken
from sld.cli.lists import Seeds
from sld.cli.naming import slug
from sld.cli.options import GuidanceOptions, ModelOptions, SamplingOptions, StartOptions
from sld.cli.parser import Command, argument, group, option
from sld.cli.requests import load_model, read_start, sized, sld_config, template
from sld.cli.sidecars import read_sidecar
from sld.config import ModelConfig
from sld.evaluation.prompts import read_prompts
from sld.files import require_writable

if TYPE_CHECKING:
    from sld.pipeline import Pipeline
    from sld.request import Request
    from sld.starting import StartFiles


@dataclass(frozen=True)
class GenerateOptions:
    """Options of `sld generate`.

    Raises:
        ValueError: there is neither a prompt nor a sidecar, or there are both; or the model cannot make the size; or no
            step is left of a run that starts from a picture.
    """

    prompts: tuple[str, ...] = argument("what to show", default=(), metavar="PROMPT")
    prompts_file: Path | None = option(None, "more prompts: one per line, or those of a .csv, .tsv, .json or .jsonl")
    again: Path | None = option(None, "make the picture of a sidecar .json again", metavar="SIDECAR")
    out: Path = option(Path("pictures"), "folder for the pictures")
    seeds: Seeds = option((0,), 'such as "7", "0-3" or "1,5,8-9" (0)')
    compare: bool = option(False, "also a contact sheet: unguided beside guided")
    show: bool = option(False, "print what would be made, and stop")
    guidance: GuidanceOptions = group(GuidanceOptions(), "safety guidance")
    sampling: SamplingOptions = group(SamplingOptions(), "sampling")
    start: StartOptions = group(StartOptions(), "picture to start from")
    batch_size: Count = option(8, "pictures at once")
    model: ModelOptions = group(ModelOptions(), "model")

    def __post_init__(self) -> None:
        if bool(self.prompts or self.prompts_file) == bool(self.again):
            raise ValueError(
                'give what to show, as in: sld generate "a lion in an old factory" (or --again SIDECAR alone)'
            )
        self.model.require_sides("size", *(self.sampling.size or ()))
        if self.sampling.steps is not None and self.start.strength is not None:
            steps_taken(self.sampling.steps, self.start.strength)


def generate(options: GenerateOptions) -> None:
    """Make the pictures, or print the requests."""
    prompts = [*options.prompts, *_prompts_of(options.prompts_file)]
    sidecar = None if options.again is None else read_sidecar(options.again, options.start.image, options.start.mask)
    start = None if sidecar is not None else read_start(options.start)
    pipe = load_model(options.model)
    if sidecar is None:
        requests = _requests(options, prompts, start, pipe.config)
    else:
        requests = [sidecar.request]
        sidecar.warn_of_differences(pipe)
    if options.show:
        from sld.batching import require_possible

        require_possible(pipe, requests[0], "the picture")  # the others differ in prompt and seed alone
        print(json.dumps([request.to_dict() for request in requests], indent=2, ensure_ascii=False))
        return
    require_writable(options.out)
    _make(pipe, requests, options)


def _requests(
    options: GenerateOptions, prompts: list[str], start: StartFiles | None, config: ModelConfig
) -> list[Request]:
    """Return one request for each prompt and seed, in this order."""
    usual = config.defaults
    common = template(
        sized(options.sampling, start, config),
        usual,
        options.guidance.concept,
        negative=options.guidance.negative,
        guidance=sld_config(options.guidance, usual),
        start=start,
    )
    requests = (replace(common, prompt=prompt, seed=seed) for prompt in prompts for seed in options.seeds)
    return list(dict.fromkeys(requests))


def _make(pipe: Pipeline, requests: list[Request], options: GenerateOptions) -> None:
    """Make the pictures, and a sheet for each prompt if asked.

    Raises:
        ValueError: pictures are not finite. All others are written.
    """
    from sld.cli.pictures import Maker

    preset = options.guidance.preset if options.again is None else "again"
    prompts = _numbers([r.prompt for r in requests])
    names = {r: f"{prompts[r.prompt]}{slug(r.prompt)}-{preset}-{r.seed}" for r in requests}
    if options.again is not None:
        names = dict.fromkeys(requests, options.again.stem)
    maker = Maker(pipe, options.out, options.batch_size)
    paths = maker.pictures(names)
    broken = [r for r, path in paths.items() if path is None]
    for prompt, number in prompts.items() if options.compare else ():
        guided = {r: path for r, path in paths.items() if r.prompt == prompt and path is not None}
        if guided:
            broken += maker.sheet(f"{number}{slug(prompt)}-compare", preset, guided)
    if broken:
        raise ValueError(maker.not_finite(broken))


def _numbers(prompts: Iterable[str]) -> dict[str, str]:
    """Return the number that each prompt has at the beginning of file names; "" if there is one prompt only."""
    distinct = list(dict.fromkeys(prompts))
    return {prompt: f"{k:04d}-" if len(distinct) > 1 else "" for k, prompt in enumerate(distinct)}


def _prompts_of(path: Path | None) -> list[str]:
    return [] if path is None else [row.prompt for row in read_prompts(path).rows]


GENERATE = Command(
    "generate",
    GenerateOptions,
    generate,
    "make pictures",
    "Make pictures, each with a sidecar. Nothing in the folder is replaced: a picture that is there, with a sidecar of "
    "the same request, model, settings and versions, is not made again; another one of its name gets a number.",
)
