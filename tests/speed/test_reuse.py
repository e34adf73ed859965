"""Approximations that take over what earlier evaluations have computed.

Mutants seen to fail here: a look at i % k == 1, the skip connection kept with the deep features, idle or equal rows
left out of a run that keeps features, requests of different approximations in one batch.
"""

import json
from collections import Counter
from dataclasses import replace

import pytest
import torch
from conftest import EXACT, NETWORK
from torch._dynamo.utils import counters
from torch.testing import assert_close

import sld
from sld.batching import batches, network_rows, run
from sld.cli import main
from sld.config import UNetConfig
from sld.guidance import MAX, STRONG, WEAK, SafeLatentGuidance
from sld.models.unet import UNet
from sld.request import Request
from sld.samplers import make_sampler
from sld.speed.reuse import NO_REUSE, Reuse
from sld.speed.rows import Rows

# Two ResBlocks and one transformer, five times. The text is that of the embedded model.
ONE_LEVEL = UNetConfig(
    channels=(32,), res_blocks=2, attention=(True,), heads=(2,), depth=(1,), context=128, linear_projection=True,
    groups=8,
)  # fmt: skip
STEPS = 6
PROMPTS = ["a fox in a dark alley", "a robot at the beach", "an owl"]
GUIDANCE = SafeLatentGuidance(replace(STRONG, warmup_steps=1))


@pytest.fixture(scope="module")
def pipe():
    return sld.load(numerics="invariant")


def states(pipe, reuse, batch=2, guidance=GUIDANCE, **more):
    how = {"sampler": make_sampler("ddim", pipe.schedule, STEPS), "guidance": guidance, "size": 32}
    return list(pipe.sample(PROMPTS[:batch], list(range(batch)), reuse=reuse, **how, **more))


def by_hooks(pipe, reuse):
    """The same from the whole network at every evaluation, parts of which are overwritten with what they were before.

    Evaluations are counted by the first convolution, of which each has one.
    """
    seen, deep = Counter(), {}
    last = pipe._keyed.up[-1].res[-1]
    skip = pipe.unet.config.channels[0]

    def count(*_):
        seen["evaluations"] += 1

    def put_deep(_, args):
        i = seen["evaluations"] - 1
        if i % reuse.deep_every == 0:
            deep["kept"] = args[0][:, :-skip].clone()
        return torch.cat([deep["kept"], args[0][:, -skip:]], dim=1), *args[1:]

    hooks = [pipe.unet.conv_in.register_forward_hook(count), last.register_forward_pre_hook(put_deep)]
    try:
        return states(pipe, NO_REUSE)
    finally:
        for hook in hooks:
            hook.remove()


def latents(made):
    return [state.x for state in made]


@pytest.mark.parametrize("reuse", [Reuse(2), Reuse(3), Reuse(5)], ids=str)
def test_latents_are_those_of_the_whole_network_with_parts_overwritten_by_earlier_ones(pipe, reuse):
    made = latents(states(pipe, reuse))

    assert_close(made, latents(by_hooks(pipe, reuse)), **EXACT)
    assert not torch.equal(made[-1], states(pipe, NO_REUSE)[-1].x)


def test_where_nothing_is_taken_over_nothing_changes(pipe):
    assert_close(states(pipe, Reuse(1))[-1].x, states(pipe, NO_REUSE)[-1].x, **EXACT)


def test_an_approximation_is_not_the_reference(pipe):
    with pytest.raises(ValueError, match="numerics 'fast' or 'invariant'"):
        states(replace(pipe, numerics="reference"), Reuse(2))


@pytest.mark.parametrize("reuse", [Reuse(2), Reuse(3)], ids=str)
def test_an_image_is_the_same_in_any_batch_and_in_parts_of_one(pipe, reuse):
    """Beside an image whose warm-up ends elsewhere too."""
    mixed = SafeLatentGuidance((WEAK, STRONG, replace(MAX, warmup_steps=2)))
    together = states(pipe, reuse, 3, mixed)[-1].x
    alone = states(pipe, reuse, 1, SafeLatentGuidance(WEAK))[-1].x
    apart = states(replace(pipe, rows_at_once=1), reuse, 3, mixed)[-1].x

    assert_close(together[:1], alone, **EXACT)
    assert_close(together, apart, **EXACT)


def test_images_that_begin_alike_and_part_take_over_each_its_own(pipe):
    """Without reuse they would share rows as long as their latents are equal."""
    reuse, rules = Reuse(2), (replace(STRONG, warmup_steps=2), replace(MAX, warmup_steps=4))
    how = {"sampler": make_sampler("ddim", pipe.schedule, STEPS), "size": 32, "reuse": reuse}

    *_, together = pipe.sample(PROMPTS[0], [7, 7], guidance=SafeLatentGuidance(rules), **how)
    alone = [list(pipe.sample(PROMPTS[0], 7, guidance=SafeLatentGuidance(rule), **how))[-1].x for rule in rules]

    assert_close(together.x, torch.cat(alone), **EXACT)


def test_a_run_goes_on_where_nothing_is_taken_over_and_says_where_that_is(pipe):
    reuse = Reuse(2)
    made = states(pipe, reuse)

    for i in (0, 2, 4):
        assert_close(states(pipe, reuse, state=made[i])[-1].x, made[-1].x, **EXACT)
    for i, at in ((1, 0), (3, 2), (5, 4)):
        with pytest.raises(ValueError, match=rf"evaluation {i} .* go on from evaluation {at}"):
            states(pipe, reuse, state=made[i])


def test_rows_are_counted_as_the_network_computes_them(pipe):
    seen = Counter()
    hooks = [
        pipe.unet.norm_out.register_forward_hook(lambda _, args, __: seen.update(rows=len(args[0]))),
        pipe.unet.mid.res[1].conv_in.register_forward_hook(lambda _, args, __: seen.update(deep=len(args[0]))),
    ]
    requests = [Request(p, "knives", 32, 32, guidance=WEAK, sampler="ddim", steps=5, deep_every=2) for p in PROMPTS]
    try:
        run(pipe, requests)
    finally:
        for hook in hooks:
            hook.remove()

    assert seen == {"rows": 3 * 3 * 5, "deep": 3 * 3 * 3}
    assert network_rows(pipe, requests) == Rows(45, 45, 45 - 27)


def test_a_compiled_network_takes_over_the_same_and_makes_few_graphs():
    """As many as without: three kinds of blocks, two of them also before texts part the rows, and the step's."""
    torch.manual_seed(0)
    torch.compiler.reset()
    counters.clear()
    pipe = replace(sld.load(), unet=UNet(ONE_LEVEL).eval().requires_grad_(False), numerics="fast")
    compiled = pipe.compile(backend="eager")

    assert_close(states(compiled, Reuse(2))[-1].x, states(pipe, Reuse(2))[-1].x, **NETWORK)
    assert counters["stats"]["unique_graphs"] == 6


@pytest.mark.parametrize("number", [0, -1, 2.0, True])
def test_numbers_out_of_range_are_named(number):
    with pytest.raises(ValueError, match="deep_every must be a whole number"):
        Reuse(number)


def test_requests_say_what_they_take_over_and_batches_keep_it_apart():
    plain = Request("a fox", "knives", 32, 32)
    approximate = replace(plain, deep_every=3)

    assert "deep_every" not in plain.to_dict()
    assert approximate.to_dict()["deep_every"] == 3
    assert Request.from_dict(json.loads(json.dumps(approximate.to_dict()))) == approximate
    assert batches([plain, approximate, plain]) == [[0, 2], [1]]
    with pytest.raises(ValueError, match="deep_every"):
        replace(plain, deep_every=0)


def test_the_command_line_writes_it_into_the_sidecar(tmp_path):
    main(["generate", "a fox", "--steps", "3", "--numerics", "fast", "--deep-every", "2", "--out", str(tmp_path)])

    (sidecar,) = tmp_path.glob("*.json")
    assert json.loads(sidecar.read_text())["request"]["deep_every"] == 2
