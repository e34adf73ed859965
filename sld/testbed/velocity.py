"""SLD's presets in both guidance spaces, on the embedded model turned into one that predicts v.

`python -m sld.testbed.velocity --out runs/space` (540 pictures) makes pictures of mini-i2p under the presets and prints
the shares of unsafe, broken and safe ones. What is guided is v, as in the reference ("raw"), or eps ("eps"). v follows
from eps, x and the noise level, so nothing is trained and the distribution of the pictures stays the same.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

import sld
from sld.evaluation.classifiers import make_classifier
from sld.evaluation.metrics import prompt_labels, share
from sld.evaluation.prompts import read_prompts
from sld.evaluation.protocol import Protocol, configuration
from sld.evaluation.results import read_results
from sld.evaluation.runner import Evaluation, evaluate
from sld.evaluation.selection import Selection
from sld.evaluation.spread import ranks
from sld.models.denoiser import Cond, Denoiser
from sld.pipeline import Pipeline
from sld.request import Request
from sld.samplers import Schedule
from sld.step import Space

PRESETS = ("weak", "medium", "strong", "max")


class Velocity:
    """A denoiser that predicts v, computed from one that predicts eps."""

    def __init__(self, eps: Denoiser, schedule: Schedule) -> None:
        self.eps, self.schedule = eps, schedule

    @property
    def device(self) -> torch.device:
        return self.eps.device

    @property
    def dtype(self) -> torch.dtype:
        return self.eps.dtype

    def __call__(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """Return v (r, c, h, w) for latents x (r, c, h, w) at timesteps t, () or (r,)."""
        level = self.schedule.level(t).over(x)
        return (self.eps(x, t, cond) - level.noise * x) / level.signal


def predicting_v(pipe: Pipeline) -> Pipeline:
    """Return a pipeline that predicts v and samples the same distribution as one that predicts eps.

    Raises:
        ValueError: the pipeline predicts v already.
    """
    if pipe.schedule.prediction != "eps":
        raise ValueError(f"{pipe.config.name} predicts {pipe.schedule.prediction} already")
    config = replace(
        pipe.config, name=f"{pipe.config.name} as v", schedule=replace(pipe.config.schedule, prediction="v")
    )
    schedule = replace(pipe.schedule, prediction="v")
    return replace(pipe, config=config, unet=Velocity(pipe.unet, pipe.schedule), schedule=schedule)


def run(folder: Path, first: int, device: str = "cpu") -> str:
    """Make the missing pictures and return a table of shares with 95 % intervals, clustered by prompt.

    Args:
        folder: of the run.
        first: number of prompts of mini-i2p.
        device: of the networks.

    Raises:
        ValueError: the device cannot be used, or the folder holds another run.
    """
    pipe = predicting_v(sld.load(device=device))
    template = Request("", pipe.config.defaults.concept, *pipe.config.defaults.sides, sampler="ddim")
    scale = {"guidance_scale": pipe.config.defaults.guidance_scale}
    configurations = {"off": configuration(template, "off", {"preset": "off", **scale})}
    for preset in PRESETS:
        for space in get_args(Space):
            settings = {"preset": preset, "space": space, **scale}
            configurations[f"{preset}-{space}"] = configuration(template, preset, settings)
    with ranks() as group:
        evaluation = Evaluation(
            pipe=pipe,
            prompts=Selection(first=first).apply(read_prompts("mini-i2p")),
            configurations=configurations,
            protocol=Protocol(images=1),
            classifiers=[make_classifier("embedded", pipe.device)],
            keep="all",
        )
        evaluate(evaluation, folder, group)
    results = read_results(folder)
    texts = {number: row.prompt for number, row in results.rows.items()}
    lines = [" ".join([" " * 12, *(f"{judgement}, %".rjust(16) for judgement in results.judgements)])]
    for name in results.configurations:
        shares = []
        for judgement in results.judgements:
            decided, rows, _ = results.decisions(name, judgement=judgement)
            estimate = share(decided, prompt_labels(rows, texts))
            shares.append(f"{100 * estimate.value:.1f} ({100 * estimate.low:.0f}-{100 * estimate.high:.0f})".rjust(16))
        lines.append(" ".join([f"{name:12}", *shares]))
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m sld.testbed.velocity", description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--first", type=int, default=60, help="prompts of mini-i2p (%(default)s)")
    parser.add_argument("--device", default="cpu", help="of the networks, cpu or cuda (%(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    try:
        print(run(args.out, args.first, args.device))
    except ValueError as error:
        parser.error(str(error))
