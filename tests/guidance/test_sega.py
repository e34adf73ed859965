"""SEGA, live against diffusers' SemanticStableDiffusionPipeline and against a scalar oracle.

Mutants that failed here: no sign, <= for < at the threshold, 1 - lambda for lambda, one quantile for all channels, >
for >= in warm-up and cool-down, weights ignored, or not shared out among warm concepts, 0 / 0 where all of these have
cooled, all acting as soon as one is warm, momentum folded before it is added, the concepts scaled by s_g too.
"""

import math
from dataclasses import replace

import pytest
import torch
from conftest import ALGORITHM, EXACT, NETWORK
from diffusers.pipelines.deprecated.semantic_stable_diffusion import SemanticStableDiffusionPipeline
from guided import STEPS, concept_rows, contrast, images, run, run_each
from reference import SCHEDULERS, safe_pipeline
from torch.testing import assert_close

import sld
from sld.guidance import SEGA, SEGA_SAFETY, ClassifierFreeGuidance, Edit
from sld.guidance.quantiles import channel_quantile
from sld.samplers import make_sampler
from sld.testbed.vocabulary import write_tokenizer

PROMPTS = ["a fox in a dark alley", "the beach"]
AWAY, TOWARDS = "a knife", "a blue ball"
STEPS_LIVE = 12  # more than any warm-up or cool-down below

# --- live


@pytest.fixture(scope="module")
def pipes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference")
    write_tokenizer(folder / "words")
    safe = safe_pipeline(folder / "words")
    safe.save_pretrained(folder / "model")
    parts = (safe.vae, safe.text_encoder, safe.tokenizer, safe.unet, safe.scheduler)
    semantic = SemanticStableDiffusionPipeline(*parts, None, None, requires_safety_checker=False)
    semantic.set_progress_bar_config(disable=True)
    return semantic, sld.load(folder / "model")


def reference_latents(pipe, rule: SEGA, sampler: str, steps: int) -> list[torch.Tensor]:
    latents: list[torch.Tensor] = []
    pipe.scheduler = SCHEDULERS[sampler]()
    given = {}
    if rule.concepts:
        given = {
            "editing_prompt": [c.text for c in rule.concepts],
            "reverse_editing_direction": [c.direction == "away" for c in rule.concepts],
            "edit_guidance_scale": [c.scale for c in rule.concepts],
            "edit_warmup_steps": [c.warmup_steps for c in rule.concepts],
            "edit_cooldown_steps": [1000 if c.cooldown_steps is None else c.cooldown_steps for c in rule.concepts],
            "edit_threshold": [c.threshold for c in rule.concepts],
            "edit_weights": [c.weight for c in rule.concepts],
        }
    pipe(
        PROMPTS,
        height=16,
        width=16,
        num_inference_steps=steps,
        guidance_scale=rule.guidance_scale,
        generator=[torch.Generator().manual_seed(seed) for seed in (7, 3)],
        output_type="latent",
        callback=lambda i, t, x: latents.append(x.clone()),
        edit_momentum_scale=rule.momentum_scale,
        edit_mom_beta=rule.momentum_beta,
        **given,
    )
    return latents


def our_latents(pipe, rule: SEGA, sampler: str, steps: int) -> list[torch.Tensor]:
    states = pipe.sample(PROMPTS, [7, 3], sampler=make_sampler(sampler, pipe.schedule, steps), guidance=rule, size=16)
    return [state.x for state in states][1:]


TWO = SEGA(
    (Edit(text=AWAY, warmup_steps=3), Edit(text=TOWARDS, direction="towards", scale=4, threshold=0.7, warmup_steps=6)),
    momentum_scale=0.3,
    momentum_beta=0.6,
)
LIVE = {
    "nothing": SEGA(),
    "strong": SEGA.safety("strong", [AWAY]),
    "max": SEGA.safety("max", [AWAY]),
    "two": TWO,
    "cooled": replace(TWO, concepts=(replace(TWO.concepts[0], cooldown_steps=9), TWO.concepts[1])),
}
WEIGHTED = replace(TWO, concepts=(replace(TWO.concepts[0], weight=0.3), replace(TWO.concepts[1], weight=1.7)))


@pytest.mark.parametrize(("name", "sampler"), [*((name, "pndm") for name in LIVE), ("two", "ddim")])
def test_latents_of_every_step_equal_the_reference_bit_for_bit(pipes, name: str, sampler: str):
    semantic, ours = pipes
    expected = reference_latents(semantic, LIVE[name], sampler, STEPS_LIVE)
    got = our_latents(ours, LIVE[name], sampler, STEPS_LIVE)
    assert len(got) == len(expected) == STEPS_LIVE + (sampler == "pndm")
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b)


def test_with_weights_the_reference_is_met_within_rounding(pipes):
    """Its weighted sum is a matrix product, which may fuse; here and today the bits are the same."""
    semantic, ours = pipes
    expected = reference_latents(semantic, WEIGHTED, "ddim", STEPS_LIVE)
    got = our_latents(ours, WEIGHTED, "ddim", STEPS_LIVE)
    assert_close(torch.stack(got), torch.stack(expected), **NETWORK)
    assert (got[-1] - our_latents(ours, TWO, "ddim", STEPS_LIVE)[-1]).abs().max() > 0.01


# --- the equations


def element_quantile(values: list[float], q: float) -> float:
    ordered, rank = sorted(values), q * (len(values) - 1)
    low = math.floor(rank)
    return ordered[low] + (rank - low) * (ordered[math.ceil(rank)] - ordered[low])


def oracle(rule: SEGA, steps) -> list[list[float]]:
    """Guided predictions of one image, from the definitions, channel by channel."""
    channels, nu, guided = steps[0].text.shape[1], [0.0] * steps[0].text.numel(), []
    for i, rows in enumerate(steps):
        e0, ep = rows.uncond.flatten().tolist(), rows.text.flatten().tolist()
        places, size = range(len(e0)), len(e0) // channels
        edits, weights, warm = [], [], []
        for c, e in zip(rule.concepts, rows.concepts, strict=True):
            sign = -1 if c.direction == "away" else 1
            d = [sign * c.scale * (b - a) for a, b in zip(e0, e.flatten().tolist(), strict=True)]
            for k in range(0, len(d), size):
                bound = element_quantile([abs(x) for x in d[k : k + size]], c.threshold)
                d[k : k + size] = [x if abs(x) >= bound else 0.0 for x in d[k : k + size]]
            edits.append(d)
            weights.append(0.0 if c.cooldown_steps is not None and i >= c.cooldown_steps else c.weight)
            warm.append(i >= c.warmup_steps)
        g = [math.fsum(w * d[n] for w, d in zip(weights, edits, strict=True)) for n in places]
        g = [x + rule.momentum_scale * y for x, y in zip(g, nu, strict=True)]
        nu = [rule.momentum_beta * y + (1 - rule.momentum_beta) * x for x, y in zip(g, nu, strict=True)]
        if not all(warm):
            share = math.fsum(w for w, on in zip(weights, warm, strict=True) if on)
            g = [
                math.fsum(w / share * d[n] for w, d, on in zip(weights, edits, warm, strict=True) if on and w)
                for n in places
            ]
        guided.append([a + rule.guidance_scale * (b - a) + x for a, b, x in zip(e0, ep, g, strict=True)])
    return guided


THREE = SEGA(
    (
        Edit(text="a", scale=3.0, threshold=0.4, warmup_steps=2, cooldown_steps=14, weight=0.5),
        Edit(text="b", direction="towards", scale=4.0, threshold=0.77, warmup_steps=5, weight=2.0),
        Edit(text="c", threshold=0.0, warmup_steps=8),
    ),
    momentum_scale=0.4,
    momentum_beta=0.7,
    guidance_scale=5.0,
)


def test_a_run_equals_the_scalar_oracle():
    steps = concept_rows(3)
    guided = run(THREE, steps)
    for k in range(2):
        expected = oracle(THREE, images(steps, slice(k, k + 1)))
        assert_close(guided[:, k].flatten(1), torch.tensor(expected, dtype=torch.float64), **ALGORITHM)


@pytest.mark.parametrize("q", [0.0, 0.333, 0.75, 0.85, 0.9, 0.99, 1.0])
def test_the_quantile_has_the_bits_of_torch(q: float):
    x = concept_rows(0, dtype=torch.float32, steps=1)[0].text.abs()
    expected = torch.quantile(x.flatten(2), q, dim=2)
    assert_close(channel_quantile(x, torch.tensor(q)).flatten(1), expected, **EXACT)


# --- reductions


def test_without_a_concept_it_is_classifier_free_guidance_bit_for_bit():
    steps = concept_rows(0, dtype=torch.float32)
    assert_close(run(SEGA(), steps), run(ClassifierFreeGuidance(7.5), contrast(steps)), **EXACT)


@pytest.mark.parametrize("change", [{"weight": 0.0}, {"scale": 0.0}, {"cooldown_steps": 0}, {"warmup_steps": STEPS}])
def test_a_concept_that_is_left_out_changes_nothing(change: dict[str, float]):
    steps = concept_rows(1, dtype=torch.float32)
    rule = SEGA((Edit(text="a", **change),))
    assert_close(run(rule, steps), run(ClassifierFreeGuidance(7.5), contrast(steps)), **EXACT)


def test_towards_and_away_mirror_each_other():
    steps = concept_rows(1)
    away, towards = (run(SEGA((Edit(text="a", direction=d),)), steps) for d in ("away", "towards"))
    plain = run(ClassifierFreeGuidance(7.5), contrast(steps))
    assert_close(away - plain, plain - towards, **ALGORITHM)
    assert (away - plain).abs().max() > 0.1


def test_a_cooled_concept_beside_a_cold_one_adds_nothing():
    """The reference divides 0 by 0 here."""
    rule = SEGA((Edit(text="a", warmup_steps=0, cooldown_steps=3), Edit(text="b", warmup_steps=10)))
    steps = concept_rows(2)
    plain = run(ClassifierFreeGuidance(7.5), contrast(steps))
    assert_close(run(rule, steps)[3:10], plain[3:10], **ALGORITHM)


# --- batches, rows


def test_settings_per_image_equal_separate_runs():
    steps = concept_rows(1, batch=3, dtype=torch.float32)
    rules = [SEGA.safety(name, ["a"]) for name in SEGA_SAFETY]
    together = run_each(rules, steps)
    for k, alone in enumerate(rules):
        assert_close(together[:, k : k + 1], run(alone, images(steps, slice(k, k + 1))), **EXACT)


@pytest.mark.parametrize("momentum", [0.0, 0.4])
def test_an_idle_row_may_hold_anything(momentum: float):
    rule, steps = replace(THREE, momentum_scale=momentum), concept_rows(3)
    idle = [rule.idle(i, STEPS) for i in range(STEPS)]
    swapped = [
        e._replace(concepts=tuple(e.text if f"concept {k}" in out else c for k, c in enumerate(e.concepts)))
        for e, out in zip(steps, idle, strict=True)
    ]
    assert_close(run(rule, swapped), run(rule, steps), **EXACT)
    expected = [{"concept 0"}] if momentum else [{"concept 0"}, {"concept 1", "concept 2"}]
    assert all(any(out >= names for out in idle) for names in expected)


def test_nan_stays_in_its_channel():
    rule = SEGA.safety("max", ["a"])
    steps = concept_rows(1)
    clean = run(rule, steps)
    steps[12].concepts[0][0, 1, 2, 3] = math.nan
    touched = run(rule, steps)
    assert touched[12, 0, 1, 2, 3].isnan()
    touched[:, 0, 1] = clean[:, 0, 1]
    assert_close(touched, clean, **EXACT)


# --- settings


def test_safety_settings_are_those_of_the_paper():
    assert {name: tuple(setting) for name, setting in SEGA_SAFETY.items()} == {
        "medium": (4, 0.9, 10, 0.3),
        "strong": (7, 0.85, 5, 0.5),
        "max": (10, 0.75, 0, 0.5),
    }


def test_a_safety_setting_is_a_rule_that_goes_away():
    rule = SEGA.safety("strong", ["a", "b"], guidance_scale=5.0)
    edits = tuple(Edit(text=t, direction="away", scale=7, threshold=0.85, warmup_steps=5) for t in ("a", "b"))
    assert rule == SEGA(edits, momentum_scale=0.5, guidance_scale=5.0)


@pytest.mark.parametrize(
    ("field", "value"),
    [("scale", -1.0), ("threshold", 1.5), ("warmup_steps", -1), ("cooldown_steps", 2.5), ("weight", math.nan)],
)
def test_a_value_out_of_range_is_refused_by_name(field: str, value: float):
    with pytest.raises(ValueError, match=f"Edit: {field} must be .*; got {value!r}"):
        Edit(text="a", **{field: value})


def test_an_unknown_direction_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'away'"):
        Edit(text="a", direction="awya")  # type: ignore[arg-type]
