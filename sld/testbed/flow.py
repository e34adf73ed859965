"""SLD's presets in the three spaces of a flow model, on the embedded model read as one.

`python -m sld.testbed.flow --out runs/flow.csv` makes 780 pictures of mini-i2p under the presets. It writes and prints
the shares of unsafe and of broken ones, and of those that show the subject and the place that were asked for.

Nothing is trained, and the distribution of the pictures stays the same. The model's x = signal x0 + noise eps, divided
by signal + noise, is the x = (1 - sigma) x0 + sigma eps of a flow whose sigma is noise / (signal + noise). Its v is
eps - x0, and Euler's step along it is DDIM's. So "eps" is SLD as everywhere else here, and the other spaces are
compared with it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import sld
from sld.adapters.loop import SPACES, Run
from sld.evaluation.metrics import Estimate, paired_difference, prompt_labels, share
from sld.evaluation.prompts import Row, read_prompts
from sld.files import write_whole
from sld.guidance import PRESETS, Guidance, guidance_for
from sld.models.denoiser import Cond, Denoiser
from sld.noise import Noise
from sld.pipeline import Pipeline
from sld.samplers import Level, make_sampler
from sld.testbed.detector import Detector, load_detector

BATCH = 60
HEADER = "preset,space,pictures,unsafe,low,high,broken,subject and place,unsafe minus that in eps,p"


def sigma_of(level: Level) -> Tensor:
    """Return the sigma of the flow at a level of unit variance, in its shape."""
    return level.noise / (level.signal + level.noise)


def flow_v(network: Denoiser, x: Tensor, t: Tensor, level: Level, cond: Cond) -> Tensor:
    """Return v (r, c, h, w) of a flow, from a network that predicts eps.

    Args:
        network: predicts eps.
        x: latents of the flow, (r, c, h, w).
        t: timestep, 0-d.
        level: that of the network at t, 0-d each.
        cond: r rows.
    """
    x = x * (level.signal + level.noise)
    eps = network(x, t, cond)
    return eps - (x - level.noise * eps) / level.signal


@torch.no_grad()
def sample(
    pipe: Pipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    rule: Guidance[Any, Any, Any],
    space: str,
    steps: int,
) -> Tensor:
    """Return latents (b, c, h, w) after Euler's steps along the flow, guided in a space.

    Args:
        pipe: predicts eps.
        prompts, seeds: b each.
        rule: its safety concept is the model's own.
        space: a key of `sld.adapters.loop.SPACES`.
        steps: of the sampler.
    """
    sampler = make_sampler("ddim", pipe.schedule, steps)
    texts = {"uncond": "", "safety": pipe.config.defaults.concept}
    conds = {name: pipe.encode([texts.get(name, p) for p in prompts]) for name in rule.conditions}
    levels = [pipe.schedule.level(t) for t in sampler.timesteps]
    final = Level.of(pipe.schedule.final_alpha_bar)
    run = Run(rule, steps)
    shape = (pipe.config.unet.latent, *pipe.config.latent_size())
    x = Noise(seeds, shape).draw().to(pipe.device) / (levels[0].signal + levels[0].noise)
    for i, (t, a, b) in enumerate(zip(sampler.timesteps, levels, [*levels[1:], final], strict=True)):
        rows = {name: flow_v(pipe.unet, x, torch.tensor(t), a, cond) for name, cond in conds.items()}
        v = run(rows, i, SPACES[space](sigma_of(a)))
        x = x + (sigma_of(b) - sigma_of(a)) * v
    return x * (final.signal + final.noise)


class Cell(NamedTuple):
    """What one preset did in one space.

    Attributes:
        preset: its name, or "off".
        space: a key of `SPACES`.
        labels: (n,), equal for pictures of equal prompts.
        unsafe: (n,), bool.
        broken: (n,), bool.
        asked: (n,), bool: whether the picture shows the subject and the place of its prompt.
    """

    preset: str
    space: str
    labels: np.ndarray
    unsafe: np.ndarray
    broken: np.ndarray
    asked: np.ndarray

    def line(self, eps: Cell) -> str:
        """Return a line of the table, compared by picture with the same preset in eps."""
        unsafe: Estimate = share(self.unsafe, self.labels)
        gap = paired_difference(self.unsafe, eps.unsafe, self.labels)
        broken, asked = (share(found, self.labels).value for found in (self.broken, self.asked))
        figures = (*unsafe[:3], broken, asked, gap.value, gap.p)
        return ",".join([self.preset, self.space, str(len(self.unsafe)), *(f"{x:.4f}" for x in figures)])


def measure(pipe: Pipeline, detector: Detector, rows: Sequence[Row], steps: int) -> Iterator[Cell]:
    """Yield the results for every preset and space, "eps" first; without safety, "eps" alone."""
    labels = prompt_labels(np.arange(len(rows)), {k: row.prompt for k, row in enumerate(rows)})
    for preset in ("off", *PRESETS):
        rule = guidance_for(preset, pipe.config.defaults.guidance_scale)
        for space in ("eps",) if preset == "off" else ("eps", "v", "x0"):
            seen = []
            for k in range(0, len(rows), BATCH):
                part = rows[k : k + BATCH]
                seeds = [row.seed or 0 for row in part]
                seen += detector.read(pipe.decode(sample(pipe, [r.prompt for r in part], seeds, rule, space, steps)))
            asked = [
                (s.subject, s.place) == (r.columns["subject"], r.columns["place"])
                for s, r in zip(seen, rows, strict=True)
            ]
            unsafe, broken = (np.array(found) for found in ([s.unsafe for s in seen], [bool(s.broken) for s in seen]))
            yield Cell(preset, space, labels, unsafe, broken, np.array(asked))


def main() -> None:
    """Parse the command line, measure, and write the table."""
    parser = argparse.ArgumentParser(prog="python -m sld.testbed.flow", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the table, .csv")
    parser.add_argument("--first", type=int, default=60, help="prompts of mini-i2p (%(default)s)")
    parser.add_argument("--steps", type=int, default=50, help="of the sampler (%(default)s)")
    parser.add_argument("--device", default="cpu", help="of the networks, cpu or cuda (%(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    try:
        pipe = sld.load(device=args.device)
    except ValueError as error:
        parser.error(str(error))
    detector = load_detector().to(pipe.device)
    lines, eps = [HEADER], None
    for cell in measure(pipe, detector, read_prompts("mini-i2p").rows[: args.first], args.steps):
        eps = cell if cell.space == "eps" or eps is None else eps
        lines.append(cell.line(eps))
        print(lines[-1], flush=True)
    write_whole(args.out, "\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
