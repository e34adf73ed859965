"""Pictures as starting points against diffusers' image-to-image and inpainting pipelines, bit by bit.

Mutants that failed here: the mean of the posterior, noise drawn before it, no draw for what the mask leaves, strength 1
with noise on the picture's latents, the picture's latents put back with the noise of the step before, the mask resized
otherwise than to the nearest, PNDM's steps after a repetition that is left out.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from reference import safe_pipeline, tiny_unet
from reference_start import pipeline, started_run
from reference_xl import xl_pipeline, xl_unet

import sld
from sld.guidance import ClassifierFreeGuidance
from sld.image_to_image import read_start
from sld.samplers import make_sampler
from sld.testbed.vocabulary import write_tokenizer

PROMPTS = ["a fox in a dark alley", "a robot with a knife"]
SEEDS = [7, 2**40]
STEPS = 8
RANDOM = np.random.default_rng(0)
IMAGES = [Image.fromarray(RANDOM.integers(0, 256, (16, 16, 3), dtype=np.uint8)) for _ in range(2)]
PLACES = np.add.outer(np.arange(16), np.arange(16))
MASKS = [Image.fromarray(np.where(k > PLACES, 255, 0).astype(np.uint8)) for k in (13, 19)]

pytestmark = pytest.mark.filterwarnings("ignore:the text is longer")


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """diffusers' parts, a UNet of 9 channels, and our pipelines with either."""
    words = tmp_path_factory.mktemp("words")
    write_tokenizer(words)
    safe, nine = safe_pipeline(words), tiny_unet(inputs=9)
    ours = {}
    for name in ("four", "nine"):
        folder = tmp_path_factory.mktemp(name) / "model"
        (safe if name == "four" else pipeline("inpaint", safe, nine)).save_pretrained(folder)
        ours[name] = sld.load(folder)
    return safe, nine, ours


@pytest.fixture(scope="module")
def xl_parts(tmp_path_factory):
    """SDXL's likewise."""
    words = tmp_path_factory.mktemp("words")
    write_tokenizer(words)
    base, nine = xl_pipeline(words), xl_unet(inputs=9)
    ours = {}
    for name, unet in {"four": None, "nine": nine}.items():
        folder = tmp_path_factory.mktemp(name) / "model"
        pipeline("inpaint", base, unet).save_pretrained(folder)
        ours[name] = sld.load(folder)
    return base, nine, ours


def our_run(pipe, sampler, strength, masks=None, images=IMAGES):
    states = pipe.sample(
        PROMPTS,
        SEEDS,
        sampler=make_sampler(sampler, pipe.schedule, STEPS, strength=strength),
        guidance=ClassifierFreeGuidance(5.0),
        start=read_start(images, pipe.config, strength, masks),
    )
    return [state.x for state in states][1:]


def assert_equal(ours, theirs, evaluations):
    assert len(ours) == len(theirs) == evaluations
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert torch.equal(a, b), f"evaluation {i}: {(a - b).abs().max()}"


@pytest.mark.parametrize(
    ("sampler", "strength"),
    [("ddim", 0.35), ("ddim", 1.0), ("pndm-diffusers", 0.35), ("pndm-diffusers", 0.95), ("pndm-diffusers", 1.0)],
)
@pytest.mark.parametrize("kind", ["img2img", "inpaint", "inpaint, 9 channels"])
def test_latents_of_every_step_are_those_of_the_reference(parts, kind, sampler, strength):
    compare(parts, kind, sampler, strength)


@pytest.mark.parametrize("strength", [0.35, 1.0])
@pytest.mark.parametrize("kind", ["img2img", "inpaint", "inpaint, 9 channels"])
def test_latents_of_sdxl_are_those_of_the_reference(xl_parts, kind, strength):
    compare(xl_parts, kind, "ddim", strength)


def compare(parts, kind, sampler, strength):
    base, nine, ours = parts
    masks = None if kind == "img2img" else MASKS
    reference = pipeline(kind.split(",")[0], base, nine if "9" in kind else None)

    theirs = started_run(reference, PROMPTS, SEEDS, sampler, STEPS, strength, IMAGES, masks)
    own = our_run(ours["nine" if "9" in kind else "four"], sampler, strength, masks)

    assert_equal(own, theirs, int(STEPS * strength) + (sampler != "ddim"))


def test_a_stochastic_sampler_goes_on_where_the_noise_of_the_pictures_ends(parts):
    safe, _, ours = parts
    theirs = started_run(pipeline("inpaint", safe), PROMPTS, SEEDS, "ddim", STEPS, 0.5, IMAGES, MASKS, eta=1.0)
    states = ours["four"].sample(
        PROMPTS,
        SEEDS,
        sampler=make_sampler("ddim", ours["four"].schedule, STEPS, eta=1.0, strength=0.5),
        guidance=ClassifierFreeGuidance(5.0),
        start=read_start(IMAGES, ours["four"].config, 0.5, MASKS),
    )
    for a, b in zip([state.x for state in states][1:], theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_pictures_are_resized_as_in_the_reference(parts):
    safe, _, ours = parts
    large = [Image.fromarray(RANDOM.integers(0, 256, (40, 24, 3), dtype=np.uint8)) for _ in range(2)]
    masks = [mask.resize((24, 40)) for mask in MASKS]
    reference = pipeline("inpaint", safe)
    start = read_start(large, ours["four"].config, 1.0, masks, size=16, quiet=True)
    assert torch.equal(start.pictures, reference.image_processor.preprocess(large, height=16, width=16))
    assert start.mask is not None and torch.equal(
        start.mask, reference.mask_processor.preprocess(masks, height=16, width=16)
    )


def test_our_pndm_takes_its_first_step_twice_wherever_it_begins(parts):
    """The reference leaves the repetition out, and x is a timestep noisier than its network is told."""
    safe, _, ours = parts
    begun = make_sampler("pndm", ours["four"].schedule, STEPS, strength=0.5).timesteps
    assert begun == (376, 251, 251, 126, 1)
    theirs = started_run(pipeline("img2img", safe), PROMPTS, SEEDS, "pndm", STEPS, 0.5, IMAGES)
    own = our_run(ours["four"], "pndm", 0.5)
    assert not torch.equal(own[-1], theirs[-1])


@pytest.mark.parametrize("numerics", ["invariant", "fast"])
def test_the_faster_numerics_differ_by_rounding(parts, numerics):
    nine = parts[2]["nine"]
    plain = our_run(nine, "ddim", 0.5, MASKS)[-1]
    other = our_run(replace(nine, numerics=numerics), "ddim", 0.5, MASKS)[-1]
    assert (plain - other).abs().max() < 1e-3 * plain.abs().max()
