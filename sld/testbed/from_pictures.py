"""SLD on the embedded model in image-to-image, from pictures that show an unsafe prop.

`python -m sld.testbed.from_pictures --out runs/from-pictures` makes pictures whose prompts name an unsafe prop, and
keeps the first n in which the detector sees one. Each is a starting point for a run with its own prompt, or with
`--unnamed` with one that leaves out the prop, so that only the picture brings it in. Places and subjects have no unsafe
habit. It writes the share of unsafe results for each strength and preset, and its plot.
"""

from __future__ import annotations

import argparse
import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

import sld
from sld.evaluation.metrics import Estimate, share
from sld.files import write_whole
from sld.guidance import STRONG, SLDConfig
from sld.image_to_image import Start
from sld.pipeline import Pipeline
from sld.plotting import COLOURS, Plot, label_right_edge, render
from sld.testbed import prompts
from sld.testbed.detector import Detector, load_detector
from sld.testbed.prompts import Prompt
from sld.testbed.scenes import habit, write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PRESETS: dict[str, str | SLDConfig] = {
    "off": "off",
    "medium": "medium",
    "strong": "strong",
    "strong at once": replace(STRONG, warmup_steps=0),
    "max": "max",
}
"""Settings of SLD by their names in the table. Those at once have no warm-up."""

STRENGTHS = (0.2, 0.4, 0.6)
HEADER = ("unsafe", "low", "high", "broken", "subject and place", "moved")
BATCH = 40


@dataclass(frozen=True)
class Starts:
    """Pictures that show an unsafe prop.

    Attributes:
        prompts: of the pictures, which name it.
        pictures: (n, 3, H, W) in [-1, 1].
    """

    prompts: tuple[Prompt, ...]
    pictures: torch.Tensor

    def texts(self, named: bool) -> list[str]:
        """Return the prompts, with or without the prop."""
        return [p.text if named else write("{where}, {a_subject}", p.subject, p.place) for p in self.prompts]


class Cell(NamedTuple):
    """The results of one strength and preset.

    Attributes:
        strength, preset: of the runs.
        evaluations: of the network, for each picture.
        unsafe: share of results with an unsafe prop.
        broken: share of results that show nothing the world can show somewhere.
        asked: share of results with the subject and the place that the prompt names.
        moved: mean distance of a result from its start, of pixels in [0, 1].
    """

    strength: float
    preset: str
    evaluations: int
    unsafe: Estimate
    broken: Estimate
    asked: Estimate
    moved: float


def starts(pipe: Pipeline, detector: Detector, n: int, steps: int) -> Starts:
    """Make n pictures that show an unsafe prop, without guidance by a concept.

    Raises:
        ValueError: the prompts are used up before there are n.
    """
    named = [p for p in prompts.explicit() if habit(p.subject, p.place) is None]
    taken: list[Prompt] = []
    pictures: list[torch.Tensor] = []
    for first in range(0, len(named), BATCH):
        batch = named[first : first + BATCH]
        *_, last = pipe.sample(
            [p.text for p in batch],
            range(first, first + len(batch)),
            sampler=pipe.sampler(steps=steps),
            guidance=pipe.guidance("off"),
        )
        made = pipe.decode(last.x).clamp(-1, 1)
        for prompt, picture, seen in zip(batch, made, detector.read(made), strict=True):
            if seen.unsafe and (seen.subject, seen.place) == (prompt.subject, prompt.place):
                taken.append(prompt)
                pictures.append(picture)
        if len(taken) >= n:
            return Starts(tuple(taken[:n]), torch.stack(pictures[:n]))
    raise ValueError(f"only {len(taken)} of {len(named)} pictures show what is asked for: take fewer than {n}")


def measure(
    pipe: Pipeline,
    detector: Detector,
    begun: Starts,
    steps: int,
    named: bool,
    strengths: Sequence[float] = STRENGTHS,
) -> Iterator[Cell]:
    """Yield the results from the same pictures, with the same noise, for every strength and preset.

    Args:
        pipe, detector: the model, and what judges it.
        begun: the pictures.
        steps: of the whole run.
        named: whether the texts name the prop.
        strengths: of the runs.
    """
    n, texts = len(begun.prompts), begun.texts(named)
    for strength in strengths:
        for preset, config in PRESETS.items():
            sampler = pipe.sampler(steps=steps, strength=strength)
            made = []
            for k in range(0, n, BATCH):
                *_, last = pipe.sample(
                    texts[k : k + BATCH],
                    range(k, min(k + BATCH, n)),
                    sampler=sampler,
                    guidance=pipe.guidance(config, pipe.config.defaults.guidance_scale),
                    start=Start(begun.pictures[k : k + BATCH], strength),
                )
                made.append(pipe.decode(last.x).clamp(-1, 1))
            pictures = torch.cat(made)
            seen = detector.read(pictures)
            each = np.arange(n)
            asked = [(r.subject, r.place) == (p.subject, p.place) for r, p in zip(seen, begun.prompts, strict=True)]
            yield Cell(
                strength,
                preset,
                len(sampler.timesteps),
                share(np.array([r.unsafe for r in seen]), each),
                share(np.array([bool(r.broken) for r in seen]), each),
                share(np.array(asked), each),
                float((pictures - begun.pictures).abs().mean() / 2),
            )


def table(cells: Sequence[Cell]) -> str:
    """Return the results as CSV."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(("strength", "preset", "evaluations", "pictures", *HEADER))
    for cell in cells:
        value, low, high, pictures, _ = cell.unsafe
        figures = (value, low, high, cell.broken.value, cell.asked.value, cell.moved)
        writer.writerow((cell.strength, cell.preset, cell.evaluations, pictures, *(f"{x:.4f}" for x in figures)))
    return file.getvalue()


def plot(cells: Sequence[Cell]) -> Plot:
    """Draw the unsafe share over the strength, a line with its interval for each preset."""

    def figure() -> Figure:
        from matplotlib.figure import Figure

        drawn = Figure(figsize=(6.4, 3.8))
        axes = drawn.subplots()
        axes.grid(axis="both")
        labels = []
        for k, (preset, colour) in enumerate(zip(PRESETS, COLOURS, strict=False)):
            own = [cell for cell in cells if cell.preset == preset]
            x = [cell.strength + 0.006 * (k - 2) for cell in own]  # so that intervals stand beside each other
            value, low, high = 100 * np.array([cell.unsafe[:3] for cell in own]).T
            axes.errorbar(x, value, (value - low, high - value), fmt="o-", color=colour, markersize=4, elinewidth=1)
            labels.append((preset, float(value[-1]), colour))
        axes.set(
            xlabel="strength", ylabel="unsafe results, %", ylim=(-2, 102), xticks=[cell.strength for cell in cells]
        )
        label_right_edge(axes, labels, 10, 0.07)
        return drawn

    return render("from_pictures", "unsafe results of image-to-image from unsafe pictures, by strength", figure)


def main() -> None:
    """Parse the command line, measure, and write table and plot."""
    parser = argparse.ArgumentParser(prog="python -m sld.testbed.from_pictures", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for table.csv and from_pictures.png")
    parser.add_argument("--unnamed", action="store_true", help="leave the prop out of the prompts")
    parser.add_argument("--n", type=int, default=30, help="pictures to start from (%(default)s)")
    parser.add_argument("--steps", type=int, default=50, help="of the whole run (%(default)s)")
    parser.add_argument("--device", default="cpu", help="of the networks, cpu or cuda (%(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    try:
        pipe = sld.load(numerics="fast", device=args.device)
    except ValueError as error:
        parser.error(str(error))
    detector = load_detector().to(pipe.device)
    begun = starts(pipe, detector, args.n, args.steps)
    cells = []
    for cell in measure(pipe, detector, begun, args.steps, not args.unnamed):
        cells.append(cell)
        print(table([cell]).splitlines()[1], flush=True)
    write_whole(args.out / "table.csv", table(cells))
    write_whole(args.out / "from_pictures.png", plot(cells).png)


if __name__ == "__main__":
    main()
