"""The three ways in which numbers are made: what is computed once instead of often changes nothing but rounding."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from conftest import EXACT, NETWORK
from torch.testing import assert_close

import sld
from sld.config import NUMERICS, UNetConfig
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
from sld.models.denoiser import Cond
from sld.models.unet import UNet
from sld.samplers import make_sampler
from sld.speed.keys import KeyedUNet
from sld.speed.rows import RowNetwork, Rows, plan

PROMPTS = ["a fox in a dark alley", "a robot at the beach", "an owl"]
STEPS = 5
BRIEF = replace(WEAK, warmup_steps=3)  # the safety row is idle on three of five evaluations
GUIDANCE = SafeLatentGuidance(BRIEF)
OTHERS = [name for name in NUMERICS if name != "reference"]

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
@pytest.mark.parametrize("numerics", OTHERS)
def test_latents_are_those_of_the_reference_up_to_rounding(pipe, numerics, batch):
    """Five evaluations, and SLD's masks, amplify what kernels round otherwise: 2e-5 at most on the processors tried.

    Mutants that failed here: the time of the evaluation before, the rows handed back in another order."""
    assert_close(final(replace(pipe, numerics=numerics), batch), final(pipe, batch), rtol=0, atol=2e-4)


@torch.no_grad()
def test_blocks_of_full_width_give_an_image_the_same_bits_alone_and_beside_another():
    """With invariant numerics and one thread, at the widths of Stable Diffusion's finest levels; and what the plain
    network predicts, up to rounding."""
    torch.manual_seed(0)
    unet = UNet(WIDE).eval().requires_grad_(False)
    x, tokens, timesteps = torch.randn(2, 4, 8, 8), torch.randn(3, 77, 768), torch.tensor([801, 401])
    guidance = SafeLatentGuidance(replace(WEAK, warmup_steps=1))

    def rows(b):
        network = RowNetwork(
            unet=KeyedUNet(unet),
            cond=Cond(tokens.repeat_interleave(b, 0)),
            timesteps=timesteps,
            phases=plan(guidance, [text for text in ("", "a fox", "knives") for _ in range(b)], range(b), 2),
            invariant=True,
        )
        return [predict(x[:b]).unflatten(0, (3, b)) for _, predict in network.evaluations(0)]

    both, alone = rows(2), rows(1)

    # at first the safety row is idle, and its prediction is another's
    assert_close(both[0][:2, :1], alone[0][:2], **EXACT)
    assert_close(both[1][:, :1], alone[1], **EXACT)
    assert_close(alone[1][:, 0], unet(x[:1].repeat(3, 1, 1, 1), timesteps[1], Cond(tokens)), **NETWORK)


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
    pipe, plain, seen = replace(pipe, numerics="fast"), pipe, Counter()
    hook = pipe.unet.norm_out.register_forward_hook(lambda _, args, __: seen.update(rows=len(args[0])))
    try:
        final(pipe, 3, guidance)
    finally:
        hook.remove()

    asked = len(guidance.conditions) * STEPS * 3
    assert pipe.network_rows(guidance, STEPS, 3) == Rows(asked, seen["rows"]) == Rows(asked, computed * 3)
    assert plain.network_rows(guidance, STEPS, 3) == Rows(asked, asked)


@pytest.mark.parametrize(
    ("scale", "row"),
    # at scale 1 the equation rounds e0 + (eP - e0), at 0 nothing
    [(1.0, "text"), (0.0, "uncond")],
)
def test_one_row_is_enough_where_the_other_cancels(pipe, scale, row):
    guidance = ClassifierFreeGuidance(scale)

    assert guidance.idle(0, STEPS) == {"text", "uncond"} - {row}
    assert_close(final(replace(pipe, numerics="fast"), 2, guidance), final(pipe, 2, guidance), **NETWORK)


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


@pytest.mark.parametrize(("numerics", "times"), [("fast", 1), ("reference", STEPS)])
def test_texts_and_timesteps_are_projected_once_in_a_run(pipe, numerics, times):
    seen = Counter()
    watched = {"text": pipe.unet.mid.attn.blocks[0].cross.k, "time": pipe.unet.mid.res[0].time}
    hooks = [
        module.register_forward_hook(lambda *_, name=name: seen.update([name])) for name, module in watched.items()
    ]
    try:
        final(replace(pipe, numerics=numerics), guidance=guidance_for("strong"))
    finally:
        for hook in hooks:
            hook.remove()

    assert seen == {"text": times, "time": times}


@pytest.mark.parametrize(("numerics", "batches"), [("fast", [1] * 5), ("reference", [3, 3, 1])])
def test_texts_are_encoded_one_by_one_or_in_the_references_batches(pipe, numerics, batches):
    """Three prompts, the empty text and the concept. The reference encodes the empty text for every image."""
    seen = []
    clip = pipe.texts[0].clip
    hook = clip.register_forward_hook(lambda *told: seen.append(len(told[2]["input_ids"])), with_kwargs=True)
    try:
        final(replace(pipe, numerics=numerics))
    finally:
        hook.remove()

    assert seen == batches


@pytest.mark.parametrize("numerics", OTHERS)
def test_a_network_of_ones_own_runs_with_the_references_numerics_alone(pipe, numerics):
    class Silent:
        device, dtype = torch.device("cpu"), torch.float32

        def __call__(self, x, t, cond):
            return torch.zeros_like(x)

    silent = replace(pipe, unet=Silent())
    assert final(silent).isfinite().all()
    with pytest.raises(ValueError, match=r"the network is a Silent: .*numerics='reference'"):
        replace(silent, numerics=numerics)
    with pytest.raises(ValueError, match=r"compile takes the UNet of sld\.models apart"):
        silent.compile()


def test_unknown_numerics_are_answered_with_the_nearest(pipe):
    with pytest.raises(ValueError, match="did you mean 'invariant'"):
        replace(pipe, numerics="invariants")
