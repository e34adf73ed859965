"""`sld generate`: pictures from prompts, each with a sidecar."""

from __future__ import annotations

import json
import re
import sys
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sld.choices import Count
from sld.cli.lists import Seeds
from sld.cli.options import GuidanceOptions, ModelOptions, SamplingOptions
from sld.cli.parser import Command, argument, group, option
from sld.cli.requests import load_model, require_writable, sld_config, template
from sld.config import Defaults
from sld.evaluation.prompts import read_prompts
from sld.reading import read_json

if TYPE_CHECKING:
    from sld.pipeline import Pipeline
    from sld.request import Request


@dataclass(frozen=True)
class GenerateOptions:
    """Options of `sld generate`.

    Raises:
        ValueError: there is neither a prompt nor a sidecar, or there are both.
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
    batch_size: Count = option(8, "pictures at once")
    model: ModelOptions = group(ModelOptions(), "model")

    def __post_init__(self) -> None:
        if bool(self.prompts or self.prompts_file) == bool(self.again):
            raise ValueError(
                'give what to show, as in: sld generate "a fox in a dark alley" (or --again SIDECAR alone)'
            )


def generate(options: GenerateOptions) -> None:
    """Make the pictures, or print the requests."""
    prompts = [*options.prompts, *_prompts_of(options.prompts_file)]
    sidecar = None if options.again is None else _read_sidecar(options.again)
    pipe = load_model(options.model)
    if sidecar is None:
        requests = _requests(options, prompts, pipe.config.defaults)
    else:
        requests = [_request_again(sidecar, str(options.again), pipe)]
    if options.show:
        print(json.dumps([request.to_dict() for request in requests], indent=2, ensure_ascii=False))
        return
    require_writable(options.out)
    _make(pipe, requests, options)


def _requests(options: GenerateOptions, prompts: list[str], usual: Defaults) -> list[Request]:
    """Return one request for each prompt and seed, in this order."""
    common = template(
        options.sampling,
        usual,
        options.guidance.concept,
        negative=options.guidance.negative,
        guidance=sld_config(options.guidance, usual),
    )
    return [replace(common, prompt=prompt, seed=seed) for prompt in prompts for seed in options.seeds]


def _make(pipe: Pipeline, requests: list[Request], options: GenerateOptions) -> None:
    """Make the pictures batch by batch and write each batch as soon as it is done."""
    from tqdm import tqdm

    from sld import images
    from sld.batching import run
    from sld.request import about

    preset = options.guidance.preset if options.again is None else "again"
    names = _names(requests, preset) if options.again is None else [options.again.stem]
    pairs: dict[str, list[tuple[str, Any, Any]]] = {}
    evaluations = sum(_evaluations(pipe, request) for request in requests) * (1 + options.compare)
    with tqdm(total=evaluations, unit="step", disable=not sys.stderr.isatty(), leave=False) as bar:
        for start in range(0, len(requests), options.batch_size):
            batch = requests[start : start + options.batch_size]
            guided = images.to_pil(run(pipe, batch, bar.update))
            # what else is drawn beside a picture moves its last bits, but with invariant numerics
            beside = {"batch": len(batch)} if len(batch) > 1 and pipe.numerics != "invariant" else {}
            for request, name, image in zip(batch, names[start:], guided, strict=False):
                path = options.out / f"{name}.png"
                images.write(image, path, {**about(request, pipe), **beside})
                print(path)
            if options.compare:
                plain = images.to_pil(run(pipe, [request.without_safety() for request in batch], bar.update))
                for request, before, after in zip(batch, plain, guided, strict=True):
                    pairs.setdefault(request.prompt, []).append((f"seed {request.seed}", before, after))
    for k, (prompt, rows) in enumerate(pairs.items()):
        number = f"{k:04d}-" if len(pairs) > 1 else ""
        path = options.out / f"{number}{_slug(prompt)}-compare.png"
        sheet = images.contact_sheet([row[1:] for row in rows], ["off", preset], [row[0] for row in rows])
        images.write(sheet, path)
        print(path)


def _evaluations(pipe: Pipeline, request: Request) -> int:
    return len(request.make_sampler(pipe.schedule).timesteps)


def _read_sidecar(path: Path) -> dict[str, Any]:
    """Return the content of a sidecar. Its request is not checked here."""
    sidecar = read_json(path)
    if not isinstance(sidecar, dict) or not isinstance(sidecar.get("request"), dict):
        raise ValueError(f'{path} is not a sidecar of sld generate: it holds no table "request"')
    return sidecar


def _request_again(sidecar: dict[str, Any], where: str, pipe: Pipeline) -> Request:
    """Return the request of a sidecar; warns where model or versions are not those that made the picture.

    Raises:
        ValueError: the request cannot be met, or is for the first edition's kept cross-attention.
    """
    from sld.request import Request, about, first_edition

    if (kept := sidecar["request"].get("cross_after")) is not None:
        raise ValueError(
            f"{where}: the first edition made this picture with cross-attention kept after evaluation {kept} "
            "(cross_after), an approximation that is gone: this picture cannot be made again; for the one without the "
            "approximation, remove cross_after from the file"
        )
    request = Request.from_dict(sidecar["request"], f"{where}: request")
    now = about(request, pipe)
    if "exact_batch" in sidecar and "numerics" not in sidecar:
        warnings.warn(
            f"{first_edition(sidecar['exact_batch'])}, numerics are {pipe.numerics} now: the picture may differ",
            stacklevel=2,
        )
        now = {key: value for key, value in now.items() if key != "numerics"}
        sidecar = {key: value for key, value in sidecar.items() if key != "exact_batch"}
    if (batch := sidecar.get("batch", 1)) != 1:
        warnings.warn(
            f"the picture was made in a batch of {batch}, and is made alone now: its last bits may differ (with "
            "invariant numerics an image has the same bits in any batch)",
            stacklevel=2,
        )
    for key in dict.fromkeys((*sidecar, *now)):
        if key not in ("request", "batch") and sidecar.get(key) != now.get(key):
            warnings.warn(
                f"{key} was {sidecar.get(key)} and is {now.get(key)} now: the picture may differ", stacklevel=2
            )
    return request


def _names(requests: list[Request], preset: str) -> list[str]:
    """Return a file name for each request, numbered where there are several prompts."""
    prompts = list(dict.fromkeys(request.prompt for request in requests))
    number = {prompt: f"{k:04d}-" if len(prompts) > 1 else "" for k, prompt in enumerate(prompts)}
    return [f"{number[r.prompt]}{_slug(r.prompt)}-{preset}-{r.seed}" for r in requests]


def _slug(prompt: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60] or "empty"


def _prompts_of(path: Path | None) -> list[str]:
    return [] if path is None else [row.prompt for row in read_prompts(path).rows]


GENERATE = Command("generate", GenerateOptions, generate, "make pictures", "Make pictures, each with a sidecar.")
