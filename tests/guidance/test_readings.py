from dataclasses import replace

import pytest
import torch
from conftest import ALGORITHM, EXACT
from torch import Tensor
from torch.testing import assert_close

from sld.guidance import MEDIUM, PRESETS, STRONG, WEAK, Predictions, Reading, SafeLatentGuidance, SLDConfig
from sld.guidance.readings import (
    DIFFUSERS_WEAK,
    clamp_as_printed,
    diffusers_applies,
    official_applies,
    printed_mask,
    warmup_inclusive,
    warmup_without_momentum,
)

STEPS = 16
OTHERS = [clamp_as_printed, warmup_inclusive, warmup_without_momentum]


def predictions(dtype: torch.dtype = torch.float64) -> list[Predictions]:
    generator = torch.Generator().manual_seed(0)
    return [Predictions(*torch.randn(3, 2, 4, 4, 4, generator=generator, dtype=dtype)) for _ in range(STEPS)]


def run(rule: SafeLatentGuidance, steps: list[Predictions], start: int = 0) -> Tensor:
    """Guided predictions (steps, b, c, h, w), with zero momentum before evaluation `start`."""
    x = steps[0].text
    state, params, guided = rule.init(x), rule.params(STEPS, len(x), dtype=x.dtype), []
    for i, rows in enumerate(steps, start):
        eps_hat, state = rule(rows, state, i, params)
        guided.append(eps_hat)
    return torch.stack(guided)


def test_diffusers_weak_differs_from_weak_in_its_scale_alone():
    """diffusers' own table is read where it is installed, so that a change there is seen."""
    assert replace(WEAK, safety_scale=20) == DIFFUSERS_WEAK
    safe = pytest.importorskip("diffusers.pipelines.deprecated.stable_diffusion_safe")
    assert safe.SafetyConfig.WEAK["sld_guidance_scale"] == DIFFUSERS_WEAK.safety_scale


def test_the_printed_clamp_bounds_from_below():
    text = torch.tensor([-0.001, -0.5, -2.0, 0.2])
    p = replace(STRONG, safety_scale=4.0).params(50)
    assert printed_mask(Predictions(text, text, torch.zeros(4)), p).tolist() == [1, 2, 8, 0]


def test_the_printed_clamp_equals_the_default_where_both_are_one():
    zero, one = torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
    config = replace(STRONG, safety_scale=1.0, warmup_steps=0)
    steps = [Predictions(zero, zero, one)] * STEPS  # |phi| = 1
    printed = run(SafeLatentGuidance(config, clamp_as_printed), steps)
    assert_close(printed, run(SafeLatentGuidance(config), steps), **EXACT)
    assert printed.any()


@pytest.mark.parametrize("config", [MEDIUM, STRONG])
def test_warmup_without_momentum_is_sld_started_after_the_warmup(config: SLDConfig):
    steps, delta = predictions(), config.warmup_steps
    literal = run(SafeLatentGuidance(config, warmup_without_momentum), steps)
    default = run(SafeLatentGuidance(config), steps)
    assert_close(literal[:delta], default[:delta], **EXACT)
    assert_close(literal[delta:], run(SafeLatentGuidance(config), steps[delta:], start=delta), **EXACT)
    assert not torch.equal(literal[delta], default[delta])


def test_momentum_handed_in_during_the_warmup_decays():
    rows, p = predictions()[0], STRONG.params(50, dtype=torch.float64)
    _, nu = warmup_without_momentum(rows, torch.ones_like(rows.text), 0, p)
    assert_close(nu, torch.full_like(nu, 0.7), **ALGORITHM)


def test_the_inclusive_warmup_is_one_evaluation_longer():
    steps = predictions()
    longer = replace(STRONG, warmup_steps=STRONG.warmup_steps + 1)
    assert_close(
        run(SafeLatentGuidance(STRONG, warmup_inclusive), steps), run(SafeLatentGuidance(longer), steps), **EXACT
    )


@pytest.mark.parametrize("reading", OTHERS)
def test_every_reading_differs_from_the_default(reading: Reading):
    steps = predictions()
    assert not torch.equal(run(SafeLatentGuidance(STRONG, reading), steps), run(SafeLatentGuidance(STRONG), steps))


@pytest.mark.parametrize("reading", OTHERS)
def test_every_reading_takes_configs_per_image(reading: Reading):
    steps = predictions()
    together = run(SafeLatentGuidance((MEDIUM, STRONG), reading), steps)
    for k, config in enumerate((MEDIUM, STRONG)):
        alone = run(SafeLatentGuidance(config, reading), [Predictions(*(row[k : k + 1] for row in e)) for e in steps])
        assert_close(together[:, k : k + 1], alone, **EXACT)


@pytest.mark.parametrize(
    ("config", "official", "diffusers"),
    [
        *((config, True, True) for config in PRESETS.values()),
        (replace(STRONG, safety_scale=0.99), False, False),
        (replace(STRONG, safety_scale=1.0), True, False),
        (replace(STRONG, safety_scale=1.01), True, True),
        (replace(STRONG, guidance_scale=1.0), True, False),
    ],
)
def test_the_codes_apply_sld_on_their_own_conditions(config: SLDConfig, official: bool, diffusers: bool):
    assert official_applies(config) is official
    assert diffusers_applies(config) is diffusers


def test_here_a_scale_below_one_still_acts():
    steps, config = predictions(), replace(STRONG, safety_scale=0.5)
    off = replace(config, safety_scale=0)
    assert not torch.equal(run(SafeLatentGuidance(config), steps), run(SafeLatentGuidance(off), steps))
