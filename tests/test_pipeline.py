"""The pipeline on the embedded model: seeds, batches, resuming, per-image settings, bad input."""

import threading
from dataclasses import replace

import pytest
import torch
from conftest import NETWORK

import sld
from sld import images
from sld.config import Defaults
from sld.guidance import MAX, OFF, STRONG, ClassifierFreeGuidance, SafeLatentGuidance, Unguided, guidance_for
from sld.samplers import DDIM, PNDM, SAMPLERS, leading, make_sampler
from sld.state import SampleState

PROMPT = "a fox in a dark alley"


@pytest.fixture(scope="module")
def pipe():
    return sld.load()


def final(pipe, *args, **kwargs):
    *_, state = pipe.sample(*args, **kwargs)
    return state.x


def short(pipe, name="ddim", steps=9):
    return make_sampler(name, pipe.schedule, steps)


def test_ten_lines_of_python_make_pictures(pipe):
    pictures = pipe([PROMPT, "a robot at the beach"], seeds=[0, 1], safety="strong", steps=3)

    assert [picture.size for picture in pictures] == [(64, 64), (64, 64)]


def test_the_usual_sampler_is_the_one_that_the_checkpoint_names(pipe):
    """In both forms of a call. Killed by: PNDM always."""
    named = replace(pipe, config=replace(pipe.config, defaults=replace(pipe.config.defaults, sampler="lms")))
    for p, name in ((pipe, "ddim"), (named, "lms")):
        x = final(p, PROMPT, sampler=short(p, name, steps=2))
        assert p(PROMPT, steps=2)[0].tobytes() == images.to_pil(p.decode(x))[0].tobytes()
    assert len(list(named.sample(PROMPT, size=8))) == len(list(pipe.sample(PROMPT, size=8))) == 51
    assert not torch.equal(final(named, PROMPT, size=8), final(pipe, PROMPT, size=8))


def test_what_a_checkpoint_wants_by_default_is_one_record_of_its_config(pipe):
    """Sampler, spacing, steps, guidance scale, concept and size; SLD acts from evaluation 10 on.

    Killed by: another spacing, another concept.
    """
    wants = Defaults(size=32, sampler="ddim", spacing="trailing", steps=13, guidance_scale=2.0, concept="a knife")
    other = replace(pipe, config=replace(pipe.config, defaults=wants))
    sampler = make_sampler("ddim", pipe.schedule, 13, "trailing")
    run = {"sampler": sampler, "size": 32, "concept": "a knife", "guidance": guidance_for("medium", 2.0)}
    expected = final(pipe, PROMPT, **run)

    assert torch.equal(final(other, PROMPT), expected)
    assert other(PROMPT)[0].tobytes() == images.to_pil(pipe.decode(expected))[0].tobytes()
    assert other.sampler("pndm", 4).timesteps == make_sampler("pndm", pipe.schedule, 4).timesteps


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"sampler": "nonsense"}, "no sampler 'nonsense'"),
        ({"spacing": "linspace"}, "no pndm spacing 'linspace'"),
        ({"steps": 0}, "steps must be"),
        ({"steps": True}, "steps must be"),
        ({"guidance_scale": float("nan")}, "guidance_scale must be"),
        ({"size": -1}, "size must be"),
    ],
)
def test_defaults_out_of_range_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Defaults(**{"size": 64, **wrong})


@pytest.mark.parametrize("kind", [DDIM, PNDM])
@pytest.mark.parametrize("numerics", ["reference", "invariant"])
def test_a_run_begins_from_a_picture_with_the_noise_of_its_first_timestep(pipe, kind, numerics):
    """The later it begins, the more is left of the picture. Killed by: noise of another timestep, the start ignored."""
    pipe = replace(pipe, numerics=numerics)
    start = final(pipe, "a bear on a beach", sampler=short(pipe, steps=20))
    grid = leading(pipe.schedule, 20)
    distances = []
    for begin in (4, 12, 18):
        sampler = kind.at(pipe.schedule, grid[begin:])
        run = list(pipe.sample(PROMPT, 5, sampler=sampler, start=start, guidance=Unguided()))
        noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(5))
        assert torch.equal(run[0].x, pipe.schedule.add_noise(start, noise, grid[begin]))
        distances.append((run[-1].x - start).square().mean())
    assert distances[0] > distances[1] > distances[2]


def test_a_hook_between_steps_decides_what_a_run_goes_on_with(pipe):
    """Inpainting by blending: what is kept has at every step the noise of that step, and none at the end.

    Killed by: the level of the step before, the hook's result thrown away.
    """
    kept = final(pipe, "a bear on a beach", sampler=short(pipe, steps=20))
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(5))
    mask = (torch.arange(16) < 8).float()
    sampler, seen = short(pipe, steps=6), []

    def blend(state, level):
        seen.append((state.i, level))
        return torch.where(mask.bool(), level.signal * kept + level.noise * noise, state.x)

    run = list(pipe.sample(PROMPT, 5, sampler=sampler, between=blend))

    assert [i for i, _ in seen] == list(range(1, 7))
    for (i, _), t in zip(seen, (*sampler.timesteps[1:], None), strict=True):
        expected = kept if t is None else pipe.schedule.add_noise(kept, noise, t)
        assert torch.equal(run[i].x[..., :8], expected[..., :8])
    assert not torch.equal(run[-1].x[..., 8:], final(pipe, PROMPT, 5, sampler=sampler)[..., 8:])


@pytest.mark.parametrize("numerics", ["fast", "invariant"])
def test_images_that_a_hook_parts_share_no_rows(pipe, numerics):
    """They begin alike, with one prompt and seed. Killed by: rows shared as without a hook."""
    pipe = replace(pipe, numerics=numerics)
    run = {"sampler": short(pipe, steps=4), "guidance": ClassifierFreeGuidance(), "size": 32}
    flips = torch.tensor([1.0, -1.0])[:, None, None, None]

    together = final(pipe, [PROMPT] * 2, [5, 5], between=lambda state, _: state.x * flips, **run)
    alone = [final(pipe, PROMPT, 5, between=lambda state, _, f=f: state.x * f, **run) for f in (1.0, -1.0)]

    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-4)


def test_encoders_that_wait_elsewhere_are_copied_once_for_all_texts(pipe, monkeypatch):
    copies = []
    monkeypatch.setattr("sld.pipeline.on_device", lambda network, device: copies.append(network) or network)
    for numerics in ("reference", "invariant"):
        copies.clear()
        next(iter(replace(pipe, numerics=numerics).sample([PROMPT, "an owl"], [0, 1], sampler=short(pipe))))
        assert copies == list(pipe.texts)


@pytest.mark.parametrize("seed", [0, 7, 2**32 - 1, 2**63, 2**64 - 1])
def test_a_seed_means_normal_noise_of_a_cpu_generator(pipe, seed):
    first = next(iter(pipe.sample([PROMPT, PROMPT], [3, seed], sampler=short(pipe))))

    expected = torch.randn((1, 4, 16, 16), generator=torch.Generator().manual_seed(seed))
    assert torch.equal(first.x[1:], expected)


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_going_on_from_every_saved_step_gives_the_same_bits(pipe, name, tmp_path):
    guidance = guidance_for("strong")
    run = {"sampler": short(pipe, name), "guidance": guidance, "size": 32}
    whole = list(pipe.sample(PROMPT, [5, 6], **run))
    for state in whole[:-1]:
        state.save(tmp_path / "state.safetensors", about={"prompt": PROMPT})
        loaded, about = SampleState.load(tmp_path / "state.safetensors", guidance, run["sampler"])

        assert about == {"prompt": PROMPT}
        assert loaded.i == state.i
        assert torch.equal(final(pipe, PROMPT, [5, 6], state=loaded, **run), whole[-1].x)


def test_a_state_is_not_changed_by_the_steps_that_follow(pipe):
    states = pipe.sample(PROMPT, sampler=short(pipe, "pndm"), guidance=guidance_for("max"), size=32)
    seen = []
    for state in states:
        tensors = [state.x, *state.guidance, *state.sampler]
        seen.append((tensors, [t.clone() for t in tensors]))

    assert all(torch.equal(t, copy) for tensors, copies in seen for t, copy in zip(tensors, copies, strict=True))


def test_runs_in_threads_share_nothing(pipe):
    run = {"sampler": short(pipe, "pndm"), "guidance": guidance_for("strong"), "size": 32}
    alone = [final(pipe, PROMPT, seed, **run) for seed in (0, 1)]
    together = {}
    threads = [
        threading.Thread(target=lambda s=seed: together.update({s: final(pipe, PROMPT, s, **run)})) for seed in (0, 1)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert all(torch.equal(together[seed], alone[seed]) for seed in (0, 1))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("rows", [1, 2, 3])
def test_an_image_has_the_same_bits_in_any_batch(rows, threads):
    """Batches of 1 to 11, one to three rows; latents and pictures, with invariant numerics.

    Fails where a batch of one is not doubled (one row), where time features are computed per row, or where 1x1
    convolutions are convolutions.
    """
    pipe = sld.load(numerics="invariant")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        guidance = {1: Unguided(), 2: ClassifierFreeGuidance(), 3: SafeLatentGuidance(MAX)}[rows]
        prompts = [f"a {s} in a dark alley" for s in ("fox", "bear", "owl", "pig", "lion", "frog")] * 2
        run = {"sampler": short(pipe, "ddim", 2), "guidance": guidance}
        most = final(pipe, prompts[:11], list(range(11)), **run)
        pictures = pipe.decode(most)
        for batch in range(1, 11):
            fewer = final(pipe, prompts[:batch], list(range(batch)), **run)
            assert torch.equal(fewer, most[:batch])
        assert torch.equal(pipe.decode(most[:1]), pictures[:1])
    finally:
        torch.set_num_threads(before)


def test_each_image_of_a_batch_may_have_its_own_preset(pipe):
    pipe = replace(pipe, numerics="invariant")  # the image that is off leaves its safety row out, which is another call
    mixed = SafeLatentGuidance((STRONG, OFF, MAX))
    together = final(pipe, PROMPT, [1, 2, 3], sampler=short(pipe, steps=12), guidance=mixed)

    for k, config in enumerate((STRONG, OFF, MAX)):
        alone = final(pipe, PROMPT, [1, 2, 3], sampler=short(pipe, steps=12), guidance=SafeLatentGuidance(config))
        assert torch.equal(together[k], alone[k])


def test_the_negative_prompt_takes_the_place_of_the_empty_text(pipe):
    # at scale 0 only the unconditional prediction is left
    negative = final(pipe, PROMPT, negative="a knife", sampler=short(pipe), guidance=ClassifierFreeGuidance(0.0))
    text = final(pipe, "a knife", sampler=short(pipe), guidance=Unguided())

    torch.testing.assert_close(negative, text, **NETWORK)


def test_the_concept_equal_to_the_prompt_leaves_plain_guidance_where_momentum_is_off(pipe):
    weak = guidance_for("weak")
    run = {"sampler": short(pipe, steps=20)}

    guided = final(pipe, PROMPT, guidance=weak, concept=PROMPT, **run)

    assert torch.equal(guided, final(pipe, PROMPT, guidance=SafeLatentGuidance(OFF), **run))


def test_guidance_in_eps_space_differs_for_sld_but_not_for_cfg_on_a_model_that_predicts_v(pipe):
    v = replace(pipe, schedule=replace(pipe.schedule, prediction="v"))
    plain = [
        final(v, PROMPT, sampler=short(pipe), guidance=ClassifierFreeGuidance(), space=s).double()
        for s in ("raw", "eps")
    ]
    safe = [
        final(v, PROMPT, sampler=short(pipe), guidance=guidance_for("max"), space=s).double() for s in ("raw", "eps")
    ]

    scale = plain[0].abs().mean()
    assert (plain[0] - plain[1]).abs().mean() < 1e-3 * scale
    assert (safe[0] - safe[1]).abs().mean() > 1e-2 * scale


def test_a_text_that_is_too_long_is_cut_with_a_warning_that_names_the_rest(pipe):
    with pytest.warns(UserWarning, match="left out: '.*beach'"):
        next(iter(pipe.sample("a fox " * 20 + "at the beach", sampler=short(pipe))))


def test_the_empty_prompt_is_a_prompt(pipe):
    assert torch.isfinite(final(pipe, "", sampler=short(pipe))).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seeds": -1}, "seed must be"),
        ({"seeds": 2**64}, "seed must be"),
        ({"seeds": 1.5}, "seed must be"),
        ({"size": 30}, "multiples of 4; got 30"),
        ({"size": (64, 0)}, "multiples of 4"),
        ({"seeds": [0, 1, 2], "negative": ["a", "b"]}, "3 seeds, 2 negative"),
        ({"seeds": []}, "as many as there are images"),
        ({"space": "v"}, "space must be"),
        ({"noise": torch.zeros(1, 4, 8, 8)}, "noise must have shape"),
        ({"start": torch.zeros(2, 4, 16, 16)}, "start must have shape"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_computed(pipe, arguments, message):
    with pytest.raises(ValueError, match=message):
        pipe.sample(PROMPT, **arguments)


def test_a_state_of_another_run_is_refused(pipe, tmp_path):
    first = next(iter(pipe.sample(PROMPT, [0, 1], sampler=short(pipe), guidance=guidance_for("weak"))))
    with pytest.raises(ValueError, match="holds 2 images"):
        pipe.sample(PROMPT, 0, sampler=short(pipe), state=first)
    first.save(tmp_path / "s.safetensors")
    with pytest.raises(ValueError, match=r"holds guidance\.nu"):
        SampleState.load(tmp_path / "s.safetensors", ClassifierFreeGuidance(), short(pipe))
    (tmp_path / "t.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="not a saved state"):
        SampleState.load(tmp_path / "t.safetensors", ClassifierFreeGuidance(), short(pipe))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_networks_in_half_precision_keep_latents_in_float32(dtype):
    half = sld.load(dtype=dtype)

    state = list(half.sample(PROMPT, sampler=short(half, steps=2), guidance=guidance_for("max"), size=32))[-1]

    assert state.x.dtype == state.guidance.nu.dtype == torch.float32
    assert torch.isfinite(half.decode(state.x)).all()
