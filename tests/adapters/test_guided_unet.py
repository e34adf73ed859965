"""A rule around the UNet of diffusers' stock pipelines, against its StableDiffusionPipelineSafe, bit by bit.

Mutants that failed here: rows in another order, the state kept from run to run, evaluations counted from the first
timestep of the scheduler and not of the run, the concept's pooled text left as the prompt's, guidance twice.
"""

from dataclasses import replace

import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from PIL import Image
from reference import SCHEDULERS, reference_run, safe_pipeline
from reference_modular import NEGATIVE, PROMPTS, separate_run, xl_rows
from reference_xl import xl_pipeline

from sld.adapters.diffusers import GuidedUNet
from sld.guidance import (
    DIFFUSERS_CONCEPT,
    MAX,
    MEDIUM,
    ClassifierFreeGuidance,
    DynamicNegativeGuidance,
    SafeLatentGuidance,
    Unguided,
)
from sld.testbed.vocabulary import write_tokenizer

SEEDS = [7, 3]
CONFIG = replace(MEDIUM, warmup_steps=2)


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    folder = tmp_path_factory.mktemp("words")
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def safe(words):
    return safe_pipeline(words)


def stock(safe, cls=StableDiffusionPipeline):
    """A stock pipeline with the parts of the safe one."""
    pipe = cls(
        vae=safe.vae,
        text_encoder=safe.text_encoder,
        tokenizer=safe.tokenizer,
        unet=safe.unet,
        scheduler=SCHEDULERS["ddim"](),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run(pipe, prompts=PROMPTS, steps=6, guidance_scale=1.0, **inputs):
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS[: len(prompts)]]
    made = pipe(
        prompts,
        height=16,
        width=16,
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        generator=generators,
        output_type="latent",
        **inputs,
    )
    return made.images


@pytest.mark.parametrize(("config", "negative"), [(CONFIG, None), (MAX, NEGATIVE)], ids=["medium", "max"])
@pytest.mark.parametrize("sampler", ["ddim", "pndm"])
def test_a_stock_pipeline_is_the_safe_one(safe, sampler, config, negative):
    *_, last = reference_run(safe, PROMPTS, SEEDS, config, sampler, 6, negative)[0]

    pipe = stock(safe)
    pipe.unet = GuidedUNet(pipe, SafeLatentGuidance(config), DIFFUSERS_CONCEPT, negative)
    pipe.scheduler = SCHEDULERS[sampler]()

    assert torch.equal(run(pipe), last)
    assert torch.equal(run(pipe), last), "the second run begins anew"


def test_sdxl_is_served_with_pooled_texts(words):
    """Rows in one call round otherwise than in calls of their own; a smooth mask does not blow that up."""
    pipe = xl_pipeline(words)
    rule = SafeLatentGuidance(replace(MAX, safety_scale=1))
    rows = xl_rows(pipe, [NEGATIVE, PROMPTS[0], "a cemetery"])
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(SEEDS[0]))
    separate = separate_run(pipe, rows, rule, x, 4)

    pipe.unet = GuidedUNet(pipe, rule, "a cemetery", NEGATIVE)

    torch.testing.assert_close(run(pipe, PROMPTS[:1], 4), separate, rtol=1e-4, atol=1e-4)


def test_rules_without_texts_of_their_own_are_served(safe):
    theirs = run(stock(safe), guidance_scale=5.0, steps=3)
    pipe = stock(safe)
    pipe.unet = GuidedUNet(pipe, ClassifierFreeGuidance(5.0))
    assert torch.equal(run(pipe, steps=3), theirs)

    theirs = run(stock(safe), steps=3)
    pipe = stock(safe)
    pipe.unet = GuidedUNet(pipe, Unguided())
    assert torch.equal(run(pipe, steps=3), theirs)


def test_a_warmup_counts_the_evaluations_of_the_run(safe):
    """From a picture, 6 steps at strength 0.5 are 3 evaluations: a warm-up of a third is one of them, and not two."""
    picture = Image.new("RGB", (16, 16), "red")
    warmups = {"third": {"warmup_fraction": 1 / 3}, "one": {"warmup_steps": 1}, "two": {"warmup_steps": 2}}
    made = {}
    for name, warmup in warmups.items():
        pipe = stock(safe, StableDiffusionImg2ImgPipeline)
        pipe.unet = GuidedUNet(pipe, SafeLatentGuidance(replace(MAX, **warmup)))
        made[name] = pipe(
            PROMPTS[0],
            picture,
            strength=0.5,
            num_inference_steps=6,
            guidance_scale=1.0,
            generator=torch.Generator().manual_seed(1),
            output_type="latent",
        ).images
    assert torch.equal(made["third"], made["one"]) and not torch.equal(made["third"], made["two"])


def test_what_would_guide_twice_or_not_at_all_is_refused(safe):
    pipe = stock(safe)
    pipe.unet = GuidedUNet(pipe, SafeLatentGuidance(CONFIG))
    other = StableDiffusionPipeline(**pipe.components, requires_safety_checker=False)
    with pytest.raises(ValueError, match="the pipeline it was made for"):
        run(other)
    with pytest.raises(ValueError, match="guidance_scale=1"):
        run(pipe, guidance_scale=7.5)
    with pytest.raises(ValueError, match="DynamicNegativeGuidance learns"):
        GuidedUNet(pipe, DynamicNegativeGuidance(negative="a ball"))
    assert pipe.unet.config.in_channels == 4 and pipe.unet.dtype == torch.float32
