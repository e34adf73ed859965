"""What is computed once instead of often changes nothing: each saving by itself, on tiny and on full-width blocks."""

from collections import Counter
from dataclasses import fields, replace
from functools import cache

import pytest
import torch
from conftest import EXACT, NETWORK
from torch.testing import assert_close

import sld
from sld.config import UNetConfig
from sld.guidance import (
    OFF,
    PRESETS,
    STRONG,
    WEAK,
    ClassifierFreeGuidance,
    Predictions,
    SafeLatentGuidance,
    guidance_for,
    safe_latent_guidance,
)
from sld.guidance.readings import clamp_as_printed
from sld.models.unet import UNet
from sld.rows import NO_SAVINGS, RowNetwork, Rows, Savings, plan
from sld.samplers import make_sampler

PROMPTS = ["a fox in a dark alley", "a robot at the beach", "an owl"]
STEPS = 5
BRIEF = replace(WEAK, warmup_steps=3)  # the safety row is idle on three of five evaluations
GUIDANCE = SafeLatentGuidance(BRIEF)
EACH = {f.name: replace(NO_SAVINGS, **{f.name: True}) for f in fields(Savings)} | {"all": Savings()}

# The widths of Stable Diffusion's two finest levels, with its text's and its heads.
WIDE = UNetConfig(
    channels=(320, 640), res_blocks=1, attention=(True, True), heads=(8, 8), depth=(1, 1), context=768,
    linear_projection=False,
)  # fmt: skip


@pytest.fixture(scope="module")
def pipe():
    return sld.load()


def final(pipe, batch=3, guidance=GUIDANCE):
    run = {"sampler": make_sampler("ddim", pipe.schedule, STEPS), "guidance": guidance, "size": 32}
    *_, state = pipe.sample(PROMPTS[:batch], list(range(batch)), **run)
    return state.x


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", list(EACH))
def test_latents_are_the_same_with_and_without_a_saving_to_the_bit_where_batches_are_exact(pipe, name, batch):
    """Mutants that failed here: the texts' keys in another order, the time of the evaluation before, latents repeated
    image by image, the rows handed back in another order."""
    exact = replace(pipe, exact_batch=True)

    saved, full = (final(replace(exact, savings=savings), batch) for savings in (EACH[name], NO_SAVINGS))

    assert_close(saved, full, **EXACT)


@pytest.mark.parametrize("name", list(EACH))
def test_latents_are_the_same_up_to_rounding_where_batches_are_not_exact(pipe, name):
    """Five evaluations, and SLD's masks, amplify what kernels round otherwise: 2e-5 at most on the processors tried."""
    saved, full = (final(replace(pipe, savings=savings), 1) for savings in (EACH[name], NO_SAVINGS))

    assert_close(saved, full, rtol=0, atol=2e-4)


@pytest.fixture(scope="module")
def wide_rows():
    """Predictions at two evaluations of a network of full width, by savings and exactness; computed once."""
    torch.manual_seed(0)
    unet = UNet(WIDE).eval().requires_grad_(False)
    x, text, timesteps = torch.randn(1, 4, 8, 8), torch.randn(3, 77, 768), torch.tensor([801, 401])
    guidance = SafeLatentGuidance(replace(WEAK, warmup_steps=1))

    @cache
    def rows(savings, exact):
        network = RowNetwork(
            unet=unet,
            text=text,
            timesteps=timesteps,
            phases=plan(guidance, ["", "a fox", "knives"], [0], 2, savings),
            savings=savings,
            exact_batch=exact,
        )
        with torch.no_grad():
            return [predict(x) for _, predict in network.evaluations(0)]

    return rows


@pytest.mark.parametrize(("exact", "tolerance"), [(False, NETWORK), (True, EXACT)])
@pytest.mark.parametrize("name", list(EACH))
def test_blocks_of_full_width_predict_the_same_with_and_without_a_saving(wide_rows, name, exact, tolerance):
    """To the bit with `exact_batch`, one image and one thread, at the widths of Stable Diffusion's finest levels."""
    saved, full = wide_rows(EACH[name], exact), wide_rows(NO_SAVINGS, exact)

    # at first the safety row is idle, and its prediction is another's
    assert_close(saved[0][:2], full[0][:2], **tolerance)
    assert_close(saved[1], full[1], **tolerance)


@pytest.mark.parametrize(
    ("guidance", "computed"),
    [
        (SafeLatentGuidance(STRONG), 3 * STEPS),
        (SafeLatentGuidance(BRIEF), 3 * STEPS - 3),
        (SafeLatentGuidance(OFF), 2 * STEPS),
        (ClassifierFreeGuidance(7.5), 2 * STEPS),
        (ClassifierFreeGuidance(1.0), STEPS),
        (ClassifierFreeGuidance(0.0), STEPS),
    ],
)
def test_the_rows_that_are_counted_are_those_that_the_network_computes(pipe, guidance, computed):
    seen = Counter()
    hook = pipe.unet.norm_out.register_forward_hook(lambda _, args, __: seen.update(rows=len(args[0])))
    try:
        final(pipe, 3, guidance)
    finally:
        hook.remove()

    asked = len(guidance.conditions) * STEPS * 3
    assert pipe.network_rows(guidance, STEPS, 3) == Rows(asked, seen["rows"]) == Rows(asked, computed * 3)
    assert replace(pipe, savings=NO_SAVINGS).network_rows(guidance, STEPS, 3) == Rows(asked, asked)


@pytest.mark.parametrize(
    ("scale", "tolerance"),
    # at scale 1 the equation rounds e0 + (eP - e0), at 0 nothing
    [(1.0, NETWORK), (0.0, EXACT)],
)
def test_one_row_is_enough_where_the_other_cancels(pipe, scale, tolerance):
    exact = replace(pipe, exact_batch=True)
    guidance = ClassifierFreeGuidance(scale)

    assert_close(final(exact, 2, guidance), final(replace(exact, savings=NO_SAVINGS), 2, guidance), **tolerance)


def test_the_safety_row_is_idle_in_a_warmup_without_momentum_of_all_images():
    def idle(*configs, reading=safe_latent_guidance):
        made = SafeLatentGuidance(configs if len(configs) > 1 else configs[0], reading)
        return [i for i in range(20) if made.idle(i, 20)]

    assert idle(WEAK) == list(range(15))
    assert idle(STRONG) == []
    assert idle(WEAK, replace(WEAK, warmup_steps=4)) == list(range(4))
    assert idle(WEAK, STRONG) == []
    assert idle(WEAK, OFF) == list(range(15))
    assert idle(replace(WEAK, warmup_fraction=0.25)) == list(range(5))
    assert idle(OFF) == list(range(20))
    assert idle(OFF, reading=clamp_as_printed) == []  # its mask is never less than 1


@pytest.mark.parametrize("preset", list(PRESETS))
def test_whatever_stands_in_an_idle_row_the_run_goes_the_same_way(preset):
    """A mutant that called every preset's safety row idle in its warm-up failed here."""
    guidance = guidance_for(preset)
    params = guidance.params(20, 2)
    generator = torch.Generator().manual_seed(0)
    states = [guidance.init(torch.zeros(2, 4, 4, 4))] * 2
    for i in range(20):
        rows = Predictions(*torch.randn(3, 2, 4, 4, 4, generator=generator))
        other = rows._replace(**{condition: rows.text for condition in guidance.idle(i, 20)})
        (a, state), (b, state_) = (guidance(r, s, i, params) for r, s in zip((rows, other), states, strict=True))
        states = [state, state_]

        assert_close(a, b, **EXACT)


@pytest.mark.parametrize(("savings", "times"), [(Savings(), 1), (NO_SAVINGS, STEPS)])
def test_texts_and_timesteps_are_projected_once_in_a_run(pipe, savings, times):
    seen = Counter()
    watched = {"text": pipe.unet.mid.attn.blocks[0].cross.k, "time": pipe.unet.mid.res[0].time}
    hooks = [
        module.register_forward_hook(lambda *_, name=name: seen.update([name])) for name, module in watched.items()
    ]
    try:
        final(replace(pipe, savings=savings), guidance=guidance_for("strong"))
    finally:
        for hook in hooks:
            hook.remove()

    assert seen == {"text": times, "time": times}


@pytest.mark.parametrize(("savings", "times"), [(Savings(), 5), (NO_SAVINGS, 9)])
def test_a_text_that_several_rows_have_is_encoded_once(pipe, savings, times):
    """Three prompts, the empty text and the concept."""
    seen = Counter()
    hook = pipe.text.clip.register_forward_hook(lambda *_: seen.update(["text"]))
    try:
        final(replace(pipe, savings=savings))
    finally:
        hook.remove()

    assert seen["text"] == times
