"""The embedded model: pictures per second by batch size, and how long a newcomer waits for the first."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import sld
from benchmarks.measure import seconds
from benchmarks.setup import Setup
from sld.batching import run as make
from sld.evaluation.prompts import read_prompts
from sld.guidance import STRONG, guidance_for
from sld.request import Request
from sld.samplers import make_sampler

PICTURES = 64
BATCHES = (1, 2, 4, 8, 16, 32, 64)
BRIEF, STEPS = 10, 50
ROUNDS = 3


def run(setup: Setup) -> dict[str, Any]:
    """Pictures per second under Strong, batched across prompts as `sld evaluate` does, against a loop of calls.

    Throughput is taken at few steps, batch sizes by turns; a picture's time at the usual number.
    """
    pipe = sld.load(device=setup.device.torch)
    few = (4, 2, 2, 1) if setup.device.dry else (16, 5, STEPS, 1)
    pictures, brief, steps, rounds = few if setup.device.dry or setup.quick else (PICTURES, BRIEF, STEPS, ROUNDS)
    rows = read_prompts("mini-i2p").rows[:pictures]
    requests = [
        Request(row.prompt, pipe.config.defaults.concept, 64, 64, seed=k, guidance=STRONG, sampler="ddim", steps=brief)
        for k, row in enumerate(rows)
    ]
    usual = [replace(request, steps=steps) for request in requests[:16]]

    def loop() -> None:
        for request in requests:
            *_, state = pipe.sample(
                request.prompt,
                request.seed,
                sampler=make_sampler("ddim", pipe.schedule, brief),
                guidance=guidance_for(STRONG),
            )
            pipe.decode(state.x)

    def batched(size: int) -> None:
        for start in range(0, pictures, size):
            make(pipe, requests[start : start + size])

    ways: dict[str, Callable[[], None]] = {"a loop of calls": loop}
    ways |= {f"batches of {size}": partial(batched, size) for size in BATCHES if size <= pictures}
    batched(pictures)  # memory is fetched from the system once
    taken: dict[str, list[float]] = {way: [] for way in ways}
    of_usual = []
    for _ in range(rounds):
        for way, work in ways.items():
            taken[way].append(seconds(setup.device, work))
        of_usual.append(seconds(setup.device, lambda: make(pipe, usual)) / len(usual))
    return {
        "pictures_per_second": {way: pictures / median(times) for way, times in taken.items()},
        "seconds_per_picture_in_batches_of_16": median(of_usual),
        "first_picture_of_sld_generate_s": _cold(),
    }


def _cold() -> float:
    """From the command to the first PNG."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        command = [
            sys.executable,
            "-m",
            "sld",
            "generate",
            "a fox in a dark alley",
            "--safety",
            "strong",
            "--out",
            folder,
        ]
        subprocess.run(command, capture_output=True, check=True)
        taken = time.perf_counter() - start
        if not list(Path(folder).glob("*.png")):
            raise RuntimeError("sld generate has left no picture")
    return taken
