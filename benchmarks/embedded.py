"""The embedded model: pictures per second by batch size, and how long a newcomer waits for the first."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import sld
from benchmarks.measure import seconds
from benchmarks.setup import Setup
from sld.evaluation.prompts import read_prompts
from sld.guidance import STRONG, guidance_for
from sld.request import Request
from sld.request import run as make
from sld.samplers import make_sampler

PICTURES = 64
BATCHES = (1, 2, 4, 8, 16, 32, 64)


def run(setup: Setup) -> dict[str, Any]:
    """Pictures per second under Strong, batched across prompts as `sld evaluate` does, against a loop of calls."""
    pipe = sld.load(device=setup.device.torch)
    pictures, steps = (4, 2) if setup.device.dry else (PICTURES, 50)
    rows = read_prompts("mini-i2p").rows[:pictures]
    requests = [
        Request(row.prompt, pipe.concept, 64, 64, seed=k, guidance=STRONG, sampler="ddim", steps=steps)
        for k, row in enumerate(rows)
    ]

    def loop() -> None:
        for request in requests:
            *_, state = pipe.sample(
                request.prompt,
                request.seed,
                sampler=make_sampler("ddim", pipe.schedule, steps),
                guidance=guidance_for(STRONG),
            )
            pipe.decode(state.x)

    def batched(size: int) -> None:
        for start in range(0, pictures, size):
            make(pipe, requests[start : start + size])

    batched(pictures)  # memory is fetched from the system once
    per_second = {"a loop of calls": pictures / seconds(setup.device, loop)}
    for size in (size for size in BATCHES if size <= pictures):
        per_second[f"batches of {size}"] = pictures / seconds(setup.device, lambda size=size: batched(size))
    results: dict[str, Any] = {"pictures_per_second": per_second}
    if not setup.device.dry:
        results["seconds_per_picture_in_batches_of_16"] = 1 / per_second["batches of 16"]
    results["first_picture_of_sld_generate_s"] = _cold()
    return results


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
