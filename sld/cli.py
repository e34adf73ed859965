"""The command line. Everything heavy is imported by the command that needs it, so that --help answers at once."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import sld
from sld.ablation.command import add_ablation_commands
from sld.evaluation.commands import add_evaluation_commands, read_settings
from sld.explain.commands import add_explain_commands
from sld.options import (
    SLD_FIELDS,
    add_model_options,
    add_sampling_options,
    dtype,
    flag,
    integers,
    load,
    require_writable,
    sld_config,
    template,
)

if TYPE_CHECKING:
    from sld.pipeline import Pipeline
    from sld.request import Request


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; leaves with status 0, 2 for anything the user can mend, or 130 when interrupted."""
    # Threads that wait for each other sleep. Spinning ones make a picture take ten times as long where the cores have
    # other work, and gain nothing where they have none. Torch reads this when it is first imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        if getattr(options, "file", None):
            options.parser.set_defaults(**read_settings(options.file, options.parser))
            options = parser.parse_args(arguments)
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            options.run(options)
            sys.stdout.flush()
    except BrokenPipeError:  # whoever reads the output has seen enough, as in sld prompts i2p | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, OSError) as error:
        _fail(str(error))
    except ModuleNotFoundError as error:
        if error.name not in ("scipy", "matplotlib", "pyarrow"):
            raise
        _fail(f'{error.name} is missing, which this command needs: pip install "sld[evaluate]"')
    except KeyboardInterrupt:
        print("sld: interrupted; what is finished is on disk", file=sys.stderr)
        sys.exit(130)


def _fail(message: str) -> NoReturn:
    print(f"sld: error: {message}", file=sys.stderr)
    sys.exit(2)


def _warn(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    if issubclass(category, UserWarning):
        print(f"sld: warning: {message}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sld", description="Safe Latent Diffusion: pictures from prompts, safely.")
    parser.add_argument("--version", action="version", version=f"sld {sld.__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")

    make = commands.add_parser("generate", help="make pictures", description="Make pictures, each with a sidecar.")
    make.set_defaults(run=_generate)
    make.add_argument("prompts", nargs="*", metavar="PROMPT", help="what to show")
    make.add_argument("--prompts-file", type=Path, help="more prompts, one per line")
    make.add_argument("--again", type=Path, metavar="SIDECAR", help="make the picture of a sidecar .json again")
    make.add_argument("--out", type=Path, default=Path("pictures"), help="folder for the pictures (%(default)s)")
    make.add_argument("--seeds", default="0", help='such as "7", "0-3" or "1,5,8-9" (%(default)s)')
    make.add_argument("--compare", action="store_true", help="also a contact sheet: unguided beside guided")
    make.add_argument("--show", action="store_true", help="print what would be made, and stop")

    what = make.add_argument_group("safety guidance")
    what.add_argument("--preset", "--safety", default="medium", help="off, weak, medium, strong or max (%(default)s)")
    for name, (kind, text) in SLD_FIELDS.items():
        what.add_argument(flag(name), type=kind, help=f"{text} (the preset's)")
    what.add_argument("--concept", help="what to stay away from (the paper's list; the testbed's own words)")
    what.add_argument("--negative", default="", help="negative prompt, in place of the empty text")

    add_sampling_options(make)
    make.add_argument("--batch-size", type=int, default=8, help="pictures at once (%(default)s)")
    add_model_options(make)

    look = commands.add_parser("inspect", help="say what a checkpoint is", description="Say what a checkpoint is.")
    look.set_defaults(run=_inspect)
    look.add_argument("path", type=Path, help="single file or diffusers folder")

    turn = commands.add_parser(
        "convert", help="write a checkpoint in another format", description="Convert a checkpoint."
    )
    turn.set_defaults(run=_convert)
    turn.add_argument("source", type=Path)
    turn.add_argument("target", type=Path, help="a .safetensors file for compvis, a folder for diffusers")
    turn.add_argument("--config", help="what the source is, where it does not tell, such as sd21")
    turn.add_argument("--dtype", help="float32, float16 or bfloat16 (the source's)")

    add_explain_commands(commands)
    add_evaluation_commands(commands)
    add_ablation_commands(commands)
    return parser


# ------------------------------------------------------------------------------------------------------- generate


def _generate(options: argparse.Namespace) -> None:
    if options.batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1; got {options.batch_size}")
    prompts = [*options.prompts, *_lines(options.prompts_file)]
    if bool(prompts) == bool(options.again):
        raise ValueError('give what to show, as in: sld generate "a fox in a dark alley" (or --again SIDECAR alone)')
    seeds = integers(options.seeds, "seeds", 2**64)
    pipe = load(options)
    requests = [_read_sidecar(options.again, pipe)] if options.again else _requests(options, prompts, seeds, pipe)
    if options.show:
        print(json.dumps([request.to_dict() for request in requests], indent=2, ensure_ascii=False))
        return
    require_writable(options.out)
    _make(pipe, requests, options)


def _requests(options: argparse.Namespace, prompts: list[str], seeds: list[int], pipe: Pipeline) -> list[Request]:
    """One request for each prompt and seed, in this order."""
    guidance = sld_config(options.preset, vars(options))
    common = replace(template(options, pipe), negative=options.negative, guidance=guidance)
    return [replace(common, prompt=prompt, seed=seed) for prompt in prompts for seed in seeds]


def _make(pipe: Pipeline, requests: list[Request], options: argparse.Namespace) -> None:
    """Make the pictures batch by batch and write each batch as soon as it is done."""
    from tqdm import tqdm

    from sld import images
    from sld.batching import run
    from sld.request import about

    names = _names(requests, options.preset)
    pairs: dict[str, list[tuple[str, Any, Any]]] = {}
    sampler_steps = sum(_evaluations(pipe, request) for request in requests) * (1 + options.compare)
    with tqdm(total=sampler_steps, unit="step", disable=not sys.stderr.isatty(), leave=False) as bar:
        for start in range(0, len(requests), options.batch_size):
            batch = requests[start : start + options.batch_size]
            guided = images.to_pil(run(pipe, batch, bar.update))
            for request, name, image in zip(batch, names[start:], guided, strict=False):
                path = options.out / f"{name}.png"
                images.write(image, path, about(request, pipe))
                print(path)
            if options.compare:
                plain = images.to_pil(run(pipe, [request.without_safety() for request in batch], bar.update))
                for request, before, after in zip(batch, plain, guided, strict=True):
                    pairs.setdefault(request.prompt, []).append((f"seed {request.seed}", before, after))
    for k, (prompt, rows) in enumerate(pairs.items()):
        number = f"{k:04d}-" if len(pairs) > 1 else ""
        path = options.out / f"{number}{_slug(prompt)}-compare.png"
        sheet = images.contact_sheet([row[1:] for row in rows], ["off", options.preset], [row[0] for row in rows])
        images.write(sheet, path)
        print(path)


def _evaluations(pipe: Pipeline, request: Request) -> int:
    from sld.samplers import make_sampler

    sampler = make_sampler(request.sampler, pipe.schedule, request.steps, request.spacing, request.eta)
    return len(sampler.timesteps)


def _read_sidecar(path: Path, pipe: Pipeline) -> Request:
    """The request of a sidecar; warns where model or versions are not those that made the picture."""
    from sld.request import Request, about

    try:
        sidecar = json.loads(path.read_text(encoding="utf-8"))
        request = Request.from_dict(sidecar["request"])
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a sidecar of sld generate: {error!r}") from error
    now = about(request, pipe)
    for key in dict.fromkeys((*sidecar, *now)):
        if key != "request" and sidecar.get(key) != now.get(key):
            warnings.warn(
                f"{key} was {sidecar.get(key)} and is {now.get(key)} now: the picture may differ", stacklevel=2
            )
    return request


def _names(requests: list[Request], preset: str) -> list[str]:
    """A file name for each request, numbered where there are several prompts."""
    prompts = list(dict.fromkeys(request.prompt for request in requests))
    number = {prompt: f"{k:04d}-" if len(prompts) > 1 else "" for k, prompt in enumerate(prompts)}
    return [f"{number[r.prompt]}{_slug(r.prompt)}-{preset}-{r.seed}" for r in requests]


def _slug(prompt: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60] or "empty"


def _lines(path: Path | None) -> list[str]:
    return [] if path is None else path.read_text(encoding="utf-8").splitlines()


# ---------------------------------------------------------------------------------------------- inspect and convert


def _inspect(options: argparse.Namespace) -> None:
    from sld.checkpoints import inspect

    print(inspect(options.path))


def _convert(options: argparse.Namespace) -> None:
    from sld.checkpoints import convert

    format = "compvis" if options.target.suffix == ".safetensors" else "diffusers"
    convert(options.source, options.target, format, dtype=dtype(options.dtype), config=options.config)
    print(options.target)
