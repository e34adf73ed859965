"""An eps model that passes for one that predicts v."""

from dataclasses import replace

import pytest
import torch
from conftest import NETWORK
from torch.testing import assert_close

import sld
from sld.guidance import STRONG, ClassifierFreeGuidance, SafeLatentGuidance
from sld.models.denoiser import Cond
from sld.samplers import make_sampler
from sld.testbed.velocity import predicting_v


@pytest.fixture(scope="module")
def pipes():
    pipe = sld.load()
    return pipe, predicting_v(pipe)


def sampled(pipe, guidance, space="raw"):
    sampler = make_sampler("ddim", pipe.schedule, 6)
    *_, state = pipe.sample(["a fox", "an owl"], [0, 1], sampler=sampler, guidance=guidance, space=space, size=32)
    return state.x


def test_what_it_predicts_stands_for_the_same_noise(pipes):
    """Mutants that failed: v over the noise level, x's sign turned."""
    pipe, twin = pipes
    x, t, cond = torch.randn(2, 4, 8, 8), torch.tensor([421, 3]), Cond(torch.randn(2, 32, 128))
    with torch.no_grad():
        eps, v = pipe.unet(x, t, cond), twin.unet(x, t, cond)
    assert_close(twin.schedule.estimate(v, x, twin.schedule.level(t)).eps, eps, **NETWORK)


def test_plain_guidance_is_the_same_in_both_spaces_and_slds_is_not(pipes):
    pipe, twin = pipes
    plain, guarded = ClassifierFreeGuidance(7.5), SafeLatentGuidance(replace(STRONG, warmup_steps=0))
    for space in ("raw", "eps"):
        assert_close(sampled(twin, plain, space), sampled(pipe, plain), rtol=0, atol=1e-4)
    assert (sampled(twin, guarded, "raw") - sampled(twin, guarded, "eps")).abs().max() > 0.1


def test_a_model_that_predicts_v_is_refused(pipes):
    with pytest.raises(ValueError, match="predicts v already"):
        predicting_v(pipes[1])
