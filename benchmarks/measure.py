"""Times of two sides, taken by turns on one device, and what stands beside them in every result."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch


@dataclass(frozen=True)
class Device:
    """Where the networks run.

    Attributes:
        kind: "cpu" or "cuda".
        dry: pass through every line that CUDA would, on the CPU.
    """

    kind: str
    dry: bool = False

    @property
    def torch(self) -> torch.device:
        return torch.device("cpu" if self.dry else self.kind)

    @property
    def real_cuda(self) -> bool:
        return self.kind == "cuda" and not self.dry

    def wait(self) -> None:
        """Until all that was launched is done."""
        if self.real_cuda:
            torch.cuda.synchronize()

    def describe(self) -> str:
        name = torch.cuda.get_device_name() if self.real_cuda else platform.processor() or platform.machine()
        return f"{name} (a dry run for {self.kind})" if self.dry else name


@dataclass(frozen=True)
class Timing:
    """Seconds of the same work by us and by them, in the order in which they were taken."""

    ours: Sequence[float]
    theirs: Sequence[float]

    @property
    def ratio(self) -> float:
        """How many times as fast we are: their median over ours."""
        return statistics.median(self.theirs) / statistics.median(self.ours)

    def to_dict(self) -> dict[str, Any]:
        each = [b / a for a, b in zip(self.ours, self.theirs, strict=True)]
        return {
            "ours_s": statistics.median(self.ours),
            "theirs_s": statistics.median(self.theirs),
            "ratio": self.ratio,
            "ratio_of_pairs": [min(each), max(each)],
            "pairs": len(each),
        }


def seconds(device: Device, work: Callable[[], object]) -> float:
    """How long a call takes, the device's part of it included."""
    device.wait()
    start = time.perf_counter()
    work()
    device.wait()
    return time.perf_counter() - start


def by_turns(
    device: Device, ours: Callable[[], object], theirs: Callable[[], object], pairs: int, warm: bool = True
) -> Timing:
    """Both sides' times, one after the other, the first of a pair changing; after one call each that is not counted.

    Args:
        device: to wait for.
        ours, theirs: the same work.
        pairs: how often.
        warm: make the uncounted calls.
    """
    if warm:
        ours(), theirs()
    times: tuple[list[float], list[float]] = ([], [])
    for k in range(pairs):
        for side in (0, 1) if k % 2 == 0 else (1, 0):
            times[side].append(seconds(device, (ours, theirs)[side]))
    return Timing(*times)


def environment(device: Device) -> Mapping[str, Any]:
    """What a reader must know of the machine."""
    packages = ("torch", "diffusers", "transformers", "numpy")
    return {
        "device": device.describe(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
    }
