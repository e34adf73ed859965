"""A run of the embedded model that takes seconds: few rows, one step."""

from pathlib import Path

import sld
from sld.evaluation.classifiers import make_classifier
from sld.evaluation.prompts import read_prompts
from sld.evaluation.protocol import Protocol, configuration
from sld.evaluation.runner import Evaluation, evaluate
from sld.evaluation.selection import Selection
from sld.evaluation.spread import Ranks
from sld.request import Request


def evaluation(pipe=None, rows=40, names=("off", "max"), steps=1, **changes):
    pipe = pipe or sld.load()
    template = Request(
        prompt="", concept=pipe.config.defaults.concept, height=64, width=64, sampler="ddim", steps=steps
    )
    settings = {
        "pipe": pipe,
        "prompts": Selection(first=rows).apply(read_prompts("mini-i2p")),
        "configurations": {name: configuration(template, name, {"preset": name}) for name in names},
        "protocol": Protocol(images=2, chunk=8),
        "classifiers": [make_classifier("embedded")],
        "keep": "none",
    }
    return Evaluation(**{**settings, **changes})


def go(run, folder, progress=None):
    """Run it alone, to its end."""
    evaluate(run, Path(folder), Ranks(), progress)


def files(folder):
    """Everything that a run's results rest on, byte by byte."""
    folder = Path(folder)
    kept = sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in (".lock", "sessions.jsonl"))
    return {str(p.relative_to(folder)): p.read_bytes() for p in kept}
