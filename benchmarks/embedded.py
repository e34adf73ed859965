"""The embedded model: pictures per second by batch size, and how long a newcomer waits for the first."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import sld
from benchmarks.measure import Device, Spent, in_rounds, spent
from benchmarks.setup import Setup
from benchmarks.sides import PROMPT
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

    Throughput is taken at few steps, batch sizes by turns; a picture's time at the usual number. Batches are made with
    the numerics of `sld evaluate`, the loop with those of `sld generate`.
    """
    device = setup.device
    pipe, plain = sld.load(device=device.torch, numerics="invariant"), sld.load(device=device.torch)
    few = (4, 2, 2, 1) if device.dry else (8, 5, 5, 1)
    pictures, brief, steps, rounds = few if device.dry or setup.quick else (PICTURES, BRIEF, STEPS, ROUNDS)
    rows = read_prompts("mini-i2p").rows[:pictures]
    requests = [
        Request(row.prompt, pipe.config.defaults.concept, 64, 64, seed=k, guidance=STRONG, sampler="ddim", steps=brief)
        for k, row in enumerate(rows)
    ]
    usual = [replace(request, steps=steps) for request in requests[:16]]

    def loop() -> None:
        for request in requests:
            *_, state = plain.sample(
                request.prompt,
                request.seed,
                sampler=make_sampler("ddim", plain.schedule, brief),
                guidance=guidance_for(STRONG),
            )
            plain.decode(state.x)

    def batched(size: int) -> None:
        for start in range(0, pictures, size):
            make(pipe, requests[start : start + size])

    ways: dict[str, Callable[[], None]] = {"a loop of calls": loop}
    ways |= {f"batches of {size}": partial(batched, size) for size in BATCHES if size <= pictures}
    batched(pictures)  # memory is fetched from the system once
    taken = in_rounds(device, ways, rounds, warm=False)
    of_usual = [spent(device, lambda: make(pipe, usual)).over(len(usual)) for _ in range(rounds)]
    return {
        "pictures_per_second": {way: pictures / median(s.clock for s in times) for way, times in taken.items()},
        "processor_seconds_per_picture": {way: median(s.processor for s in t) / pictures for way, t in taken.items()},
        "picture_in_a_batch_s": {
            "pictures": len(usual),
            "steps": steps,
            "clock": median(s.clock for s in of_usual),
            "processor": median(s.processor for s in of_usual),
        },
        "first_picture_of_sld_generate_s": _cold(device, steps)._asdict(),
    }


def _cold(device: Device, steps: int) -> Spent:
    """From the command to the first PNG."""
    command = [sys.executable, "-m", "sld", "generate", PROMPT, "--safety", "strong", "--steps", str(steps), "--out"]
    with tempfile.TemporaryDirectory() as folder:
        taken = spent(device, lambda: subprocess.run([*command, folder], capture_output=True, check=True))
        if not list(Path(folder).glob("*.png")):
            raise RuntimeError("sld generate has left no picture")
    return taken
