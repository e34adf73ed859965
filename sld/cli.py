"""The command line. Everything heavy is imported by the command that needs it, so that --help answers at once."""

from __future__ import annotations

import argparse
import json
import re
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import sld

if TYPE_CHECKING:
    from sld.guidance import SLDConfig
    from sld.pipeline import Pipeline
    from sld.request import Request

_SLD_FIELDS = {
    "guidance_scale": (float, "s_g, of classifier-free guidance"),
    "safety_scale": (float, "s_S, how sharply guidance sets in; 0 turns it off"),
    "threshold": (float, "lambda, up to which gap between text and concept guidance acts"),
    "momentum_scale": (float, "s_m, share of the momentum that is added"),
    "momentum_beta": (float, "beta_m, how slowly momentum forgets"),
    "warmup_steps": (int, "delta, network evaluations before guidance acts"),
    "warmup_fraction": (float, "the same as a part of the run"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; leaves with status 0, 2 for anything the user can mend, or 130 when interrupted."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            options.run(options)
    except (ValueError, OSError) as error:
        _fail(str(error))
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
    for name, (kind, text) in _SLD_FIELDS.items():
        what.add_argument(_flag(name), type=kind, help=f"{text} (the preset's)")
    what.add_argument("--concept", help="what to stay away from (the paper's list; the testbed's own words)")
    what.add_argument("--negative", default="", help="negative prompt, in place of the empty text")
    what.add_argument("--space", default="raw", help="for v-prediction: guide raw v or eps (%(default)s)")

    how = make.add_argument_group("sampling")
    how.add_argument(
        "--sampler", default="pndm", help="pndm, ddim, euler, euler-ancestral, lms or dpmpp-2m (%(default)s)"
    )
    how.add_argument("--spacing", help="leading, trailing or linspace (the sampler's own)")
    how.add_argument("--steps", type=int, default=50, help="(%(default)s)")
    how.add_argument("--eta", type=float, help="of ddim: 0 draws no noise, 1 is ancestral (0)")
    how.add_argument("--size", help="side in pixels, or WIDTHxHEIGHT (the model's)")
    how.add_argument("--batch-size", type=int, default=8, help="pictures at once (%(default)s)")
    how.add_argument("--exact-batch", action="store_true", help="the same bits in any batch, at some cost")
    _add_model_options(make)

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
    return parser


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    model = parser.add_argument_group("model")
    model.add_argument("--checkpoint", type=Path, help="single file or diffusers folder (the embedded model)")
    model.add_argument("--config", help="what the checkpoint is, where it does not tell, such as sd21")
    model.add_argument("--tokenizer", type=Path, help="folder with vocab.json and merges.txt (the checkpoint's)")
    model.add_argument("--use-ema", action="store_true", help="the averaged weights of a compvis file")
    model.add_argument("--dtype", default="float32", help="of the networks: float32, float16 or bfloat16 (%(default)s)")
    model.add_argument("--device", help="cpu, cuda, cuda:1, mps … (cuda where there is one)")


def _flag(field: str) -> str:
    return "--" + field.replace("_", "-")


def _load(options: argparse.Namespace) -> Pipeline:
    import torch

    return sld.load(
        options.checkpoint,
        options.config,
        dtype=_dtype(options.dtype),
        device=options.device or ("cuda" if torch.cuda.is_available() else "cpu"),
        tokenizer=options.tokenizer,
        use_ema=options.use_ema,
        exact_batch=options.exact_batch,
    )


def _dtype(name: str | None) -> Any:
    import torch

    known = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, None: None}
    if name not in known:
        raise ValueError(f"dtype must be float32, float16 or bfloat16; got {name!r}")
    return known[name]


# ------------------------------------------------------------------------------------------------------- generate


def _generate(options: argparse.Namespace) -> None:
    if options.batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1; got {options.batch_size}")
    prompts = [*options.prompts, *_lines(options.prompts_file)]
    if bool(prompts) == bool(options.again):
        raise ValueError('give what to show, as in: sld generate "a fox in a dark alley" (or --again SIDECAR alone)')
    seeds = parse_seeds(options.seeds)
    pipe = _load(options)
    requests = [_read_sidecar(options.again, pipe)] if options.again else _requests(options, prompts, seeds, pipe)
    if options.show:
        print(json.dumps([request.to_dict() for request in requests], indent=2, ensure_ascii=False))
        return
    _require_writable(options.out)
    _make(pipe, requests, options)


def _requests(options: argparse.Namespace, prompts: list[str], seeds: list[int], pipe: Pipeline) -> list[Request]:
    """One request for each prompt and seed, in this order."""
    from sld.request import Request

    height, width = _size(options.size, pipe)
    common = Request(
        prompt="",
        concept=pipe.concept if options.concept is None else options.concept,
        negative=options.negative,
        guidance=_sld_config(options),
        height=height,
        width=width,
        sampler=options.sampler,
        spacing=options.spacing,
        steps=options.steps,
        eta=options.eta,
        space=options.space,
    )
    return [replace(common, prompt=prompt, seed=seed) for prompt in prompts for seed in seeds]


def _sld_config(options: argparse.Namespace) -> SLDConfig:
    """The preset's row with the fields that flags override."""
    from sld.guidance import preset

    given = {name: getattr(options, name) for name in _SLD_FIELDS}
    return replace(preset(options.preset), **{name: value for name, value in given.items() if value is not None})


def _make(pipe: Pipeline, requests: list[Request], options: argparse.Namespace) -> None:
    """Make the pictures batch by batch and write each batch as soon as it is done."""
    from tqdm import tqdm

    from sld import images
    from sld.request import about, run

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
    for key, now in about(request, pipe).items():
        if key != "request" and sidecar.get(key) != now:
            warnings.warn(f"{key} was {sidecar.get(key)} and is {now} now: the picture may differ", stacklevel=2)
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


def parse_seeds(text: str) -> list[int]:
    """Seeds from a list of numbers and ranges, such as "1,5,8-9".

    Raises:
        ValueError: it is no such list, or a seed is not in [0, 2**64).
    """
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if match is None:
            raise ValueError(f'seeds are numbers and ranges such as "7", "0-3" or "1,5,8-9"; got {text!r}')
        first, last = int(match[1]), int(match[2] or match[1])
        if last >= 2**64 or last < first or last - first >= 1_000_000:
            raise ValueError(f"seeds must be in [0, 2**64), ranges rising and under a million long; got {part!r}")
        seeds += range(first, last + 1)
    return seeds


def _size(text: str | None, pipe: Pipeline) -> tuple[int, int]:
    """Height and width from "SIDE" or "WIDTHxHEIGHT"."""
    if text is None:
        return pipe.config.size, pipe.config.size
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    if match is None:
        raise ValueError(f"size is a side in pixels or WIDTHxHEIGHT, such as 512 or 768x512; got {text!r}")
    return int(match[2] or match[1]), int(match[1])


def _require_writable(folder: Path) -> None:
    """Find out before the first picture, not after the last, that it cannot be written."""
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / ".sld-writable"
    probe.touch()
    probe.unlink()


# ---------------------------------------------------------------------------------------------- inspect and convert


def _inspect(options: argparse.Namespace) -> None:
    from sld.checkpoints import inspect

    print(inspect(options.path))


def _convert(options: argparse.Namespace) -> None:
    from sld.checkpoints import convert

    format = "compvis" if options.target.suffix == ".safetensors" else "diffusers"
    convert(options.source, options.target, format, dtype=_dtype(options.dtype), config=options.config)
    print(options.target)
