"""`python -m benchmarks`: sld and diffusers side by side on the same random weights.

`--quick` takes a model of a fifth of SD 1.5's width and small pictures; its ratios are no measure of the real ones.
Everything is printed, and with `--json FILE` written, as each part ends.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import embedded, generate, guidance, memory, price, processes, profile, unet
from benchmarks.measure import Device, environment
from benchmarks.setup import Setup
from benchmarks.sides import FULL, SMALL, TINY, write_model
from sld.files import write_json

PARTS: dict[str, Callable[[Setup], dict[str, Any]]] = {
    "guidance": guidance.run,
    "processes": processes.run,
    "memory": memory.run,
    "unet": unet.run,
    "profile": profile.run,
    "embedded": embedded.run,
    "price": price.run,
    "generate": generate.run,
}
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small model, few repetitions")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=DTYPES, nargs="+", help="of the networks; fp32, on CUDA fp16 and bf16")
    parser.add_argument("--dry-run", action="store_true", help="a tiny model on the CPU through every line")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of the CPU")
    parser.add_argument("--pairs", type=int, help="how often a call of the UNet is timed on each side")
    parser.add_argument("--runs", type=int, help="how often a picture is")
    parser.add_argument("--latent", type=int, help="side of the latents (32; pictures have 8 times as many pixels)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    device = Device(args.device, args.dry_run)
    config = TINY if args.dry_run else SMALL if args.quick else FULL
    latent, steps, long_steps = (8, 2, 2) if args.dry_run else (16, 8, 20) if args.quick else (32, 20, 50)
    latent = args.latent or latent
    results: dict[str, Any] = {"environment": environment(device), "model": config.name, "latent": latent}
    for name in args.dtype or (["fp16", "bf16"] if args.device == "cuda" else ["fp32"]):
        with tempfile.TemporaryDirectory() as folder:
            write_model(config, Path(folder) / "model")
            setup = Setup(
                device=device,
                dtype=DTYPES[name],
                config=config,
                folder=Path(folder) / "model",
                latent=latent,
                steps=steps,
                long_steps=long_steps,
                pairs=args.pairs or (1 if args.dry_run else 5),
                runs=args.runs or (1 if args.dry_run or not args.quick else 2),
                quick=args.quick,
            )
            measured = results if args.device == "cpu" else results.setdefault(name, {})
            for part in args.only:
                made = PARTS[part](setup)
                print(json.dumps({part: made}, indent=2), flush=True)
                measured |= made
                if args.json:
                    write_json(args.json, results)


if __name__ == "__main__":
    main()
