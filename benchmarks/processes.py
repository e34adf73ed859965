"""What only a whole process can tell: loading, peak memory, start-up."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from benchmarks.measure import Spent, Timing, by_turns
from benchmarks.setup import Setup

HEAD = """
from pathlib import Path
import torch
from benchmarks.measure import Device, Spent
from benchmarks import sides
torch.set_num_threads({threads})
folder, cpu = Path({folder!r}), Device("cpu")
"""

LOAD = """
start = Spent.now()
pipe = {pipe}
networks = {networks}
touched = sum(p.flatten()[::512].sum().item() for n in networks for p in n.parameters())  # mapped pages count when read
print(*Spent.now().since(start))
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
        "networks": "pipe.unet, pipe.vae, *pipe.texts",
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
    loaded: dict[str, list[Spent]] = {side: [] for side in SIDES}
    pairs = 1 if setup.quick else setup.pairs
    for k in range(pairs):
        for side in sorted(SIDES, reverse=k % 2 == 1):
            loaded[side].append(Spent(*_printed(setup, LOAD, SIDES[side])))
    loading = Timing(loaded["ours"], loaded["theirs"])
    results["load"] = loading.to_dict()
    results["ratio_load"] = loading.ratio

    (ours,), (theirs,) = (_printed(setup, PEAK, SIDES[side]) for side in ("ours", "theirs"))
    results["peak_memory_bytes"] = {"ours": ours, "theirs": theirs}
    if not setup.quick:
        (winograd,) = _printed(setup, PEAK, SIDES["ours"] | {"pipe": "sides.ours(folder, cpu).winograd()"})
        results["peak_memory_bytes"]["ours_with_winograd"] = winograd
    results["ratio_peak_memory"] = theirs / ours

    commands = [sys.executable, "-m", "sld", "--help"], [sys.executable, "-c", "import diffusers"]
    first_words = (partial(_finish, command) for command in commands)
    start_up = by_turns(setup.device, *first_words, pairs, warm=not setup.quick)
    results["start_up"] = start_up.to_dict()
    results["ratio_start_up"] = start_up.ratio
    return results


def _printed(setup: Setup, code: str, names: Mapping[str, str]) -> list[float]:
    """The numbers that the code prints in a process of its own."""
    head = HEAD.format(threads=torch.get_num_threads(), folder=str(setup.folder))
    script = head + code.format(pixels=setup.latent * 8, **names)
    made = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, check=True)
    return [float(number) for number in made.stdout.splitlines()[-1].split()]


def _finish(command: list[str]) -> None:
    subprocess.run(command, capture_output=True, check=True)
