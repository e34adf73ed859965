"""Inspection of a checkpoint by its headers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sld.checkpoints.examine import Checkpoint, examine
from sld.config import ModelConfig


@dataclass(frozen=True)
class Inspection:
    """What is in a checkpoint; `str()` makes a report of it.

    Attributes:
        checkpoint: opened, and matched to its model.
        dtypes: number of parameters in each dtype, by torch's name, of the tensors that are read.
        tensors, parameters: numbers of them in each part of the model, by the part's key.
        problems: every reason why it cannot be loaded; empty if it can.
    """

    checkpoint: Checkpoint
    dtypes: dict[str, int]
    tensors: dict[str, int]
    parameters: dict[str, int]
    problems: tuple[str, ...]

    def __str__(self) -> str:
        found, config = self.checkpoint, self.checkpoint.config
        prediction: str = config.schedule.prediction
        if found.told_by == "shapes" and config.texts[0].openclip:
            prediction += ' (assumed: SD 2 weights do not tell; for the 512-pixel models give config="sd21-base")'
        spacing = f", {config.defaults.spacing} spacing" if config.defaults.spacing else ""
        height, width = config.defaults.sides
        size = height if height == width else f"{width} x {height}"
        lines = [
            f"{found.path}",
            f"  format       {found.format}",
            f"  model        {config.name} (told by the {found.told_by})",
            f"  prediction   {prediction}",
            f"  sampler      {config.defaults.sampler}{spacing}",
            f"  size         {size} pixels",
            f"  dtype        {', '.join(self.dtypes)}",
        ]
        for part in found.parts:
            count = f"{self.parameters[part.key]:>13,} parameters in {self.tensors[part.key]} tensors"
            lines.append(f"  {part.title:<12} {count if self.tensors[part.key] else 'missing'}")
        lines.append(f"  EMA          {'yes: use_ema=True reads it' if found.averaged else 'no'}")
        lines += [f"  left out     {name} ({len(keys)})" for name, keys in found.dropped.items()]
        lines += [f"  problem      {problem}" for problem in self.problems]
        return "\n".join(lines if self.problems else [*lines, "  complete     every key is accounted for"])


def inspect(
    path: str | Path,
    config: ModelConfig | str | None = None,
    use_ema: bool = False,
    ignore: Sequence[str] = (),
    read_all: bool = False,
) -> Inspection:
    """Look at a checkpoint without loading it; arguments and errors of `load`, save that a mismatch is reported.

    Args:
        path, config, use_ema, ignore: see `load`.
        read_all: read all weights too, and report those that are not finite. This imports torch and takes seconds.

    Raises:
        CheckpointError: a file is missing, damaged or refused, or the model cannot be told.
    """
    found = examine(path, config, use_ema, ignore)
    read = {key: [found.files[key].tensors[name] for name in match.key_maps] for key, match in found.matches.items()}
    dtypes: Counter[str] = Counter()
    for header in (header for headers in read.values() for header in headers):
        dtypes[header.dtype] += header.numel
    counts = {part.key: read.get(part.key, []) for part in found.parts}
    return Inspection(
        found,
        dict(dtypes.most_common()),
        {key: len(headers) for key, headers in counts.items()},
        {key: sum(header.numel for header in headers) for key, headers in counts.items()},
        (*found.problems(), *(_not_finite(found) if read_all else ())),
    )


def _not_finite(found: Checkpoint) -> Iterator[str]:
    from sld.checkpoints.loading import not_finite

    return (f"weights are NaN or infinite: {key} in {file.name}" for file, key in not_finite(found))
