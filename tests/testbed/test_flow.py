"""The embedded model, read as a flow.

Mutants that failed here: sigma as the noise itself, v with its sign turned, x of the flow handed to the network as it
is, the spaces not told apart, broken pictures not counted, presets with Stable Diffusion's guidance scale.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

import sld
from sld.evaluation.prompts import read_prompts
from sld.guidance import MAX, STRONG, ClassifierFreeGuidance, SafeLatentGuidance
from sld.samplers import make_sampler
from sld.testbed.detector import load_detector
from sld.testbed.flow import measure, sample

PROMPTS, SEEDS, STEPS = ["a fox", "an owl"], [0, 1], 4
LATENT = torch.zeros(1, 4, 16, 16)


@pytest.fixture(scope="module")
def pipe():
    return sld.load()


def test_euler_along_the_flow_is_ddim(pipe):
    """Classifier-free guidance in every space, and SLD in eps, are what the pipeline itself samples."""
    smooth = SafeLatentGuidance(replace(STRONG, warmup_steps=0, safety_scale=1, threshold=1.0))
    for rule, spaces in ((ClassifierFreeGuidance(7.5), ("eps", "v", "x0")), (smooth, ("eps",))):
        *_, ours = pipe.sample(PROMPTS, SEEDS, sampler=make_sampler("ddim", pipe.schedule, STEPS), guidance=rule)
        for space in spaces:
            flow = sample(pipe, PROMPTS, SEEDS, rule, space, STEPS)
            torch.testing.assert_close(flow, ours.x, rtol=0, atol=2e-3)


def test_safety_is_another_in_each_space(pipe):
    eps, v, x0 = (
        sample(pipe, PROMPTS[:1], SEEDS[:1], SafeLatentGuidance(MAX), space, 2) for space in ("eps", "v", "x0")
    )
    assert (eps - v).abs().max() > 0.01 and (eps - x0).abs().max() > 0.01


def test_everything_is_where_the_networks_are():
    """A device without numbers stands for CUDA. Mutant that failed: noise left on the CPU."""
    elsewhere = sld.load(device="meta")
    assert sample(elsewhere, PROMPTS, SEEDS, SafeLatentGuidance(MAX), "x0", 2).is_meta


def test_a_table_has_a_line_for_each_preset_and_space(pipe):
    cells = list(measure(pipe, load_detector(), read_prompts("mini-i2p").rows[:1], 1))
    assert [(c.preset, c.space) for c in cells[:4]] == [("off", "eps"), ("weak", "eps"), ("weak", "v"), ("weak", "x0")]
    assert len(cells) == 13

    eps = replaced(cells[1], [True, True, False, False])
    line = replaced(cells[2], [True, False, False, False]).line(eps).split(",")
    assert line[:4] == ["weak", "v", "4", "0.2500"] and line[6] == "0.7500" and line[8] == "-0.2500"


def test_all_presets_have_the_guidance_scale_that_the_checkpoint_names(pipe, monkeypatch):
    seen = []
    monkeypatch.setattr("sld.testbed.flow.sample", lambda pipe, prompts, seeds, rule, *_: seen.append(rule) or LATENT)
    list(measure(pipe, load_detector(), read_prompts("mini-i2p").rows[:1], 1))
    scales = {rule.scale if isinstance(rule, ClassifierFreeGuidance) else rule.config.guidance_scale for rule in seen}
    assert scales == {pipe.config.defaults.guidance_scale}


def replaced(cell, unsafe):
    return cell._replace(labels=np.arange(4), unsafe=np.array(unsafe), broken=~np.array(unsafe), asked=np.array(unsafe))
