"""Stable Diffusion XL against diffusers' StableDiffusionXLPipeline, bit by bit, with our own networks.

Mutants that failed here: the final norm on the tokens, "" encoded in place of zeros, width before height in the sizes,
latents multiplied by the inverse of the scaling before they are decoded, matrices for a single row left where the file
maps them, all rows told the mean of what the texts add to time.
"""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from reference_xl import xl_pipeline, xl_run
from safetensors.torch import load_file, save_file

import sld
from sld.checkpoints import CheckpointError, convert, inspect
from sld.cli import main
from sld.evaluation.results import read_results
from sld.guidance import ClassifierFreeGuidance, SafeLatentGuidance
from sld.guidance.sld import MAX, STRONG, Predictions, safe_latent_guidance
from sld.models.denoiser import Cond
from sld.samplers import make_sampler
from sld.testbed.vocabulary import write_tokenizer

PROMPTS = ["a fox in a dark alley", "a robot with a knife", "the beach"]
SEEDS = [7, 3, 2**40]
CONCEPT = "weapons, death"

pytestmark = pytest.mark.filterwarnings("ignore:the text is longer")


@pytest.fixture(scope="module")
def pipes(tmp_path_factory):
    words = tmp_path_factory.mktemp("words")
    write_tokenizer(words)
    reference = xl_pipeline(words)
    folder = tmp_path_factory.mktemp("xl") / "model"
    reference.save_pretrained(folder)
    return reference, sld.load(folder)


def our_run(pipe, batch, sampler, steps, negative="", guidance=None, size=(16, 16)):
    states = pipe.sample(
        PROMPTS[:batch],
        SEEDS[:batch],
        sampler=make_sampler(sampler, pipe.schedule, steps, "leading"),
        guidance=guidance or ClassifierFreeGuidance(5.0),
        negative=negative,
        concept=CONCEPT,
        size=size,
    )
    return [state.x for state in states][1:]


@torch.no_grad()
def test_tokens_and_pooled_texts_are_those_of_the_reference(pipes):
    reference, ours = pipes
    tokens, _, pooled, _ = reference.encode_prompt(PROMPTS, device="cpu", do_classifier_free_guidance=False)
    cond = ours.encode(PROMPTS, (16, 24))
    assert torch.equal(cond.tokens, tokens) and torch.equal(cond.pooled, pooled)
    assert cond.sizes.tolist() == [[16, 24, 0, 0, 16, 24]] * 3


@torch.no_grad()
def test_the_empty_text_is_zeros(pipes):
    _, ours = pipes
    cond = ours.encode(["", PROMPTS[0]])
    assert not cond.tokens[0].any() and not cond.pooled[0].any() and cond.sizes[0].tolist() == [16, 16, 0, 0, 16, 16]
    assert torch.equal(cond.tokens[1], ours.encode(["a ball", PROMPTS[0]]).tokens[1])


@pytest.mark.parametrize("rows", range(1, 7))
@torch.no_grad()
def test_the_unet_is_bit_equal_to_diffusers(pipes, rows):
    reference, ours = pipes
    torch.manual_seed(rows)
    x, tokens, pooled = torch.randn(rows, 4, 8, 12), torch.randn(rows, 7, 64), torch.randn(rows, 24)
    sizes = torch.randint(2048, (rows, 6))
    for t in (torch.tensor(981), torch.randint(1000, (rows,))):
        told = {"text_embeds": pooled, "time_ids": sizes}
        assert torch.equal(
            ours.unet(x, t, Cond(tokens, pooled, sizes)), reference.unet(x, t, tokens, added_cond_kwargs=told).sample
        )


def test_a_condition_without_pooled_texts_is_refused(pipes):
    with pytest.raises(ValueError, match="pooled texts and sizes"):
        pipes[1].unet(torch.randn(1, 4, 8, 8), torch.tensor(1), Cond(torch.randn(1, 7, 64)))


@pytest.mark.parametrize("negative", [None, "a ball"])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("sampler", ["ddim", "pndm"])
def test_latents_of_every_step_are_those_of_the_reference(pipes, sampler, batch, negative):
    reference, ours = pipes
    size = (16, 24) if batch == 3 else (16, 16)
    theirs, _ = xl_run(reference, PROMPTS[:batch], SEEDS[:batch], sampler, 8, negative, size=size)
    own = our_run(ours, batch, sampler, 8, negative or "", size=size)
    assert len(own) == len(theirs) == 8 + (sampler == "pndm")
    for i, (a, b) in enumerate(zip(own, theirs, strict=True)):
        assert torch.equal(a, b), f"evaluation {i}: {(a - b).abs().max()}"


@torch.no_grad()
def test_the_picture_is_that_of_the_reference(pipes):
    reference, ours = pipes
    _, pictures = xl_run(reference, PROMPTS[:1], SEEDS[:1], "ddim", 8, output="pt")
    picture = ours.decode(our_run(ours, 1, "ddim", 8)[-1])
    assert torch.equal((picture / 2 + 0.5).clamp(0, 1), pictures)


def test_with_eulers_method_the_latents_are_the_references_but_for_rounding(pipes):
    """diffusers keeps x at the scale of k-diffusion, and we at unit variance."""
    reference, ours = pipes
    theirs, _ = xl_run(reference, PROMPTS[:2], SEEDS[:2], "euler", 8)
    own = our_run(ours, 2, "euler", 8)
    apart = (own[-1] - theirs[-1]).abs().max() / theirs[-1].abs().max()
    assert apart < 1e-3


@pytest.mark.parametrize("config", [STRONG, MAX])
@torch.no_grad()
def test_sld_on_it_is_our_rule_in_diffusers_loop(pipes, config):
    """The plain loop: three rows of diffusers' UNet, the rule, diffusers' scheduler."""
    reference, ours = pipes
    config = replace(config, guidance_scale=5.0)
    tokens, zeros, pooled, zeros_pooled = reference.encode_prompt(PROMPTS[:2], device="cpu")
    concept, _, concept_pooled, _ = reference.encode_prompt(CONCEPT, device="cpu", do_classifier_free_guidance=False)
    tokens = torch.cat([zeros, tokens, concept.expand_as(tokens)])
    told = {
        "text_embeds": torch.cat([zeros_pooled, pooled, concept_pooled.expand_as(pooled)]),
        "time_ids": torch.tensor([[16, 16, 0, 0, 16, 16]]).repeat(6, 1),
    }
    xl_run(reference, PROMPTS[:1], SEEDS[:1], "ddim", 8)
    scheduler = type(reference.scheduler).from_config(reference.scheduler.config)
    scheduler.set_timesteps(8)
    x = torch.cat([torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(seed)) for seed in SEEDS[:2]])
    nu, params = torch.zeros_like(x), config.params(8)
    theirs = []
    for i, t in enumerate(scheduler.timesteps):
        rows = Predictions(*reference.unet(torch.cat([x] * 3), t, tokens, added_cond_kwargs=told).sample.chunk(3))
        eps, nu = safe_latent_guidance(rows, nu, i, params)
        x = scheduler.step(eps, t, x).prev_sample
        theirs.append(x)

    own = our_run(ours, 2, "ddim", 8, guidance=SafeLatentGuidance(config))

    for a, b in zip(own, theirs, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("numerics", ["invariant", "fast"])
def test_the_faster_numerics_differ_by_rounding(pipes, numerics):
    _, ours = pipes
    guidance = SafeLatentGuidance(replace(STRONG, guidance_scale=2.0))
    plain = our_run(ours, 2, "ddim", 4, guidance=guidance)[-1]
    other = our_run(replace(ours, numerics=numerics), 2, "ddim", 4, guidance=guidance)[-1]
    assert (plain - other).abs().max() < 1e-3 * plain.abs().max()


def test_an_image_has_the_same_bits_in_any_batch(pipes):
    ours = replace(pipes[1], numerics="invariant")
    guidance = SafeLatentGuidance(replace(STRONG, guidance_scale=5.0))
    alone, among = (our_run(ours, batch, "ddim", 6, guidance=guidance)[-1] for batch in (1, 3))
    assert torch.equal(alone[0], among[0])


def test_it_is_converted_to_a_single_file_and_back_to_a_folder_of_diffusers(pipes, tmp_path):
    """Mutants that failed here: OpenCLIP's projection not transposed, no second tokenizer."""
    reference, ours = pipes
    convert(ours.source.path, tmp_path / "single.safetensors", "compvis")
    stored = load_file(tmp_path / "single.safetensors")["conditioner.embedders.1.model.text_projection"]
    assert torch.equal(stored, reference.text_encoder_2.text_projection.weight.T)  # OpenCLIP has it from the left
    shutil.copytree(ours.source.path / "tokenizer", tmp_path / "tokenizer")
    convert(tmp_path / "single.safetensors", tmp_path / "folder", "diffusers")
    assert "every key is accounted for" in str(inspect(tmp_path / "folder"))

    again = StableDiffusionXLPipeline.from_pretrained(tmp_path / "folder", add_watermarker=False)
    again.set_progress_bar_config(disable=True)
    theirs, _ = xl_run(reference, PROMPTS[:1], SEEDS[:1], "ddim", 3)
    kept, _ = xl_run(again, PROMPTS[:1], SEEDS[:1], "ddim", 3)
    # not equal: a matrix that diffusers maps from the file rounds a single row by where it lies there
    assert (kept[-1] - theirs[-1]).abs().max() < 1e-4
    for key, values in reference.text_encoder_2.state_dict().items():
        assert torch.equal(again.text_encoder_2.state_dict()[key], values)


def test_sdxls_relatives_are_refused_or_named(pipes, tmp_path):
    """A folder with EDM's scheduler (Playground 2.5) and a refiner's single file."""
    shutil.copytree(pipes[1].source.path, tmp_path / "playground")
    for name in ("scheduler/scheduler_config.json", "model_index.json"):
        path = tmp_path / "playground" / name
        path.write_text(path.read_text().replace("EulerDiscreteScheduler", "EDMDPMSolverMultistepScheduler"))
    with pytest.raises(CheckpointError, match=r"_class_name is 'EDMDPMSolverMultistepScheduler', expected one of"):
        inspect(tmp_path / "playground")
    save_file({"conditioner.embedders.0.model.ln_final.weight": torch.ones(2)}, tmp_path / "refiner.safetensors")
    with pytest.raises(CheckpointError, match="refiner"):
        inspect(tmp_path / "refiner.safetensors")


def test_it_is_evaluated_as_any_other_model(pipes, tmp_path):
    command = ["evaluate", "--checkpoint", str(pipes[1].source.path), "--prompts", "mini-i2p", "--first", "2"]
    command += ["--images", "1", "--steps", "2", "--size", "64", "--presets", "off,strong", "--classifier", "embedded"]
    main([*command, "--out", str(tmp_path / "run")])
    results = read_results(tmp_path / "run")
    assert {(r.configuration, r.row) for r in results.records} == {(c, k) for c in ("off", "strong") for k in (0, 1)}
    assert all("embedded" in r.verdicts for r in results.records)
