"""`python -m benchmarks`: sld and diffusers side by side on the same random weights.

`--quick` takes a model of a fifth of SD 1.5's width and half its depth, small pictures, and eager kernels in place of
compiled ones. It shows in five minutes that every part runs; its ratios are no measure of the real ones. Everything is
printed, and with `--json FILE` written, as each part ends.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

PARTS = (
    "guidance",
    "processes",
    "memory",
    "unet",
    "numerics",
    "profile",
    "embedded",
    "price",
    "generate",
)
"""Modules of this folder, each with a function `run`."""


def main() -> None:
    """Read the options, then measure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small model, few repetitions")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--dtype", choices=("fp32", "fp16", "bf16"), nargs="+", help="of the networks; fp32, on CUDA fp16 and bf16"
    )
    parser.add_argument("--dry-run", action="store_true", help="a tiny model on the CPU through every line")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of the CPU")
    parser.add_argument("--pairs", type=int, help="how often a call of the UNet is timed on each side")
    parser.add_argument("--runs", type=int, help="how often a picture is")
    parser.add_argument("--latent", type=int, help="side of the latents (32; pictures have 8 times as many pixels)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()

    # Threads that wait for each other sleep: spinning ones take the cores from other work, and times differ thirtyfold.
    # Torch reads this when it is first imported, and processes that are started here inherit it.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from benchmarks.run import run

    run(options)


if __name__ == "__main__":
    main()
