"""What is done to a guided prediction afterwards, alone and in compositions.

Rescale, APG and the interval are run beside diffusers' guiders on the same rows, chained over the steps.
"""

import math
from dataclasses import replace

import pytest
import torch
from conftest import ALGORITHM, EXACT
from diffusers.guiders import AdaptiveProjectedGuidance, ClassifierFreeGuidance as ReferenceCFG
from guided import STEPS, concept_rows, contrast, images, one_concept, run, run_each
from torch import Tensor
from torch.testing import assert_close

from sld.guidance import (
    APG,
    MAX,
    SEGA,
    STRONG,
    WEAK,
    ClassifierFreeGuidance,
    Composed,
    DynamicNegativeGuidance,
    Guidance,
    Negative,
    PerpNeg,
    Rescale,
    SafeLatentConcepts,
    SafeLatentGuidance,
    Unguided,
)
from sld.samplers import Level

CFG = ClassifierFreeGuidance(7.5)


def reference(guider: AdaptiveProjectedGuidance | ReferenceCFG, steps) -> Tensor:
    """Guided predictions of one of diffusers' guiders, (steps, b, c, h, w)."""
    guided = []
    for i, rows in enumerate(steps):
        guider.set_state(step=i, num_inference_steps=len(steps), timestep=torch.LongTensor([0]))
        guider.prepare_inputs({})  # at the first step APG makes its buffer here
        guided.append(guider.forward(rows.text, rows.uncond).pred)
    return torch.stack(guided)


# --- rescale


@pytest.mark.parametrize("phi", [0.3, 0.7, 1.0])
def test_rescaled_cfg_equals_diffusers_bit_for_bit(phi: float):
    """Killed by: one deviation for the whole batch, another divisor in it, phi and 1 - phi swapped."""
    steps = contrast(concept_rows(0, dtype=torch.float32))
    guided = run(Composed(CFG, (Rescale(phi),)), steps)
    assert_close(guided, reference(ReferenceCFG(7.5, guidance_rescale=phi), steps), **EXACT)


def test_fully_rescaled_predictions_have_the_texts_deviation():
    steps = one_concept(concept_rows(1))
    guided = run(Composed(SafeLatentGuidance(STRONG), (Rescale(1.0),)), steps)
    text = torch.stack([e.text for e in steps])
    assert_close(guided.flatten(2).std(dim=2), text.flatten(2).std(dim=2), **ALGORITHM)


def test_rescale_by_nothing_changes_nothing():
    steps = one_concept(concept_rows(1, dtype=torch.float32))
    rule = SafeLatentGuidance(STRONG)
    assert_close(run(Composed(rule, (Rescale(0.0),)), steps), run(rule, steps), **EXACT)


# --- APG


@pytest.mark.parametrize(
    ("eta", "threshold", "momentum"),
    [(1.0, None, 0.0), (0.0, None, 0.0), (0.4, 3.0, -0.5), (0.0, 3.0, 0.7), (1.0, 200.0, -0.5)],
)
def test_apg_on_cfg_equals_diffusers(eta: float, threshold: float | None, momentum: float):
    """diffusers projects in float64, so float64 is what is compared. Its threshold bounds d and ours (s_g - 1) d.

    Killed by: no momentum, momentum of the bounded update, every norm set to the bound, no bound, the parallel
    component dropped.
    """
    steps = contrast(concept_rows(0))
    expected = reference(
        AdaptiveProjectedGuidance(
            guidance_scale=6.5,
            adaptive_projected_guidance_momentum=momentum,
            adaptive_projected_guidance_rescale=0.0 if threshold is None else threshold,
            eta=eta,
            use_original_formulation=True,
        ),
        steps,
    )
    ours = APG(eta, None if threshold is None else 6.5 * threshold, momentum)
    assert_close(run(Composed(CFG, (ours,)), steps), expected, **ALGORITHM)


def test_apg_that_keeps_everything_changes_nothing():
    steps = one_concept(concept_rows(1))
    rule = SafeLatentGuidance(STRONG)
    kept = APG(eta=1.0, threshold=None, momentum=0.0)
    assert_close(run(Composed(rule, (kept,)), steps), run(rule, steps), **ALGORITHM)


def test_apg_leaves_an_update_perpendicular_to_the_text_and_no_longer_than_its_bound():
    steps = one_concept(concept_rows(1))
    guided = run(Composed(SafeLatentGuidance(STRONG), (APG(0.0, 5.0, -0.5),)), steps)
    for rows, eps_hat in zip(steps, guided, strict=True):
        update = (eps_hat - rows.text).flatten(1)
        assert_close(
            (update * rows.text.flatten(1)).sum(dim=1), torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-10
        )
        assert (update.norm(dim=1) <= 5.0 + 1e-12).all()


def test_an_update_of_nothing_makes_no_nan():
    steps = [
        e._replace(text=torch.zeros_like(e.text), uncond=torch.zeros_like(e.text)) for e in contrast(concept_rows(0))
    ]
    assert not run(Composed(CFG, (APG(threshold=1.0),)), steps).any()


# --- the interval


@pytest.mark.parametrize(("start", "stop"), [(0.25, 1.0), (0.0, 0.5), (0.1, 0.8)])
def test_cfg_in_an_interval_equals_diffusers_bit_for_bit(start: float, stop: float):
    """Killed by: > for >= at the start, <= for < at the end."""
    steps = contrast(concept_rows(0, dtype=torch.float32))
    guided = run(Composed(CFG, begin=start, end=stop), steps)
    assert_close(guided, reference(ReferenceCFG(7.5, start=start, stop=stop), steps), **EXACT)


def test_apg_in_an_interval_equals_diffusers():
    """Its running update waits outside. Killed by: a running update that does not wait."""
    steps = contrast(concept_rows(0))
    guider = AdaptiveProjectedGuidance(
        6.5,
        adaptive_projected_guidance_momentum=0.5,
        adaptive_projected_guidance_rescale=0.0,
        eta=0.3,
        use_original_formulation=True,
        start=0.2,
        stop=0.9,
    )
    guided = run(Composed(CFG, (APG(0.3, None, 0.5),), begin=0.2, end=0.9), steps)
    assert_close(guided, reference(guider, steps), **ALGORITHM)


def test_an_interval_over_everything_is_no_interval():
    steps = one_concept(concept_rows(1, dtype=torch.float32))
    rule = SafeLatentGuidance(STRONG)
    assert_close(run(Composed(rule), steps), run(rule, steps), **EXACT)


@pytest.mark.parametrize(("start", "stop"), [(0.11, 0.99), (0.1, 0.62), (0.501, 0.502)])
def test_parts_of_the_run_round_up_to_whole_evaluations(start: float, stop: float):
    steps = contrast(concept_rows(0))
    rule = Composed(CFG, begin=start, end=stop)
    acts = (run(rule, steps) != torch.stack([e.text for e in steps])).flatten(1).any(dim=1)
    assert acts.tolist() == [start <= i / STEPS < stop for i in range(STEPS)]


def test_momentum_waits_outside_the_interval():
    """The same as SLD over the middle of the run alone; its warm-up counts on."""
    steps = one_concept(concept_rows(1, dtype=torch.float32))
    rule = SafeLatentGuidance(replace(STRONG, warmup_steps=8))
    confined = run(Composed(rule, begin=0.25, end=0.75), steps)
    text = [e.text for e in steps]
    state, params, inside = rule.init(steps[0].text), rule.params(STEPS, 2), []
    for i in range(5, 15):
        eps_hat, state = rule(steps[i], state, i, params)
        inside.append(eps_hat)
    assert_close(confined, torch.stack([*text[:5], *inside, *text[15:]]), **EXACT)


RULES: dict[str, Guidance] = {
    "sld": SafeLatentGuidance(WEAK),
    "concepts": SafeLatentConcepts.alike(["a", "b"], MAX, "select"),
    "sega": SEGA.safety("max", ["a", "b"]),
    "perp-neg": PerpNeg((Negative(text="a"), Negative(text="b"))),
    "dynamic": DynamicNegativeGuidance("a"),
}


def rows_for(rule: Guidance, dtype: torch.dtype = torch.float64):
    steps = concept_rows(len(rule.conditions) - 2, dtype=dtype)
    return one_concept(steps) if "safety" in rule.conditions else steps


@pytest.mark.parametrize("name", RULES)
def test_an_idle_row_may_hold_anything(name: str):
    """Killed by: the unconditional row kept in place of the text's, states in another order than their owners."""
    rule = Composed(RULES[name], (APG(), Rescale()), begin=0.2, end=0.7)
    steps = rows_for(rule)
    swapped = []
    for i, e in enumerate(steps):
        rows = dict(
            zip(rule.conditions, torch.cat([e.uncond, e.text, *others(e)]).chunk(len(rule.conditions)), strict=True)
        )
        idle = rule.idle(i, STEPS)
        swapped.append(rule.named([rows["text"] if c in idle else row for c, row in rows.items()]))
    assert_close(run(rule, swapped), run(rule, steps), **EXACT)
    assert rule.idle(3, STEPS) == rule.idle(14, STEPS) == set(rule.conditions) - {"text"}
    assert rule.idle(10, STEPS) == RULES[name].idle(10, STEPS)


def others(rows) -> list[Tensor]:
    """The rows beside uncond and text."""
    last = rows[-1]
    return [last] if isinstance(last, Tensor) else list(last)


# --- compositions


@pytest.mark.parametrize("name", RULES)
def test_every_rule_takes_every_afterwards_in_order(name: str):
    """The parts by hand, one after the other."""
    rule, first, second = RULES[name], Rescale(0.7), APG(0.2, 4.0, -0.5)
    steps = rows_for(rule)
    running = first.init(steps[0].text), second.init(steps[0].text)
    expected = []
    for eps_hat, rows in zip(run(rule, steps), steps, strict=True):
        after, _ = first(eps_hat, rows.text, running[0], first.params(None, torch.float64))
        after, update = second(after, rows.text, running[1], second.params(None, torch.float64))
        running = running[0], update
        expected.append(after)
    assert_close(run(Composed(rule, (first, second)), steps), torch.stack(expected), **EXACT)
    assert (run(Composed(rule, (second, first)), steps) - torch.stack(expected)).abs().max() > 0.01


def test_compositions_nest():
    steps = one_concept(concept_rows(1))
    rule = SafeLatentGuidance(STRONG)
    nested = Composed(Composed(rule, (Rescale(),)), (APG(),))
    assert_close(run(nested, steps), run(Composed(rule, (Rescale(), APG())), steps), **EXACT)


@pytest.mark.parametrize("name", RULES)
def test_a_composition_has_the_conditions_and_texts_of_its_rule(name: str):
    composed = Composed(RULES[name], (Rescale(),))
    assert composed.conditions == RULES[name].conditions
    assert composed.texts == RULES[name].texts


@pytest.mark.parametrize(("i", "moves"), [(3, False), (10, True)])
def test_the_rule_learns_of_moves_inside_the_interval_alone(i: int, moves: bool):
    """Killed by: moves told outside the interval."""
    rule = DynamicNegativeGuidance("a")
    composed = Composed(rule, (APG(),), begin=0.25)
    rows = concept_rows(1)[i]
    a, b = (Level.of(torch.tensor(alpha_bar, dtype=torch.float64)) for alpha_bar in (0.5, 0.6))
    params = composed.params(STEPS, 2, dtype=torch.float64)
    state = composed.moved(rows, composed.init(rows.text), i, rows.text, rows.uncond, a, b, params)
    alone = rule.moved(rows, rule.init(rows.text), i, rows.text, rows.uncond, a, b, params.rule)
    assert_close(state.rule, alone if moves else rule.init(rows.text), **EXACT)
    assert alone.log_ratio.any()


def test_settings_per_image_equal_separate_runs():
    steps = concept_rows(1, batch=2, dtype=torch.float32)
    rules = [
        Composed(SEGA.safety("strong", ["a"]), (Rescale(0.3), APG(0.1, 3.0, 0.2)), begin=0.2),
        Composed(SEGA.safety("max", ["a"]), (Rescale(0.9), APG(0.9, 1.0, -0.4)), end=0.6),
    ]
    together = run_each(rules, steps)
    for k, alone in enumerate(rules):
        assert_close(together[:, k : k + 1], run(alone, images(steps, slice(k, k + 1))), **EXACT)


# --- combinations that are refused


def test_there_is_nothing_to_change_where_nothing_guides():
    with pytest.raises(ValueError, match="there is no guidance to change"):
        Composed(Unguided(), (Rescale(),))


def test_the_same_afterwards_twice_is_refused():
    with pytest.raises(ValueError, match="Rescale stands twice"):
        Composed(CFG, (Rescale(0.2), APG(), Rescale(0.7)))


def test_an_empty_interval_is_refused():
    with pytest.raises(ValueError, match="is empty: nothing would ever act"):
        Composed(CFG, begin=0.5, end=0.5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Rescale(1.5), "Rescale: phi must be in"),
        (lambda: APG(eta=math.inf), "APG: eta must be a finite number"),
        (lambda: APG(threshold=0.0), "APG: threshold must be above 0"),
        (lambda: APG(momentum=1.0), "APG: momentum must be in"),
        (lambda: Composed(CFG, begin=1.0), "Composed: begin must be in"),
        (lambda: Composed(CFG, end=0.0), "Composed: end must be in"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(make, message: str):
    with pytest.raises(ValueError, match=message):
        make()
