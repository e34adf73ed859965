"""Dynamic negative guidance, along whole chains of a sampler, against a scalar oracle."""

import math
from dataclasses import replace

import pytest
import torch
from conftest import ALGORITHM, EXACT
from guided import concept_rows, contrast, run
from torch import Tensor
from torch.testing import assert_close

from sld.config import ScheduleConfig
from sld.guidance import ClassifierFreeGuidance, ConceptPredictions, DynamicNegativeGuidance
from sld.guidance.base import per_image
from sld.samplers import DDIM, Level, Schedule

STEPS = 10
SCHEDULE = Schedule.from_config(ScheduleConfig(), torch.float64)
RULE = DynamicNegativeGuidance(
    "a", negative_scale=3.0, guidance_scale=2.0, prior=0.1, temperature=0.3, offset=0.02, p_min=1e-3, p_max=0.8
)


def rows_along(steps: list[ConceptPredictions], x: Tensor, i: int) -> ConceptPredictions:
    """Made-up predictions that hang on x; the text's first goes where the negative's does, then the other way."""
    e = steps[i]
    uncond, g = 0.5 * x + 0.1 * e.uncond, 0.2 * e.concepts[0]
    return ConceptPredictions(uncond, uncond + (g if i < STEPS // 2 else -g) + 0.1 * e.text, (uncond + g,))


def chain(rule: DynamicNegativeGuidance, eta: float = 1.0, params=None, batch: int = 2):
    """Latents, guided predictions and posteriors of a run, and everything an oracle needs beside."""
    sampler = DDIM.trailing(SCHEDULE, STEPS, eta=eta)
    path = SCHEDULE.path([int(t) for t in sampler.timesteps])
    steps, draws = concept_rows(1, batch, steps=STEPS), concept_rows(0, batch, steps=STEPS, seed=1)
    x = concept_rows(0, batch, steps=1, seed=2)[0].text
    state, sampler_state = rule.init(x), sampler.init(x)
    params = rule.params(STEPS, batch, dtype=x.dtype) if params is None else params
    moves = []
    for i in range(STEPS):
        rows = rows_along(steps, x, i)
        eps_hat, state = rule(rows, state, torch.tensor(i), params)
        estimate = SCHEDULE.estimate(eps_hat, x, SCHEDULE.level(sampler.timesteps[i]))
        y, sampler_state = sampler.step(i, x, estimate, sampler_state, draws[i].text)
        moves.append((rows, eps_hat, x, y, path[i], path[i + 1], state.log_ratio))
        a, b = Level.of(path[i]), Level.of(path[i + 1])
        state = rule.moved(rows, state, torch.tensor(i), x, y, a, b, params)
        x = y
    return moves


def test_a_chain_equals_the_scalar_oracle():
    """The authors' form: DDPM's centres, two squared distances, a posterior that is clamped at every step.

    Killed by: p for p / (1 - p), the negative added, the distances swapped, temperature or offset ignored, sigma^2 for
    2 sigma^2, the variance of the forward step, no bounds, evidence forgotten, evidence averaged over the batch.
    """
    moves = chain(RULE)
    seen = []
    for k in range(2):
        p = RULE.prior
        for rows, eps_hat, x, y, a, b, _ in moves:
            e0, ep, en = (row[k].flatten().tolist() for row in (rows.uncond, rows.text, rows.concepts[0]))
            strength = RULE.negative_scale * p / (1 - p)
            expected = [m + 2.0 * (t - m) - strength * (n - m) for m, t, n in zip(e0, ep, en, strict=True)]
            assert_close(eps_hat[k].flatten(), torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-9)
            alpha, alpha_bar, next_alpha_bar = float(a / b), float(a), float(b)
            variance = (1 - next_alpha_bar) / (1 - alpha_bar) * (1 - alpha)
            further = 0.0
            for at, to, m, n in zip(x[k].flatten().tolist(), y[k].flatten().tolist(), e0, en, strict=True):
                centres = [(at - (1 - alpha) / math.sqrt(1 - alpha_bar) * e) / math.sqrt(alpha) for e in (m, n)]
                further += (to - centres[1]) ** 2 - (to - centres[0]) ** 2
            seen.append(p)
            if variance > 0:
                p *= math.exp((-RULE.temperature * further + RULE.offset) / (2 * variance))
            p = min(max(p, RULE.p_min), RULE.p_max)
    assert len({round(p, 6) for p in seen}) > 10  # neither stuck at its bounds
    assert min(seen) < RULE.prior < max(seen)


def test_the_posterior_rises_where_the_latents_follow_the_negative():
    x = concept_rows(0, steps=1, seed=3)[0].text
    (rows,) = concept_rows(1, steps=1)
    a, b = SCHEDULE.alpha_bar[500], SCHEDULE.alpha_bar[400]
    params = RULE.params(STEPS, 2, dtype=torch.float64)
    alpha = a / b
    towards = [(x - e * (1 - alpha) / (1 - a).sqrt()) / alpha.sqrt() for e in (rows.concepts[0], rows.uncond)]
    followed, avoided = (
        RULE.moved(rows, RULE.init(x), 0, x, y, Level.of(a), Level.of(b), params).log_ratio for y in towards
    )
    assert (followed > 0).all() and (avoided < 0).all()


def test_no_move_teaches_nothing():
    """PNDM evaluates its second timestep twice, and the last step may end where it began.

    Killed by: a division by a variance of 0.
    """
    (rows,) = concept_rows(1, steps=1)
    state = RULE.init(rows.text)
    a = SCHEDULE.level(500)
    moved = RULE.moved(rows, state, 0, rows.text, rows.uncond, a, a, RULE.params(STEPS, 2, dtype=torch.float64))
    assert_close(moved, state, **EXACT)


def test_an_estimate_that_stays_at_its_prior_is_negative_guidance_of_one_strength():
    moves = chain(replace(RULE, temperature=0.0, offset=0.0))
    for rows, eps_hat, *_, log_ratio in moves:
        expected = rows.uncond + 2 * (rows.text - rows.uncond) - 3 * 0.1 / 0.9 * (rows.concepts[0] - rows.uncond)
        assert_close(eps_hat, expected, **ALGORITHM)
        assert not log_ratio.any()


def test_a_negative_of_scale_zero_changes_nothing():
    steps = concept_rows(1, dtype=torch.float32)
    rule = DynamicNegativeGuidance("a", negative_scale=0.0)
    assert_close(run(rule, steps), run(ClassifierFreeGuidance(7.5), contrast(steps)), **EXACT)
    assert rule.idle(0, STEPS) == {"concept 0"}
    assert RULE.idle(0, STEPS) == frozenset()


def test_a_negative_equal_to_the_empty_text_changes_nothing():
    steps = [e._replace(concepts=(e.uncond,)) for e in concept_rows(0, dtype=torch.float32)]
    assert_close(run(RULE, steps), run(ClassifierFreeGuidance(2.0), contrast(steps)), **EXACT)


def test_settings_per_image_equal_separate_runs():
    rules = [RULE, replace(RULE, prior=0.5, temperature=0.1)]
    together = chain(rules[0], params=per_image([rule.params(STEPS, 1, dtype=torch.float64) for rule in rules], 2))
    for k, alone in enumerate(rules):
        for a, b in zip(together, chain(alone), strict=True):
            assert_close(a[3][k], b[3][k], **EXACT)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("negative_scale", -1.0),
        ("prior", 0.9),
        ("temperature", -0.1),
        ("offset", math.inf),
        ("p_max", 1.0),
        ("p_min", 0),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(field: str, value: float):
    with pytest.raises(ValueError, match=f"{field} must be .*; got {value!r}"):
        replace(RULE, **{field: value})
