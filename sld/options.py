"""Options that several commands share, and what they turn into. Importing this loads no torch."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sld
from sld.spelling import named

if TYPE_CHECKING:
    from sld.guidance import SLDConfig
    from sld.pipeline import Pipeline
    from sld.request import Request

SLD_FIELDS = {
    "guidance_scale": (float, "s_g, of classifier-free guidance"),
    "safety_scale": (float, "s_S, how sharply guidance sets in; 0 turns it off"),
    "threshold": (float, "lambda, up to which gap between text and concept guidance acts"),
    "momentum_scale": (float, "s_m, share of the momentum that is added"),
    "momentum_beta": (float, "beta_m, how slowly momentum forgets"),
    "warmup_steps": (int, "delta, network evaluations before guidance acts"),
    "warmup_fraction": (float, "the same as a part of the run"),
}
"""Fields of `SLDConfig` -> their type and meaning."""


COMPILE_MODES = ("default", "reduce-overhead", "max-autotune")
"""Of torch.compile; the second replays CUDA graphs."""


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """What `load` reads."""
    model = parser.add_argument_group("model")
    model.add_argument("--checkpoint", type=Path, help="single file or diffusers folder (the embedded model)")
    model.add_argument("--config", help="what the checkpoint is, where it does not tell, such as sd21")
    model.add_argument("--tokenizer", type=Path, help="folder with vocab.json and merges.txt (the checkpoint's)")
    model.add_argument("--use-ema", action="store_true", help="the averaged weights of a compvis file")
    model.add_argument("--dtype", default="float32", help="of the networks: float32, float16 or bfloat16 (%(default)s)")
    model.add_argument("--device", help="cpu, cuda, cuda:1, mps … (cuda where there is one)")
    model.add_argument("--exact-batch", action="store_true", help="the same bits in any batch, at some cost")

    cost = parser.add_argument_group(
        "speed and memory", "Pictures stay as they are but for rounding, and in tiles for what a tile does not show."
    )
    cost.add_argument(
        "--compile",
        metavar="MODE",
        help=f"UNet and step: {', '.join(COMPILE_MODES)}; the first picture waits minutes on a CPU",
    )
    cost.add_argument("--winograd", action="store_true", help="faster wide convolutions on a CPU in float32")
    cost.add_argument("--rows-at-once", type=int, metavar="N", help="rows of an image in one call of the UNet (all)")
    cost.add_argument("--tile", type=int, metavar="PIXELS", help="decode pictures in tiles of this side (whole)")
    cost.add_argument("--offload", action="store_true", help="text encoder and autoencoder wait in the CPU's memory")


def add_sampling_options(parser: argparse.ArgumentParser) -> None:
    """Sampler and size."""
    how = parser.add_argument_group("sampling")
    how.add_argument(
        "--sampler", help="pndm, ddim, euler, euler-ancestral, lms or dpmpp-2m (what the checkpoint names, or pndm)"
    )
    how.add_argument("--spacing", help="leading, trailing or linspace (the sampler's own)")
    how.add_argument("--steps", type=int, default=50, help="(%(default)s)")
    how.add_argument("--eta", type=float, help="of ddim: 0 draws no noise, 1 is ancestral (0)")
    how.add_argument("--space", default="raw", help="for v-prediction: guide raw v or eps (%(default)s)")
    how.add_argument("--size", help="side in pixels, or WIDTHxHEIGHT (the model's)")
    how.add_argument(
        "--deep-every",
        type=int,
        default=1,
        metavar="K",
        help="approximation: all but the last block at every K-th evaluation only (%(default)s)",
    )


def flag(field: str) -> str:
    """The option for a field."""
    return "--" + field.replace("_", "-")


def load(options: argparse.Namespace, device: str | None = None) -> Pipeline:
    """The model that the options describe; `device` where they name none."""
    import torch

    if options.compile is not None:
        named("mode of compilation", options.compile, dict.fromkeys(COMPILE_MODES))
    pipe = sld.load(
        options.checkpoint,
        options.config,
        dtype=dtype(options.dtype),
        device=options.device or device or ("cuda" if torch.cuda.is_available() else "cpu"),
        tokenizer=options.tokenizer,
        use_ema=options.use_ema,
        numerics="invariant" if options.exact_batch else "reference",
        offload=options.offload,
    )
    pipe = replace(pipe, rows_at_once=options.rows_at_once, tile=options.tile)
    pipe = pipe.winograd() if options.winograd else pipe
    return pipe.compile(mode=options.compile) if options.compile else pipe


def dtype(name: str | None) -> Any:
    """A torch dtype from its name; None for None.

    Raises:
        ValueError: networks do not run in it.
    """
    import torch

    known = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, None: None}
    if name not in known:
        raise ValueError(f"dtype must be float32, float16 or bfloat16; got {name!r}")
    return known[name]


def sld_config(preset_name: str, values: Mapping[str, Any]) -> SLDConfig:
    """The preset's row with the fields that `values` overrides; None overrides nothing."""
    from sld.guidance import preset

    given = {name: values.get(name) for name in SLD_FIELDS}
    return replace(preset(preset_name), **{name: value for name, value in given.items() if value is not None})


def template(options: argparse.Namespace, pipe: Pipeline) -> Request:
    """What the options say of every picture; prompt, seed, guidance and negative prompt are left to the caller."""
    from sld.request import Request

    height, width = size(options.size, pipe)
    return Request(
        prompt="",
        concept=pipe.config.defaults.concept if options.concept is None else options.concept,
        height=height,
        width=width,
        sampler=pipe.config.defaults.sampler if options.sampler is None else options.sampler,
        spacing=options.spacing,
        steps=options.steps,
        eta=options.eta,
        space=options.space,
        deep_every=options.deep_every,
    )


def size(text: str | None, pipe: Pipeline) -> tuple[int, int]:
    """Height and width from "SIDE" or "WIDTHxHEIGHT"; the model's own for None."""
    if text is None:
        return pipe.config.defaults.size, pipe.config.defaults.size
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    if match is None:
        raise ValueError(f"size is a side in pixels or WIDTHxHEIGHT, such as 512 or 768x512; got {text!r}")
    return int(match[2] or match[1]), int(match[1])


def integers(text: str, what: str, end: int) -> list[int]:
    """Whole numbers in [0, end) from a list of numbers and ranges, such as "1,5,8-9".

    Args:
        text: the list.
        what: they are, for messages.
        end: of the range that they may come from.

    Raises:
        ValueError: it is no such list, or a number is out of range.
    """
    numbers: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if match is None:
            raise ValueError(f'{what} are numbers and ranges such as "7", "0-3" or "1,5,8-9"; got {text!r}')
        first, last = int(match[1]), int(match[2] or match[1])
        if last >= end or last < first or last - first >= 1_000_000:
            raise ValueError(
                f"{what} must be in [0, {_power(end)}), ranges rising and under a million long; got {part!r}"
            )
        numbers += range(first, last + 1)
    return numbers


def _power(end: int) -> str:
    return f"2**{end.bit_length() - 1}" if end.bit_count() == 1 and end > 2**20 else str(end)


def require_writable(folder: Path) -> None:
    """Find out before the first picture, not after the last, that it cannot be written."""
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / ".sld-writable"
    probe.touch()
    probe.unlink()
