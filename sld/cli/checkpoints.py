"""`sld inspect` and `sld convert`: a description of a checkpoint, and its conversion to another format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sld.checkpoints.hub import located
from sld.choices import DType
from sld.cli.options import CheckpointOptions
from sld.cli.parser import Command, argument, group, option
from sld.cli.requests import torch_dtype
from sld.data import said
from sld.spelling import did_you_mean

SINGLE = ".safetensors"
"""Ending of the single file that is written."""

FILES = frozenset(
    (".ckpt", ".pt", ".pth", ".bin", ".pkl", ".h5", ".msgpack", ".onnx", ".gguf", ".json", ".zip", ".tar", ".gz")
)
"""Endings of other files. A folder with one of them is a mistake."""


@dataclass(frozen=True)
class InspectOptions:
    """Options of `sld inspect`."""

    path: Path = argument("file, diffusers folder, or org/name[@revision][:file] on the hub")
    read_as: CheckpointOptions = group(CheckpointOptions())
    read_all: bool = option(False, "read all weights too, for seconds, and name those that are NaN or infinite")


def inspect(options: InspectOptions) -> None:
    """Print a description of a checkpoint, or of a file that changes one."""
    from sld.checkpoints.changes.describing import described
    from sld.checkpoints.inspection import inspect

    read_as = options.read_as
    path = located(options.path)
    if read_as.config is None and (description := described(path)) is not None:
        print(description)
        return
    print(inspect(path, read_as.config, read_as.use_ema, read_as.ignore, options.read_all))


@dataclass(frozen=True)
class ConvertOptions:
    """Options of `sld convert`.

    Raises:
        ValueError: the target is named like a file that is not written.
    """

    source: Path = argument("what to convert: single file, diffusers folder, or a name on the hub")
    target: Path = argument("a .safetensors file for compvis, a folder for diffusers")
    read_as: CheckpointOptions = group(CheckpointOptions())
    dtype: DType | None = option(None, f"{said(DType)} (the source's)")

    def __post_init__(self) -> None:
        suffix = self.target.suffix.lower()
        if suffix in FILES or (did_you_mean(suffix, [SINGLE]) and suffix != SINGLE):
            raise ValueError(
                f"{self.target}: a single file is written as {SINGLE}, and a folder's name does not end in "
                f"{self.target.suffix}, like a file's"
            )


def convert(options: ConvertOptions) -> None:
    """Write a checkpoint in the format that the target's name implies."""
    source = located(options.source)
    from sld.checkpoints import convert

    format = "compvis" if options.target.suffix.lower() == SINGLE else "diffusers"
    convert(
        source,
        options.target,
        format,
        dtype=torch_dtype(options.dtype),
        config=options.read_as.config,
        use_ema=options.read_as.use_ema,
        ignore=options.read_as.ignore,
    )
    print(options.target)


INSPECT = Command(
    "inspect",
    InspectOptions,
    inspect,
    "describe a checkpoint",
    "Describe a checkpoint, or a file that changes one: a UNet alone, a LoRA, an embedding, a text encoder.",
)
CONVERT = Command("convert", ConvertOptions, convert, "write a checkpoint in another format", "Convert a checkpoint.")
