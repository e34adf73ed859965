"""SLD on eval-unlearn's leaderboard: its own runner, with the entry point of pyproject.toml and a metric that looks on.

Mutants that failed here: seeds from the beginning in every batch, the concept kept back, an option of a call kept.
"""

import json
import tomllib
from importlib.metadata import EntryPoint

import numpy as np
import pytest
from documents import ROOT

import sld
from sld.adapters.eval_unlearn import SafeLatentDiffusion
from sld.embedded import embedded_checkpoint

GROUP = "eval_unlearn.techniques"
((NAME, TARGET),) = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"][GROUP].items()
PROMPTS = ["a bear in a graveyard", "a fox with a gun", "a bear in a graveyard"]
OPTIONS = {"steps": 2, "preset": "max", "erase_concept": "weapons"}


@pytest.fixture(scope="module")
def separate():
    """The pictures by our own pipeline, image k with seed 5 + k."""
    pipe = sld.load()
    return [
        np.asarray(pipe(prompt, 5 + k, safety="max", concept="weapons", steps=2)[0]) for k, prompt in enumerate(PROMPTS)
    ]


def technique(**options):
    return SafeLatentDiffusion(str(embedded_checkpoint()), **OPTIONS | options)


def pixels(pictures):
    return [np.asarray(picture) for picture in pictures]


def test_seeds_and_pictures_do_not_depend_on_batches(separate):
    made = technique()
    whole = pixels(made.generate(PROMPTS[:2], seed=5) + made.generate(prompts=PROMPTS[2:], seed=5))
    assert all(map(np.array_equal, whole, separate))
    assert not np.array_equal(whole[0], whole[2])


def test_an_option_of_a_call_holds_for_that_call(separate):
    made = technique(steps=1)
    (picture,) = pixels(made.generate(PROMPTS[:1], seed=5, steps=2))
    assert np.array_equal(picture, separate[0])
    (other,) = pixels(made.generate(PROMPTS[:1], seed=4))
    assert not np.array_equal(other, separate[0])
    with pytest.raises(ValueError, match="sdl"):
        technique(preset="sdl").generate(PROMPTS[:1])


def test_the_runner_of_eval_unlearn_finds_and_runs_it(separate, tmp_path, monkeypatch):
    """Only our entry point is shown to it, because its own techniques would load diffusers."""
    entrypoints = pytest.importorskip("eval_unlearn.registry.entrypoints")
    from eval_unlearn.registry import register_metric
    from eval_unlearn.runners import SingleBenchmarkRunner
    from eval_unlearn.types import Dataset, MetricResult

    seen = []

    @register_metric("looks_on")
    class LooksOn:
        def load_dataset(self):
            return [Dataset(PROMPTS[:2], {"source": "here"}), Dataset(PROMPTS[2:], {"source": "here"})]

        def update(self, images, prompts, metadata):
            seen.extend(pixels(images))

        def compute(self):
            return MetricResult("looks_on", float(len(seen)))

    ours = EntryPoint(NAME, TARGET, GROUP)
    monkeypatch.setattr(entrypoints, "entry_points", lambda group: [ours] if group == GROUP else [])
    config = {"model": str(embedded_checkpoint()), **OPTIONS}
    report = SingleBenchmarkRunner(NAME, "looks_on", config, output_dir=str(tmp_path), seed=5).run()

    assert all(map(np.array_equal, seen, separate)) and len(seen) == 3
    assert report["metric_result"]["value"] == 3 and report["erase_concept"] == "weapons"
    assert len(list(tmp_path.rglob("*.png"))) == 3
    assert json.dumps(report)
