"""From the options of the command line to the results of all parts."""

from __future__ import annotations

import json
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import Device, environment, spent
from benchmarks.setup import Setup
from benchmarks.sides import FULL, SMALL, TINY, write_model
from sld.files import write_json

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def run(options: Namespace) -> None:
    """Run the parts that were asked for, one after another; print each one's results, and write them all."""
    torch.set_num_threads(options.threads)
    device = Device(options.device, options.dry_run)
    results: dict[str, Any] = {"environment": environment(device)}
    for dtype in options.dtype or (["fp16", "bf16"] if options.device == "cuda" else ["fp32"]):
        with setup(options, device, DTYPES[dtype]) as made:
            results |= {"model": made.config.name, "latent": made.latent}
            measured = results if options.device == "cpu" else results.setdefault(dtype, {})
            for part in options.only:
                found: dict[str, Any] = {}
                taken = spent(device, lambda part=part, found=found: found.update(_part(part, made)))
                print(json.dumps({part: found, "seconds": taken._asdict()}, indent=2), flush=True)
                measured |= found
                measured.setdefault("seconds_of_parts", {})[part] = taken._asdict()
                if options.json:
                    write_json(options.json, results)


@contextmanager
def setup(options: Namespace, device: Device, dtype: torch.dtype) -> Iterator[Setup]:
    """Sizes and repetitions, and a folder with the model as long as this is open."""
    config = TINY if options.dry_run else SMALL if options.quick else FULL
    latent, steps, long_steps = (8, 2, 2) if options.dry_run else (16, 4, 6) if options.quick else (32, 20, 50)
    with tempfile.TemporaryDirectory() as folder:
        write_model(config, Path(folder) / "model")
        yield Setup(
            device=device,
            dtype=dtype,
            config=config,
            folder=Path(folder) / "model",
            latent=options.latent or latent,
            steps=steps,
            long_steps=long_steps,
            pairs=options.pairs or (1 if options.dry_run else 3 if options.quick else 5),
            runs=options.runs or (1 if options.dry_run or not options.quick else 2),
            quick=options.quick,
        )


def _part(name: str, made: Setup) -> dict[str, Any]:
    return import_module(f"benchmarks.{name}").run(made)
