"""Names and ranges that command lines, files and sidecars share. Importing this loads no torch.

What the names stand for is defined elsewhere, in part in modules that import torch. `tests/test_choices.py` compares
the names with these definitions. Types with a `Range` or a `OneOf` are for `sld.data`.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from sld.config import SAMPLERS, ModelConfig
from sld.data import OneOf, Range, Written, path, read
from sld.published import CONFIGS
from sld.spelling import did_you_mean, shown

PRESETS = ("weak", "medium", "strong", "max")
"""Names of the paper's configurations of SLD, weakest first; keys of `sld.guidance.PRESETS`."""

HYPERPARAMETERS = frozenset(
    (
        "guidance_scale",
        "safety_scale",
        "threshold",
        "momentum_scale",
        "momentum_beta",
        "warmup_steps",
        "warmup_fraction",
    )
)
"""Names of the fields of `SLDConfig`."""

READINGS = ("code", "clamp as printed", "warm-up without momentum", "warm-up inclusive")
"""Names of readings of SLD's equations; keys of `sld.guidance.READINGS`."""

RULES = ("unguided", "cfg", "sld", "concepts", "sega", "perp-neg", "dynamic", "composed", "sparse")
"""Names of guidance rules; keys of `sld.guidance.RULES`."""

AFTERWARDS = ("rescale", "apg")
"""Names of what can follow a rule in a composition; keys of `sld.guidance.rules.AFTERWARDS`."""

COMBINATIONS = ("sum", "maximum", "select", "orthogonalised")
"""Names of ways to combine several concepts; keys of `sld.guidance.COMBINATIONS`."""

DEVICES = ("cpu", "cuda", "mps", "xpu", "hpu", "mtia", "xla")
"""Kinds of device. A number may follow, as in "cuda:1"."""

DType = Literal["float32", "float16", "bfloat16"]
CompileMode = Literal["default", "reduce-overhead", "max-autotune"]
"""Modes of torch.compile. The second one replays CUDA graphs."""

Space = Literal["raw", "eps"]
Preset = Annotated[str, OneOf(("off", *PRESETS))]
Reading = Annotated[str, OneOf(READINGS)]
Combination = Annotated[str, OneOf(COMBINATIONS)]
SamplerName = Annotated[str, OneOf(SAMPLERS)]
Spacing = Annotated[str, OneOf(dict.fromkeys(spacing for entry in SAMPLERS.values() for spacing in entry.spacings))]

Count = Annotated[int, Range(1)]
Threads = Annotated[int, Range(1, 1024)]  # far more than help, and far fewer than a system refuses
Side = Annotated[int, Range(1, 16384)]
Seed = Annotated[int, Range(0, 2**64, below=True)]
Scale = Annotated[float, Range(0, 10**9)]
Threshold = Annotated[float, Range()]
Share = Annotated[float, Range(0, 1)]
Strength = Annotated[float, Range(0, 1, above=True)]
Beta = Annotated[float, Range(0, 1, below=True)]
Warmup = Annotated[int, Range(0, 10**9)]


def device(text: str) -> str:
    """Return the name of a device as it is.

    Raises:
        ValueError: the name is none of `DEVICES`, with or without a number.
    """
    kind = text.partition(":")[0]
    if not re.fullmatch(r"[a-z]+(:\d+)?", text) or kind not in DEVICES:
        raise ValueError(
            f"a device is one of {', '.join(DEVICES)}, with or without a number as in cuda:1; "
            f"got {shown(text)}{did_you_mean(kind, DEVICES) if kind not in DEVICES else ''}"
        )
    return text


def size(text: str) -> tuple[int, int]:
    """Return height and width in pixels of "SIDE" or "WIDTHxHEIGHT".

    Raises:
        ValueError: the text is neither.
    """
    match = re.fullmatch(r"([1-9]\d{0,5})(?:x([1-9]\d{0,5}))?", text)
    if match is None:
        raise ValueError(f"size is a side in pixels or WIDTHxHEIGHT, such as 512 or 768x512; got {shown(text)}")
    return read(Side, int(match[2] or match[1]), "the height"), read(Side, int(match[1]), "the width")


def place(text: str) -> str:
    """Return the name of a file, a folder or something else, such as a model in a cache, with the home folder for `~`.

    A path may follow a word and a colon, as in "clip:~/models/clip".

    Raises:
        ValueError: the text is empty, or there is no such home folder.
    """
    if not text:
        raise ValueError("expected a path or a name; got ''")
    match = re.fullmatch(r"(\w+:)?(~.*)", text, re.DOTALL)
    return text if match is None else f"{match[1] or ''}{path(match[2])}"


def model(text: str) -> str:
    """Return the name of a published model, or of a .json file of one, as it is.

    Raises:
        ValueError: there is no such model or file, or the file does not describe a model.
    """
    text = place(text)
    if text.endswith(".json"):
        ModelConfig.read_file(text)
    elif text not in CONFIGS:
        raise ValueError(
            f"a model is one of {', '.join(CONFIGS)}, or a .json file of one; got {text!r}{did_you_mean(text, CONFIGS)}"
        )
    return text


ConfigName = Annotated[str, Written(model)]
Device = Annotated[str, Written(device)]
Place = Annotated[str, Written(place)]
Size = Annotated[tuple[int, int], Written(size)]


def require_spacing(sampler: str | None, spacing: str | None) -> None:
    """Refuse a spacing that a sampler does not have. None for either stands for the checkpoint's.

    Raises:
        ValueError: the sampler has other spacings.
    """
    if sampler is not None and spacing is not None and spacing not in SAMPLERS[sampler].spacings:
        there = ", ".join(SAMPLERS[sampler].spacings)
        raise ValueError(f"{sampler} has no spacing {spacing!r}, there are {there}: take one of them, or leave it out")


def steps_taken(steps: int, strength: float) -> int:
    """Return the number of steps that a strength leaves of a run, as diffusers counts them.

    Raises:
        ValueError: none is left, or the strength is not in (0, 1].
    """
    if not 0 < strength <= 1:
        raise ValueError(f"strength must be a number in (0, 1]; got {strength!r}")
    if (left := int(steps * strength)) == 0:
        raise ValueError(
            f"strength {strength} leaves none of {steps} steps: take at least {1 / steps:.2g}, or more steps"
        )
    return left
