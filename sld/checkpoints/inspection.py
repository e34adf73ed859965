"""What is in a checkpoint, told from its headers."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from sld.checkpoints.examine import NAMES, Origin, examine
from sld.checkpoints.shapes import PARTS, Part
from sld.checkpoints.tables import Format
from sld.config import ModelConfig


@dataclass(frozen=True)
class Inspection:
    """A checkpoint's contents; `str()` makes a report of it.

    Attributes:
        path, format: what was looked at, and how it is read.
        config: the model it is read as, and `told_by` whom; SD 2's prediction type cannot be seen from shapes.
        dtypes: number of parameters in each dtype, by torch's name, of the tensors that are read.
        tensors, parameters: numbers of them in each part of the model that the checkpoint holds.
        averaged: whether there is an averaged UNet (EMA) beside the last one.
        dropped: number of keys in every known leftover.
        problems: every reason why it cannot be loaded; empty if it can.
    """

    path: Path
    format: Format
    config: ModelConfig
    told_by: Origin
    dtypes: dict[str, int]
    tensors: dict[Part, int]
    parameters: dict[Part, int]
    averaged: bool
    dropped: dict[str, int]
    problems: tuple[str, ...]

    def __str__(self) -> str:
        prediction = self.config.schedule.prediction
        if self.told_by == "shapes" and self.config.text.activation == "gelu":
            prediction += ' (assumed: SD 2 weights do not tell; for the 512-pixel models give config="sd21-base")'
        dtypes = ", ".join(self.dtypes)
        lines = [
            f"{self.path}",
            f"  format       {self.format}",
            f"  model        {self.config.name} (told by the {self.told_by})",
            f"  prediction   {prediction}",
            f"  sampler      {self.config.defaults.sampler}",
            f"  size         {self.config.defaults.size} pixels",
            f"  dtype        {dtypes}",
        ]
        for part in PARTS:
            count = f"{self.parameters[part]:>13,} parameters in {self.tensors[part]} tensors"
            lines.append(f"  {NAMES[part]:<12} {count if self.tensors[part] else 'missing'}")
        lines.append(f"  EMA          {'yes: use_ema=True reads it' if self.averaged else 'no'}")
        lines += [f"  left out     {name} ({count})" for name, count in self.dropped.items()]
        lines += [f"  problem      {problem}" for problem in self.problems]
        return "\n".join(lines if self.problems else [*lines, "  complete     every key is accounted for"])


def inspect(path: str | Path, config: ModelConfig | str | None = None, use_ema: bool = False) -> Inspection:
    """Look at a checkpoint without loading it; arguments and errors of `load`, save that a mismatch is reported.

    Raises:
        CheckpointError: a file is missing, damaged or refused, or the model cannot be told.
    """
    checkpoint = examine(path, config, use_ema)
    read = {
        part: [checkpoint.files[part].tensors[key] for key in match.key_maps]
        for part, match in checkpoint.matches.items()
    }
    dtypes: Counter[str] = Counter()
    for x in (x for tensors in read.values() for x in tensors):
        dtypes[x.dtype] += x.numel
    return Inspection(
        path=checkpoint.path,
        format=checkpoint.format,
        config=checkpoint.config,
        told_by=checkpoint.told_by,
        dtypes=dict(dtypes.most_common()),
        tensors={part: len(read.get(part, ())) for part in PARTS},
        parameters={part: sum(x.numel for x in read.get(part, ())) for part in PARTS},
        averaged=checkpoint.averaged,
        dropped={name: len(keys) for name, keys in checkpoint.dropped.items()},
        problems=tuple(checkpoint.problems()),
    )
