"""Times of two sides, taken by turns on one device, and what stands beside them in every result."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, NamedTuple

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


class Spent(NamedTuple):
    """Seconds: by the clock, and of the processor.

    The processor's are summed over all threads of this process and over child processes that have ended. On a machine
    with other work they still say how much was computed, where the clock also counts waiting for a core.
    """

    clock: float = 0.0
    processor: float = 0.0

    @classmethod
    def now(cls) -> Spent:
        """Return the time since some moment in the past."""
        children = os.times()
        return cls(time.perf_counter(), time.process_time() + children.children_user + children.children_system)

    def plus(self, other: Spent) -> Spent:
        return Spent(self.clock + other.clock, self.processor + other.processor)

    def since(self, other: Spent) -> Spent:
        return Spent(self.clock - other.clock, self.processor - other.processor)

    def over(self, n: float) -> Spent:
        return Spent(self.clock / n, self.processor / n)


def spent(device: Device, work: Callable[[], object]) -> Spent:
    """How long a call takes, the device's part of it included."""
    device.wait()
    start = Spent.now()
    work()
    device.wait()
    return Spent.now().since(start)


NOISE = 1.5
"""Single pairs whose ratios differ by more than this factor are noise, and no ratio is made of them."""


class Ratio(NamedTuple):
    """How many times as fast we are: their median over ours; and the least and the greatest ratio of single pairs."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
        each = [b / a for a, b in zip(ours, theirs, strict=True)]
        return cls(statistics.median(theirs) / statistics.median(ours), min(each), max(each))

    @property
    def told(self) -> float | str:
        """The ratio, or the word noise and the range of single pairs where these differ too much."""
        return self.value if self.high <= NOISE * self.low else f"noise: pairs from {self.low:.2f} to {self.high:.2f}"


@dataclass(frozen=True)
class Timing:
    """Times of the same work by us and by them, in the order in which they were taken."""

    ours: Sequence[Spent]
    theirs: Sequence[Spent]

    @property
    def clock(self) -> Ratio:
        """By the clock."""
        return Ratio.of([s.clock for s in self.ours], [s.clock for s in self.theirs])

    @property
    def processor(self) -> Ratio:
        """By the processor's time."""
        return Ratio.of([s.processor for s in self.ours], [s.processor for s in self.theirs])

    @property
    def ratio(self) -> float | str:
        """How many times as fast we are by the clock, or that it is noise."""
        return self.clock.told

    def to_dict(self) -> dict[str, Any]:
        """Medians of both sides in seconds, ratios, and what pairs they are made of."""
        return {
            "ours_s": statistics.median(s.clock for s in self.ours),
            "theirs_s": statistics.median(s.clock for s in self.theirs),
            "ratio": self.clock.told,
            "ratio_of_pairs": [self.clock.low, self.clock.high],
            "ours_processor_s": statistics.median(s.processor for s in self.ours),
            "theirs_processor_s": statistics.median(s.processor for s in self.theirs),
            "processor_ratio": self.processor.told,
            "processor_ratio_of_pairs": [self.processor.low, self.processor.high],
            "pairs": len(self.ours),
        }


def in_rounds(
    device: Device, sides: Mapping[str, Callable[[], object]], rounds: int, warm: bool = True
) -> dict[str, list[Spent]]:
    """Times of every side, one after the other in each round, another one first in the next.

    Args:
        device: to wait for.
        sides: the same work, by name.
        rounds: how often.
        warm: make one call of each side first that is not counted.
    """
    if warm:
        for work in sides.values():
            work()
    names = list(sides)
    times: dict[str, list[Spent]] = {name: [] for name in names}
    for k in range(rounds):
        for j in range(len(names)):
            name = names[(j + k) % len(names)]
            times[name].append(spent(device, sides[name]))
    return times


def by_turns(
    device: Device, ours: Callable[[], object], theirs: Callable[[], object], pairs: int, warm: bool = True
) -> Timing:
    """Both sides' times by turns; see `in_rounds`."""
    times = in_rounds(device, {"ours": ours, "theirs": theirs}, pairs, warm)
    return Timing(times["ours"], times["theirs"])


def environment(device: Device) -> Mapping[str, Any]:
    """What a reader must know of the machine."""
    packages = ("torch", "diffusers", "transformers", "numpy")
    return {
        "device": device.describe(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "waiting_threads": os.environ.get("OMP_WAIT_POLICY", "as OpenMP has it"),
        "load_of_the_last_minute": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
    }
