"""What only a whole process can tell: loading, peak memory, start-up."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

from benchmarks.measure import Timing
from benchmarks.setup import Setup

HEAD = """
import sys, time
from pathlib import Path
import torch
from benchmarks.measure import Device
from benchmarks import sides
torch.set_num_threads({threads})
folder, cpu = Path({folder!r}), Device("cpu")
"""

LOAD = """
start = time.perf_counter()
pipe = {pipe}
networks = {networks}
touched = sum(p.flatten()[::512].sum().item() for n in networks for p in n.parameters())  # mapped pages count when read
print(time.perf_counter() - start)
"""

PEAK = """
from sld.guidance import STRONG
pipe = {pipe}
sides.{pictures}(pipe, sides.Work(STRONG, "pndm", 2, {pixels}))
print(int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024)
"""

SIDES = {
    "ours": {
        "pipe": "sides.ours(folder, cpu)",
        "networks": "pipe.unet, pipe.vae, pipe.text",
        "pictures": "our_pictures",
    },
    "theirs": {
        "pipe": "sides.theirs(folder, cpu)",
        "networks": "pipe.unet, pipe.vae, pipe.text_encoder",
        "pictures": "their_pictures",
    },
}


def run(setup: Setup) -> dict[str, Any]:
    """Seconds from a folder of float32 safetensors to a ready model, peak resident memory, seconds to a first word."""
    results: dict[str, Any] = {}
    loading = Timing(*(list(pair) for pair in zip(*(_both(setup, LOAD) for _ in range(setup.pairs)), strict=True)))
    results["load"] = loading.to_dict()
    results["ratio_load"] = loading.ratio

    ours, theirs = _both(setup, PEAK)
    with_winograd = _printed(setup, PEAK, SIDES["ours"] | {"pipe": "sides.ours(folder, cpu).winograd()"})
    results["peak_memory_bytes"] = {"ours": ours, "ours_with_winograd": with_winograd, "theirs": theirs}
    results["ratio_peak_memory"] = theirs / ours

    commands = [sys.executable, "-m", "sld", "--help"], [sys.executable, "-c", "import diffusers"]
    start_up = Timing(*([_wall(command) for _ in range(setup.pairs)] for command in commands))
    results["start_up"] = start_up.to_dict()
    results["ratio_start_up"] = start_up.ratio
    return results


def _both(setup: Setup, code: str) -> tuple[float, float]:
    """What the code prints on our side and on theirs."""
    return _printed(setup, code, SIDES["ours"]), _printed(setup, code, SIDES["theirs"])


def _printed(setup: Setup, code: str, names: Mapping[str, str]) -> float:
    """The number that the code prints in a process of its own."""
    import torch

    head = HEAD.format(threads=torch.get_num_threads(), folder=str(setup.folder))
    script = head + code.format(pixels=setup.latent * 8, **names)
    made = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, check=True)
    return float(made.stdout.split()[-1])


def _wall(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, capture_output=True, check=True)
    return time.perf_counter() - start
