import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from conftest import ALGORITHM, EXACT
from oracles import sld_run
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.testing import assert_close

from sld.guidance import (
    DEFAULT_CONCEPT,
    DIFFUSERS_CONCEPT,
    MAX,
    MEDIUM,
    OFF,
    PRESETS,
    STRONG,
    WEAK,
    CFGPredictions,
    ClassifierFreeGuidance,
    Predictions,
    SafeLatentGuidance,
    SLDConfig,
    guidance_for,
    preset,
    safe_latent_guidance,
    safety_mask,
)

STEPS = 20  # more than the longest warm-up, Weak's 15

# Presets saturate the clamp; this one leaves most elements inside it.
SOFT = SLDConfig(
    safety_scale=3.0, threshold=0.3, momentum_scale=0.4, momentum_beta=0.6, warmup_steps=5, guidance_scale=5.0
)
ALL = {**PRESETS, "soft": SOFT}


def predictions(batch: int = 2, dtype: torch.dtype = torch.float32, seed: int = 0) -> Iterator[Predictions]:
    """Rows that change at every evaluation, with gaps on both sides of every threshold."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(STEPS):
        uncond, text, safety = torch.randn(3, batch, 4, 4, 4, generator=generator, dtype=torch.float64).to(dtype)
        yield Predictions(uncond, text, safety)


def run(rule: SafeLatentGuidance, steps: list[Predictions]) -> Tensor:
    """Guided predictions (steps, b, c, h, w), momentum carried from one to the next."""
    x = steps[0].text
    state, params, guided = rule.init(x), rule.params(len(steps), len(x), dtype=x.dtype), []
    for i, rows in enumerate(steps):
        eps_hat, state = rule(rows, state, torch.tensor(i), params)
        guided.append(eps_hat)
    return torch.stack(guided)


def run_cfg(steps: list[Predictions], scale: float = 7.5) -> Tensor:
    rule = ClassifierFreeGuidance(scale)
    state, params = rule.init(steps[0].text), rule.params(len(steps), len(steps[0].text), dtype=steps[0].text.dtype)
    return torch.stack([rule(CFGPredictions(e.uncond, e.text), state, i, params)[0] for i, e in enumerate(steps)])


def constant(uncond: float, text: float, safety: float) -> list[Predictions]:
    return [Predictions(*torch.tensor([[uncond], [text], [safety]], dtype=torch.float64).view(3, 1, 1, 1, 1))] * 200


# --- the equations


@pytest.mark.parametrize("name", ALL)
def test_a_run_equals_the_scalar_oracle(name: str):
    """Killed by: uncond and text swapped, uncond and safety swapped, > for >= in the mask, the gap turned around or
    made absolute, min for max in the clamp, no clamp, no warm-up, > for >= in the warm-up, momentum frozen in warm-up,
    folded before gamma takes it in, or folded with swapped weights, gamma added, and classifier-free guidance alone.
    """
    steps = list(predictions(dtype=torch.float64))
    for rows in steps:
        rows.safety[:, 0] = 0
        rows.text[:, 0] = ALL[name].threshold  # the gap is the threshold itself: off
    expected = sld_run([tuple(row.flatten().tolist() for row in rows) for rows in steps], ALL[name])
    guided = run(SafeLatentGuidance(ALL[name]), steps)
    assert_close(guided.flatten(1), torch.tensor(expected, dtype=torch.float64), **ALGORITHM)


@pytest.mark.parametrize("name", ALL)
def test_a_run_equals_diffusers_bit_for_bit(name: str):
    """The arithmetic of diffusers' loop, which stands a second time in a method that nobody calls. That method takes
    its rows as text, uncond, safety, and is given them so.
    """
    safe = pytest.importorskip("diffusers.pipelines.deprecated.stable_diffusion_safe.pipeline_stable_diffusion_safe")
    c, nu, expected, steps = ALL[name], None, [], list(predictions())
    for i, (uncond, text, safety) in enumerate(steps):
        guidance, nu = safe.StableDiffusionPipelineSafe.perform_safety_guidance(
            None,
            True,
            nu,
            text - uncond,
            (text, uncond, safety),
            i,
            c.safety_scale,
            c.warmup_steps,
            c.threshold,
            c.momentum_scale,
            c.momentum_beta,
        )
        expected.append(uncond + c.guidance_scale * guidance)
    assert_close(run(SafeLatentGuidance(c), steps), torch.stack(expected), **EXACT)


def test_conditions_are_named_in_the_order_of_the_rows():
    assert SafeLatentGuidance(STRONG).conditions == ("uncond", "text", "safety")


def test_arguments_are_left_as_they_were():
    rows = next(predictions())
    before, momentum = [row.clone() for row in rows], torch.ones_like(rows.text)
    safe_latent_guidance(rows, momentum, 10, STRONG.params(50))
    assert all(torch.equal(row, old) for row, old in zip(rows, before, strict=True))
    assert torch.equal(momentum, torch.ones_like(momentum))


def test_the_index_may_be_a_python_int():
    rows, p = next(predictions()), STRONG.params(50)
    momentum = torch.ones_like(rows.text)
    for i in (6, 7):
        as_int = safe_latent_guidance(rows, momentum, i, p)
        as_tensor = safe_latent_guidance(rows, momentum, torch.tensor(i), p)
        assert_close(as_int, as_tensor, **EXACT)


@pytest.mark.parametrize("name", ALL)
def test_a_saved_state_goes_on_bit_for_bit(name: str):
    rule, steps = SafeLatentGuidance(ALL[name]), list(predictions())
    state, params = rule.init(steps[0].text), rule.params(STEPS, 2)
    for i, rows in enumerate(steps[:9]):
        _, state = rule(rows, state, i, params)
    saved = {field: value.clone() for field, value in state._asdict().items()}
    resumed, rest = type(state)(**saved), []
    for i, rows in enumerate(steps[9:], start=9):
        eps_hat, resumed = rule(rows, resumed, i, params)
        rest.append(eps_hat)
    assert_close(torch.stack(rest), run(rule, steps)[9:], **EXACT)


# --- batches


def test_configs_per_image_equal_separate_runs():
    configs, steps = (OFF, *ALL.values()), list(predictions(batch=6))
    together = run(SafeLatentGuidance(configs), steps)
    for k, config in enumerate(configs):
        alone = run(SafeLatentGuidance(config), [Predictions(*(row[k : k + 1] for row in e)) for e in steps])
        assert_close(together[:, k : k + 1], alone, **EXACT)


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 5])
def test_an_image_is_the_same_in_any_batch(batch: int):
    steps = list(predictions(batch=5))
    whole = run(SafeLatentGuidance(STRONG), steps)
    part = run(SafeLatentGuidance(STRONG), [Predictions(*(row[:batch] for row in e)) for e in steps])
    assert_close(part, whole[:, :batch], **EXACT)


def test_configs_for_another_number_of_images_are_refused():
    with pytest.raises(ValueError, match="settings for 2 images, the batch has 1"):
        SafeLatentGuidance((WEAK, MAX)).params(50, 1)


# --- facts that follow from the equations


def test_off_is_classifier_free_guidance_bit_for_bit():
    steps = list(predictions())
    assert_close(run(SafeLatentGuidance(OFF), steps), run_cfg(steps), **EXACT)


@pytest.mark.parametrize("config", ALL.values(), ids=ALL)
def test_a_safety_concept_equal_to_the_text_changes_nothing(config: SLDConfig):
    steps = [e._replace(safety=e.text) for e in predictions()]
    assert_close(run(SafeLatentGuidance(config), steps), run_cfg(steps, config.guidance_scale), **EXACT)


@pytest.mark.parametrize("config", ALL.values(), ids=ALL)
def test_a_safety_concept_without_effect_changes_nothing(config: SLDConfig):
    steps = [e._replace(safety=e.uncond) for e in predictions()]
    assert_close(run(SafeLatentGuidance(config), steps), run_cfg(steps, config.guidance_scale), **EXACT)


def test_a_threshold_of_minus_infinity_masks_everything():
    steps = list(predictions())
    assert_close(run(SafeLatentGuidance(replace(MAX, threshold=-math.inf)), steps), run_cfg(steps), **EXACT)


def test_weak_with_fifteen_evaluations_is_classifier_free_guidance():
    steps = list(predictions())
    assert_close(run(SafeLatentGuidance(WEAK), steps[:15]), run_cfg(steps[:15]), **EXACT)
    assert not torch.equal(run(SafeLatentGuidance(WEAK), steps[:16]), run_cfg(steps[:16]))


@pytest.mark.parametrize("config", [MEDIUM, STRONG])
def test_the_warmup_ends_at_its_own_index(config: SLDConfig):
    steps, delta = list(predictions()), config.warmup_steps
    differs = (run(SafeLatentGuidance(config), steps) != run_cfg(steps)).flatten(1).any(dim=1)
    assert differs.tolist() == [False] * delta + [True] * (STEPS - delta)


def test_momentum_gathers_during_the_warmup():
    rule, rows = SafeLatentGuidance(STRONG), next(predictions())
    _, state = rule(rows, rule.init(rows.text), 0, rule.params(50, 2))
    assert state.nu.any()


@pytest.mark.parametrize("config", [MEDIUM, STRONG, MAX])
def test_momentum_approaches_its_limit_at_the_rate_of_its_pole(config: SLDConfig):
    steps = constant(uncond=0.0, text=-1.0, safety=1.0)  # mu = 1, a raw term of 1
    pole = config.momentum_beta + (1 - config.momentum_beta) * config.momentum_scale
    k = torch.arange(len(steps), dtype=torch.float64)
    nu = (1 - pole**k) / (1 - config.momentum_scale)
    gamma = -1 - run(SafeLatentGuidance(replace(config, warmup_steps=0)), steps).flatten() / config.guidance_scale
    assert_close(gamma, 1 + config.momentum_scale * nu, **ALGORITHM)
    assert gamma[-1] == pytest.approx(1 / (1 - config.momentum_scale))


@pytest.mark.parametrize("config", PRESETS.values(), ids=PRESETS)
def test_the_mask_of_a_preset_is_open_or_shut_beyond_the_inverse_of_its_scale(config: SLDConfig):
    rows = next(predictions())
    gap = rows.text - rows.safety
    far = gap.abs() > 1 / config.safety_scale
    assert far.any()
    assert torch.equal(safety_mask(rows, config.params(50))[far], (gap < config.threshold).float()[far])


def test_max_still_masks_gaps_of_one_and_more():
    gap = torch.tensor([0.5, 0.999, 1.0, 1.5])
    assert safety_mask(Predictions(gap, gap, torch.zeros(4)), MAX.params(50)).tolist() == [1, 1, 0, 0]


def test_a_negative_prompt_changes_the_safety_term_too():
    rows = next(predictions(dtype=torch.float64))
    other, p = rows._replace(uncond=rows.uncond + 1), replace(MAX, guidance_scale=1.0).params(50, dtype=torch.float64)
    here, there = (safe_latent_guidance(e, torch.zeros_like(e.text), 0, p)[0] for e in (rows, other))
    assert_close(there - here, safety_mask(rows, p), **ALGORITHM)  # classifier-free guidance at scale 1 ignores uncond


def test_a_gap_that_overflows_half_precision_saturates():
    gap = torch.full((1, 1, 1, 1), -100.0, dtype=torch.half)
    zero, p = torch.zeros_like(gap), MAX.params(50)
    assert (gap * p.safety_scale).isinf()
    assert safety_mask(Predictions(zero, gap, zero), p) == 1


@pytest.mark.parametrize("row", Predictions._fields)
def test_nan_stays_where_it_is_and_stays_nan(row: str):
    steps = list(predictions())
    clean = run(SafeLatentGuidance(STRONG), steps)
    getattr(steps[12], row)[0, 1, 2, 3] = math.nan
    touched = run(SafeLatentGuidance(STRONG), steps)
    assert touched[12:, 0, 1, 2, 3].isnan().all()  # momentum remembers it
    touched[12:, 0, 1, 2, 3] = clean[12:, 0, 1, 2, 3]
    assert_close(touched, clean, **EXACT)


def test_on_v_predictions_cfg_commutes_with_the_conversion_and_sld_does_not():
    v, alpha_bar = next(predictions(dtype=torch.float64)), 0.3
    x = next(predictions(dtype=torch.float64, seed=1)).text

    def to_eps(v: Tensor) -> Tensor:
        return alpha_bar**0.5 * v + (1 - alpha_bar) ** 0.5 * x

    eps = Predictions(*map(to_eps, v))
    assert_close(to_eps(run_cfg([v])[0]), run_cfg([eps])[0], **ALGORITHM)
    rule = SafeLatentGuidance(replace(SOFT, warmup_steps=0))
    assert (to_eps(run(rule, [v])[0]) - run(rule, [eps])[0]).abs().max() > 0.1


# --- the compiler


def test_one_compiled_graph_serves_every_preset_and_step_bit_for_bit():
    torch.compiler.reset()
    counter = CompileCounterWithBackend("inductor")
    compiled = torch.compile(safe_latent_guidance, fullgraph=True, backend=counter)
    steps = list(predictions())
    for config in (OFF, *ALL.values()):
        assert_close(
            run(SafeLatentGuidance(config, reading=compiled), steps), run(SafeLatentGuidance(config), steps), **EXACT
        )
    assert counter.frame_count == 1


# --- configurations


def test_presets_are_those_of_the_paper():
    table = {
        name: (c.warmup_steps, c.safety_scale, c.threshold, c.momentum_scale, c.momentum_beta)
        for name, c in PRESETS.items()
    }
    assert table == {
        "weak": (15, 200, 0.0, 0.0, 0.0),
        "medium": (10, 1000, 0.01, 0.3, 0.4),
        "strong": (7, 2000, 0.025, 0.5, 0.7),
        "max": (0, 5000, 1.0, 0.5, 0.7),
    }
    assert {(c.guidance_scale, c.warmup_fraction) for c in PRESETS.values()} == {(7.5, None)}


def test_the_default_concept_is_that_of_the_paper():
    assert DEFAULT_CONCEPT == (
        "hate, harassment, violence, suffering, humiliation, harm, suicide, sexual, nudity, bodily fluids, blood, "
        "obscene gestures, illegal activity, drug use, theft, vandalism, weapons, child abuse, brutality, cruelty"
    )
    assert DIFFUSERS_CONCEPT == "an image showing " + DEFAULT_CONCEPT


def test_a_preset_is_found_by_its_name():
    assert [preset(name) for name in ("off", "weak", "medium", "strong", "max")] == [OFF, WEAK, MEDIUM, STRONG, MAX]


@pytest.mark.parametrize(("name", "near"), [("storng", "strong"), ("Medium", "medium"), ("offf", "off")])
def test_an_unknown_preset_gets_a_suggestion(name: str, near: str):
    with pytest.raises(ValueError, match=f"no SLD preset '{name}'.* did you mean '{near}'"):
        preset(name)


def test_an_unknown_preset_like_none_gets_the_list():
    with pytest.raises(ValueError, match=r"there are off, weak, medium, strong, max$"):
        preset("qqq")


@pytest.mark.parametrize("choice", ["off", OFF])
def test_off_needs_no_safety_row(choice: str | SLDConfig):
    assert guidance_for(choice, guidance_scale=9.0) == ClassifierFreeGuidance(9.0)


@pytest.mark.parametrize("choice", ["strong", STRONG])
def test_a_guidance_scale_takes_the_place_of_the_presets(choice: str | SLDConfig):
    assert guidance_for(choice) == SafeLatentGuidance(STRONG)
    assert guidance_for(choice, guidance_scale=9.0) == SafeLatentGuidance(replace(STRONG, guidance_scale=9.0))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("guidance_scale", bad) for bad in (-0.1, math.inf, math.nan, True, "7.5")),
        *(("safety_scale", bad) for bad in (-1, math.inf, math.nan, True, None)),
        *(("threshold", bad) for bad in (math.nan, False, "0")),
        *(("momentum_scale", bad) for bad in (-0.1, 1.1, math.nan, True)),
        *(("momentum_beta", bad) for bad in (-0.1, 1.0, math.nan, False)),
        *(("warmup_steps", bad) for bad in (-1, 7.0, 0.2, math.nan, True, None)),
        *(("warmup_fraction", bad) for bad in (-0.1, 1.1, math.nan, True)),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(field: str, value: object):
    with pytest.raises(ValueError, match=f"SLDConfig: {field} must be .*; got {value!r}"):
        replace(STRONG, **{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("guidance_scale", 0),
        ("safety_scale", 0),
        ("threshold", -math.inf),
        ("threshold", math.inf),
        ("momentum_scale", 1),
        ("momentum_beta", 0),
        ("warmup_steps", 0),
        ("warmup_fraction", 0),
        ("warmup_fraction", 1),
    ],
)
def test_the_ends_of_a_range_are_accepted(field: str, value: float):
    assert getattr(replace(STRONG, **{field: value}), field) == value


def test_a_warmup_fraction_takes_the_place_of_the_steps():
    config = replace(STRONG, warmup_fraction=0.14)
    assert [config.warmup(steps) for steps in (10, 50, 51, 100)] == [2, 7, 8, 14]
    assert config.params(100).warmup_steps == 14
    assert replace(config, warmup_fraction=None).warmup(100) == 7


def test_a_warmup_fraction_of_a_whole_number_of_steps_is_that_number():
    wrong = [
        (k, n) for n in range(1, 61) for k in range(n + 1) if replace(STRONG, warmup_fraction=k / n).warmup(n) != k
    ]
    assert not wrong
