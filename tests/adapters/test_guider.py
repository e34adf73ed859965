"""Our rules as a guider in diffusers' modular pipelines, whole runs of them, against one call of the network per row.

Mutants that failed here: the concept's pooled text left as the prompt's, sizes taken from the recording, uncond and
text swapped, the state kept from run to run, noise drawn from torch's own generator, idle rows evaluated, 1 - sigma and
sigma swapped, no least 1 - sigma, a sign lost in x0, tokens taken for channels, rules in half precision, arguments
without a name left out of the config, a list given to one image only, each refusal left out.
"""

import json
from dataclasses import replace

import pytest
import torch
from diffusers import ClassifierFreeGuidance as TheirGuidance
from diffusers.modular_pipelines.modular_pipeline import BlockState
from PIL import Image
from reference_modular import KINDS, NEGATIVE, PROMPTS, STEPS, modular, separate_run

from sld.adapters.diffusers import RuleGuider
from sld.guidance import (
    APG,
    DEFAULT_CONCEPT,
    MEDIUM,
    SEGA,
    WEAK,
    ClassifierFreeGuidance,
    Composed,
    Concept,
    DynamicNegativeGuidance,
    Edit,
    SafeLatentConcepts,
    SafeLatentGuidance,
    Unguided,
    to_data,
)
from sld.testbed.vocabulary import write_tokenizer

SLD = SafeLatentGuidance(replace(MEDIUM, warmup_steps=2))
CONCEPTS = SafeLatentConcepts(
    (Concept(text="weapons", warmup_steps=1), Concept(text="a cemetery", weight=2.0)), "select"
)
SPACES = ["v", "eps", "x0"]

pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated")


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    folder = tmp_path_factory.mktemp("words")
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def pipes(words):
    """Stock and modular pipeline with the same parts, by kind."""
    made = {}
    for kind, (stock, blocks, _, _) in KINDS.items():
        pipe = stock(words)
        made[kind] = pipe, modular(pipe, blocks)
    return made


def x_of(seed=0, batch=1):
    return torch.randn(batch, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def guided_run(pipe, kind, guider, prompts=PROMPTS[:1], steps=STEPS, **inputs):
    pipe.update_components(guider=guider)
    own = KINDS[kind][-1]
    if isinstance(guider, RuleGuider):
        guider.encode(pipe, **own)
    inputs = {"negative_prompt": [NEGATIVE] * len(prompts), "height": 16, "width": 16} | own | inputs
    return pipe(
        prompt=prompts,
        latents=x_of(batch=len(prompts)),
        num_inference_steps=steps,
        output_type="latent",
        output="latents",
        **inputs,
    )


def rows_of(stock, kind, rule, prompt=PROMPTS[0], concept=DEFAULT_CONCEPT):
    texts = {"uncond": NEGATIVE, "text": prompt}
    return KINDS[kind][2](stock, [texts.get(name) or rule.texts.get(name, concept) for name in rule.conditions])


@pytest.mark.parametrize(
    ("rule", "steps"), [(SLD, 12), (CONCEPTS, 4), (Unguided(), 2)], ids=["SLD", "concepts", "unguided"]
)
@pytest.mark.parametrize("kind", list(KINDS))
def test_a_modular_run_is_separate_calls_and_the_rule(pipes, kind, rule, steps):
    stock, pipe = pipes[kind]

    ours = guided_run(pipe, kind, RuleGuider(rule), steps=steps)

    assert torch.equal(ours, separate_run(stock, rows_of(stock, kind, rule), rule, x_of(), steps))


@pytest.mark.parametrize("kind", list(KINDS))
def test_classifier_free_guidance_is_that_of_diffusers(pipes, kind):
    _, pipe = pipes[kind]

    theirs = guided_run(pipe, kind, TheirGuidance(guidance_scale=5.0), PROMPTS, steps=6)
    ours = guided_run(pipe, kind, RuleGuider(ClassifierFreeGuidance(5.0)), PROMPTS, steps=6)

    assert torch.equal(ours, theirs)


def test_a_guider_that_is_switched_off_follows_the_text(pipes):
    _, pipe = pipes["SD 3"]
    off = RuleGuider(SLD, enabled=False)
    assert off.num_conditions == 1
    unguided = guided_run(pipe, "SD 3", RuleGuider(Unguided()), steps=3)
    assert torch.equal(guided_run(pipe, "SD 3", off, steps=3), unguided)


def test_runs_follow_one_another_and_images_stand_side_by_side(pipes):
    """A run begins anew whatever ran before, also where that was cut off. A smooth mask does not blow up rounding."""
    stock, pipe = pipes["SD 3"]
    guider = RuleGuider(SafeLatentGuidance(replace(SLD.config, safety_scale=1, threshold=1.0)))
    both = guided_run(pipe, "SD 3", guider, PROMPTS, steps=5)
    calls = iter(range(7))
    hook = stock.transformer.register_forward_hook(lambda *_: (next(calls), None)[1])
    with pytest.raises(StopIteration):
        guided_run(pipe, "SD 3", guider, PROMPTS, steps=5)
    hook.remove()

    assert torch.equal(guided_run(pipe, "SD 3", guider, PROMPTS, steps=5), both)
    torch.testing.assert_close(guided_run(pipe, "SD 3", guider, PROMPTS[:1], steps=5), both[:1], rtol=1e-3, atol=1e-3)


def test_the_size_is_told_with_the_picture_and_not_with_the_concept(pipes):
    """SDXL's network is told sizes; a guider that was encoded at another size gives the same latents."""
    stock, pipe = pipes["SDXL"]
    told = {"original_size": (24, 40), "target_size": (24, 40)}

    ours = guided_run(pipe, "SDXL", RuleGuider(SLD), **told)

    rows = KINDS["SDXL"][2](stock, [NEGATIVE, PROMPTS[0], DEFAULT_CONCEPT], size=(24, 40))
    assert torch.equal(ours, separate_run(stock, rows, SLD, x_of()))


def test_a_config_is_saved_and_loaded(tmp_path, pipes):
    _, pipe = pipes["SD 3"]
    guider = RuleGuider(CONCEPTS, space="x0")
    guider.save_pretrained(tmp_path)
    held = json.loads((tmp_path / "guider_config.json").read_text())
    loaded = RuleGuider.from_pretrained(tmp_path)

    assert held["rule"] == to_data(CONCEPTS) and held["space"] == "x0"
    assert loaded.rule == CONCEPTS and guider.new(space="eps").config == loaded.new(space="eps").config
    assert torch.equal(guided_run(pipe, "SD 3", loaded), guided_run(pipe, "SD 3", guider))
    with pytest.raises(ValueError, match=r"RuleGuider: no rule 'sdl'.*did you mean 'sld'"):
        RuleGuider({"rule": "sdl"})


def test_the_random_numbers_of_the_user_are_left_alone(pipes):
    _, pipe = pipes["SD 3"]
    pipe.update_components(guider=(guider := RuleGuider(SLD)))
    torch.manual_seed(3)
    before = torch.get_rng_state()
    guider.encode(pipe, **KINDS["SD 3"][-1])
    assert torch.equal(torch.get_rng_state(), before)


def test_a_run_from_a_picture_is_guided(pipes):
    """encode goes as far as the network, although a few steps at this strength would be none."""
    _, pipe = pipes["SDXL"]
    picture = Image.new("RGB", (16, 16), "red")
    inputs = {"image": picture, "strength": 0.3, "num_inference_steps": 7, "height": 16, "width": 16}
    made = []
    for rule in (SLD, ClassifierFreeGuidance(7.5)):
        pipe.update_components(guider=(guider := RuleGuider(rule)))
        guider.encode(pipe, image=picture)
        noise = torch.Generator().manual_seed(1)
        made.append(pipe(prompt=PROMPTS[0], generator=noise, output_type="latent", output="latents", **inputs))
    assert made[0].shape == (1, 4, 8, 8)
    assert torch.equal(*made), "two evaluations are all in the warm-up"


def test_idle_rows_are_not_evaluated(pipes):
    stock, pipe = pipes["SD 3"]
    rule = SafeLatentGuidance(replace(WEAK, warmup_steps=3))
    calls = []
    hook = stock.transformer.register_forward_hook(lambda *_: calls.append(1))
    ours = guided_run(pipe, "SD 3", RuleGuider(rule), steps=5)
    hook.remove()

    assert len(calls) == 3 * 2 + 2 * 3
    assert torch.equal(ours, separate_run(stock, rows_of(stock, "SD 3", rule), rule, x_of(), 5))


def fed(guider, t, predictions, step=0):
    """The guided prediction of a guider that was handed these predictions, by condition."""
    guider._concepts = {name: {} for name in guider.texts}
    guider.set_state(step, 10, torch.tensor(t))
    batches = guider.prepare_inputs({"tokens": (torch.ones(1), torch.zeros(1))})
    for name, batch in zip(guider._asked, batches, strict=True):
        batch.noise_pred = predictions[name]
    return guider(batches).pred


def predictions(shape=(2, 4, 8, 8), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) * 0.05 for name in ("uncond", "text", "safety")}


@pytest.mark.parametrize("t", [1000.0, 700.0, 5.0])
@pytest.mark.parametrize("space", ["eps", "x0"])
def test_a_space_is_read_from_v_as_its_equation_says(space, t):
    """eps = x + (1 - sigma) v and x0 = x - sigma v, guided, and turned back; 1 - sigma is at least a timestep."""
    rule, v, x, sigma = (
        SafeLatentGuidance(replace(MEDIUM, warmup_steps=0)),
        predictions(),
        x_of(9, 2).double(),
        t / 1000,
    )
    a = max(1 - sigma, 1e-3) if space == "eps" else -sigma
    rows = rule.named([x + a * v[name].double() for name in rule.conditions])
    guided, _ = rule(rows, rule.init(x), 0, rule.params(10, 2, dtype=torch.float64))

    torch.testing.assert_close(
        fed(RuleGuider(rule, space=space), t, v).double(), (guided - x) / a, rtol=1e-4, atol=1e-5
    )


def test_the_space_matters_for_safety_alone():
    v = predictions()
    for rule, alike in (
        (ClassifierFreeGuidance(7.5), True),
        (SafeLatentGuidance(replace(MEDIUM, warmup_steps=0)), False),
    ):
        raw, *others = (fed(RuleGuider(rule, space=space), 400.0, v) for space in SPACES)
        for other in others:
            assert torch.allclose(raw, other, atol=1e-5) == alike


def test_tokens_and_frames_are_guided_as_images():
    """SEGA counts elements by image and channel."""
    rule = SEGA((Edit(text="a cemetery", warmup_steps=0),))
    shape = (2, 3, 4, 5)
    images = predictions(shape)
    images["concept 0"] = images.pop("safety")
    whole = fed(RuleGuider(rule), 500.0, images)
    tokens = fed(RuleGuider(rule), 500.0, {name: p.flatten(2).mT for name, p in images.items()})
    frames = fed(RuleGuider(rule), 500.0, {name: p.reshape(2, 3, 2, 2, 5) for name, p in images.items()})

    torch.testing.assert_close(tokens, whole.flatten(2).mT)
    assert torch.equal(frames, whole.reshape(2, 3, 2, 2, 5))


def test_half_precision_is_guided_in_float32():
    v = {name: p.bfloat16() for name, p in predictions().items()}
    pred = fed(RuleGuider(SLD), 500.0, v, step=5)
    assert pred.dtype == torch.bfloat16
    assert torch.equal(pred, fed(RuleGuider(SLD), 500.0, {n: p.float() for n, p in v.items()}, step=5).bfloat16())


def test_pipelines_that_name_fields_of_their_state_are_served():
    guider = RuleGuider(SLD)
    concept = {"tokens": torch.full((1, 3), 7.0), "mask": [torch.ones(2)]}
    guider._concepts = {"safety": concept}
    guider.set_state(5, 10, torch.tensor(500.0))
    state = BlockState(
        embeds=torch.ones(2, 4),
        negative=torch.zeros(2, 4),
        image="shared",
        masks=[torch.ones(3)] * 2,
        negative_masks=[],
    )
    fields = {"tokens": ("embeds", "negative"), "mask": ("masks", "negative_masks"), "image": "image"}
    batches = guider.prepare_inputs_from_block_state(state, fields)
    conditional = []
    for _ in batches:
        guider.prepare_models(None)
        conditional.append(guider.is_conditional)

    text, uncond, safety = batches
    assert text.tokens is state.embeds and uncond.tokens is state.negative and conditional == [True, False, True]
    assert safety.tokens.shape == (2, 3) and (safety.tokens == 7).all() and len(safety.mask) == 2
    assert {batch.image for batch in batches} == {"shared"}


def test_what_cannot_be_guided_is_refused(pipes):
    xl, sd3 = pipes["SDXL"][1], pipes["SD 3"][1]
    with pytest.raises(ValueError, match=r"DynamicNegativeGuidance learns .* another rule"):
        RuleGuider(Composed(DynamicNegativeGuidance(negative="a ball"), end=0.5))
    with pytest.raises(ValueError, match=r"Composed: `after` .* space='v'"):
        RuleGuider(Composed(SLD, (APG(),)), space="x0")
    with pytest.raises(ValueError, match="no space 'eps0', there are v, eps, x0"):
        RuleGuider(SLD, space="eps0")
    guider = RuleGuider(SLD)
    guider.set_state(0, 10, torch.tensor(1000.0))
    with pytest.raises(ValueError, match="no unconditional text"):
        guider.prepare_inputs({"tokens": (torch.ones(1), None)})
    with pytest.raises(ValueError, match="update_components"):
        RuleGuider(SLD).encode(sd3)
    xl.update_components(guider=(guider := RuleGuider(SLD, space="eps")))
    with pytest.raises(ValueError, match="space='eps' is for flow models, this one has epsilon: take 'v'"):
        guider.encode(xl)
    sd3.update_components(guider=(guider := RuleGuider(SLD)))
    with pytest.raises(ValueError, match="does not know its safety yet: call guider"):
        sd3(prompt="a fox", negative_prompt="", num_inference_steps=1)
    with pytest.raises(ValueError, match="no unconditional text: give negative_prompt"):
        guider.encode(sd3)
        sd3(prompt="a fox", num_inference_steps=1)
