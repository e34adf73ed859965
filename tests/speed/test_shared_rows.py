"""Rows of equal latents under equal texts are computed once: which these are, and that nothing changes by it."""

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import EXACT
from torch.testing import assert_close

import sld
from sld.guidance import (
    MAX,
    MEDIUM,
    OFF,
    READINGS,
    STRONG,
    WEAK,
    ClassifierFreeGuidance,
    Momentum,
    SafeLatentGuidance,
    preset,
)
from sld.samplers import DDIM, PNDM, make_sampler
from sld.speed.rows import Rows, count, plan

PRESETS = ("off", "weak", "medium", "strong", "max")


@pytest.fixture(scope="module")
def pipe():
    return sld.load(numerics="invariant")


def last(pipe, *args, **kwargs):
    *_, state = pipe.sample(*args, **kwargs)
    return state.x


def short(*configs):
    """The configs with a third of their warm-up, for runs of few steps."""
    return tuple(replace(config, warmup_steps=config.warmup_steps // 3) for config in configs)


SHORT = short(*map(preset, PRESETS))


# ------------------------------------------------------------------------------------------------------------ the plan


def rows_of(*args):
    """For every evaluation the pairs of image and text that each row of the rule gets, and those computed."""
    guidance, texts, starts, evaluations, most = args
    for phase in plan(guidance, texts, starts, evaluations, most):
        made = [
            (call.images[place % len(call.images)], texts[row])
            for call in phase.calls
            for place, row in enumerate(call.texts)
        ]
        for i in phase.evaluations:
            yield i, [made[place] for place in phase.order], made


@pytest.mark.parametrize("most", [None, 1, 2])
def test_every_row_that_matters_is_its_own_text_under_latents_equal_to_its_own(most):
    """Mutants: a common start one evaluation longer or shorter; a key without prompts, without the rule's."""
    configs = [OFF, WEAK, MEDIUM, STRONG, MAX, replace(STRONG, guidance_scale=3.0), STRONG]
    prompts = ["a", "a", "a", "a", "a", "a", "b"]
    concepts = ["S", "S", "S", "T", "S", "S", "S"]
    b, n, guidance = len(configs), 50, SafeLatentGuidance(tuple(configs))
    texts = [""] * b + prompts + concepts
    latents = []
    for i, got, made in rows_of(guidance, texts, ["z"] * b, n, most):
        assert len(set(made)) == len(made)
        for place, (image, text) in enumerate(got):
            condition, k = divmod(place, b)
            config = configs[k]
            idle = config.safety_scale == 0 or (config.momentum_scale == 0 and i < config.warmup(n))
            assert (condition == 2 and idle) or text == texts[place]
            untouched = [i <= (n if configs[j].safety_scale == 0 else configs[j].warmup(n)) for j in (image, k)]
            alike = prompts[image] == prompts[k] and configs[image].guidance_scale == config.guidance_scale
            assert image == k or (all(untouched) and alike)
        latents.append(len({image for image, _ in made}))
    assert len(latents) == n
    assert latents[0] == 3  # of the five presets, of another scale, of another prompt
    assert [latents[i] for i in (1, 7, 8, 10, 11, 15, 16, 49)] == [4, 4, 5, 5, 6, 6, 7, 7]


def latents_of(configs):
    """Latents that go through the network in 50 evaluations of one prompt and seed."""
    texts = [""] * len(configs) + ["a"] * len(configs) + ["S"] * len(configs)
    phases = plan(SafeLatentGuidance(tuple(configs)), texts, ["z"] * len(configs), 50)
    return sum(len(phase.evaluations) * sum(len(call.images) for call in phase.calls) for phase in phases)


def test_presets_share_their_warm_up():
    """214 of 250 latents remain of off, Weak, Medium, Strong and Max: until delta they are equal, and at delta, where
    guidance parts, the network still sees equal ones. 14 % are saved."""
    assert latents_of(list(map(preset, PRESETS))) == 214


def test_a_sweep_of_ten_warm_ups_saves_a_quarter():
    """The shipped one: 402 of 550 latents with off, 402 of 500 + 50."""
    sweep = tomllib.loads((Path(__file__).parent.parent.parent / "sweeps" / "warmup_steps.toml").read_text())
    (grid,) = sweep["grid"]
    configs = [OFF, *(replace(STRONG, warmup_steps=n) for n in grid["warmup_steps"])]
    assert len(configs) == 11
    assert latents_of(configs) == 402 < 0.75 * 550


def test_images_that_begin_otherwise_share_nothing():
    texts = ["", "", "a", "a", "S", "S"]
    for starts, computed in ((["y", "z"], 300), (["z", "z"], 300 - 3 * 8)):
        assert count(plan(SafeLatentGuidance(STRONG), texts, starts, 50)) == Rows(300, computed)


def test_a_prompt_that_is_empty_is_not_computed_beside_the_empty_text():
    assert count(plan(SafeLatentGuidance(MAX), ["", "", "S"], ["z"], 50)) == Rows(150, 100)


# -------------------------------------------------------------------------------------------------------- equal results


@pytest.mark.parametrize("sampler", ["ddim", "pndm"])
def test_a_batch_of_presets_equals_each_preset_alone(pipe, sampler):
    """Mutants: a common start one evaluation longer; the order of the results reversed."""
    sampler = make_sampler(sampler, pipe.schedule, 7)
    guidance = SafeLatentGuidance(SHORT)
    together = last(pipe, "an owl in a dark alley", 3, sampler=sampler, guidance=guidance, concept=["unsafe"] * 5)
    for k, config in enumerate(SHORT):
        rule = SafeLatentGuidance(config) if config.safety_scale else ClassifierFreeGuidance(7.5)
        alone = last(pipe, "an owl in a dark alley", 3, sampler=sampler, guidance=rule, concept="unsafe")
        assert_close(together[k : k + 1], alone, **EXACT)


@pytest.mark.parametrize("reading", ["clamp as printed", "warm-up without momentum", "warm-up inclusive"])
def test_other_readings_share_their_warm_up_as_well(pipe, reading):
    configs, sampler = short(WEAK, STRONG, MAX), DDIM.leading(pipe.schedule, 8)
    guidance = SafeLatentGuidance(configs, READINGS[reading])
    together = last(pipe, ["an owl"] * 3, 1, sampler=sampler, guidance=guidance)
    for k, config in enumerate(configs):
        alone = last(pipe, "an owl", 1, sampler=sampler, guidance=SafeLatentGuidance(config, READINGS[reading]))
        assert_close(together[k : k + 1], alone, **EXACT)


def test_images_of_one_prompt_with_concepts_of_their_own_share_latents_and_no_more(pipe):
    sampler, guidance = DDIM.leading(pipe.schedule, 5), SafeLatentGuidance(short(STRONG)[0])
    concepts = ["unsafe", "death", "weapons"]
    together = last(pipe, "an owl", 1, sampler=sampler, guidance=guidance, concept=concepts)
    for k, concept in enumerate(concepts):
        alone = last(pipe, "an owl", 1, sampler=sampler, guidance=guidance, concept=concept)
        assert_close(together[k : k + 1], alone, **EXACT)


BATCHES = {"presets": (SHORT, ["a fox"] * 5), "prompts": (short(WEAK)[0], ["", "a", "b", "c", "c"])}
"""Name -> configs and prompts of a batch with something to save."""


@pytest.mark.parametrize("name", BATCHES)
def test_shared_rows_change_no_bit_of_an_image(pipe, name):
    """Beside images that it shares rows with, and alone."""
    (configs, prompts), seeds = BATCHES[name], [0, 0, 1, 2, 2]
    rule, sampler = SafeLatentGuidance(configs), PNDM.leading(pipe.schedule, 6)
    together = last(pipe, prompts, seeds, sampler=sampler, guidance=rule)
    for k in range(5):
        alone = last(pipe, prompts[k], seeds[k], sampler=sampler, guidance=rule.of_image(k))
        assert_close(together[k : k + 1], alone, **EXACT)


def test_going_on_from_a_state_shares_what_is_still_alike(pipe):
    """At every evaluation, within a phase and at its ends. Mutant: a phase begun anew from its first evaluation."""
    sampler, guidance = DDIM.leading(pipe.schedule, 7), SafeLatentGuidance(SHORT)
    states = list(pipe.sample(["a fox"] * 5, 3, sampler=sampler, guidance=guidance))
    for state in states[:-1]:
        *_, end = pipe.sample(["a fox"] * 5, 3, sampler=sampler, guidance=guidance, state=state)
        assert_close(end.x, states[-1].x, **EXACT)


def test_latents_that_differ_are_not_held_for_equal_on_going_on(pipe):
    """Mutant: a start known by its seed alone."""
    run = dict(sampler=DDIM.leading(pipe.schedule, 3), guidance=SafeLatentGuidance(STRONG))
    first, *_ = pipe.sample(["a fox"] * 2, 3, **run)
    x = torch.cat([first.x[:1], first.x[1:] * 1.01])
    ends = last(pipe, ["a fox"] * 2, 3, **run, state=replace(first, x=x))
    for k in range(2):
        own = replace(first, x=x[k : k + 1], guidance=Momentum(first.guidance.nu[k : k + 1]), random=first.random[:1])
        assert_close(ends[k : k + 1], last(pipe, "a fox", 3, **run, state=own), **EXACT)
