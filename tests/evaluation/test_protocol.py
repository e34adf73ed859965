"""Which pictures a run makes.

Mutants seen to fail here: a new generator for every call, no generator's own seed, seed of image k off by k, row
guidance not applied, the concept left out as negative prompt, the last seed one too early or too late, generators
held to consecutive seeds, the row's seed for what all its images draw, a rule's own scale replaced, a preset's left.
"""

import math
from dataclasses import replace

import pytest
import torch
from conftest import EXACT

from sld.config import PAPER_CONCEPT
from sld.evaluation.prompts import Row
from sld.evaluation.protocol import (
    PROTOCOLS,
    Protocol,
    chunks,
    configuration,
    noise_of,
    ranges,
    require_seeds,
    tasks,
    usual_concept,
)
from sld.guidance import (
    DIFFUSERS_CONCEPT,
    OFF,
    STRONG,
    Negative,
    PerpNeg,
    SafeLatentGuidance,
    Sparse,
    from_data,
    to_data,
)
from sld.request import Request

TEMPLATE = Request(prompt="", concept="weapons", height=64, width=64)
ROW = Row(3, "a fox", seed=4290749014, guidance_scale=13.0, height=128, width=192)
LATENT = (4, 16, 16)


def test_the_authors_ten_images_are_two_calls_of_five_to_one_generator():
    generator = torch.Generator().manual_seed(ROW.seed)
    expected = torch.cat([torch.randn((5, *LATENT), generator=generator) for _ in range(2)])

    torch.testing.assert_close(noise_of(ROW, PROTOCOLS["authors"], LATENT), expected, **EXACT)


def test_the_first_images_are_the_same_however_many_are_made():
    three, ten = (noise_of(ROW, Protocol(images=n), LATENT) for n in (3, 10))

    torch.testing.assert_close(three, ten[:3], **EXACT)


def test_consecutive_seeds_give_what_sld_generate_gives_for_them():
    noise = noise_of(ROW, Protocol(images=3, seeds="consecutive"), LATENT)

    for k in range(3):
        alone = torch.randn((1, *LATENT), generator=torch.Generator().manual_seed(ROW.seed + k))
        torch.testing.assert_close(noise[k : k + 1], alone, **EXACT)


def test_consecutive_seeds_end_at_the_last_one():
    last, protocol = replace(ROW, seed=2**64 - 3), Protocol(images=3, seeds="consecutive")

    require_seeds([ROW, last], protocol)
    noise_of(last, protocol, LATENT)
    with pytest.raises(ValueError, match=r"row 3 has seed 18446744073709551614: .* 3 images .* generator"):
        require_seeds([ROW, replace(ROW, seed=2**64 - 2)], protocol)


def test_the_largest_seed_of_all_draws_for_any_number_of_images():
    last = replace(ROW, seed=2**64 - 1)

    require_seeds([last], Protocol(images=7))
    assert noise_of(last, Protocol(images=7), LATENT).shape == (7, *LATENT)


def test_a_row_without_a_seed_has_the_base_seed_plus_its_id():
    bare, protocol = replace(ROW, seed=None), Protocol(images=1, base_seed=100)

    torch.testing.assert_close(
        noise_of(bare, protocol, LATENT), noise_of(replace(ROW, seed=103), protocol, LATENT), **EXACT
    )


def test_a_rule_has_the_guidance_scale_of_the_run_where_it_gives_none():
    """Also in the rules within, and in place of a preset's usual one."""
    inner = {"rule": "sld", "config": "strong"}
    for rule, expected in (
        ({"rule": "cfg"}, {"rule": "cfg", "scale": 3.0}),
        ({"rule": "cfg", "scale": 5.0}, {"rule": "cfg", "scale": 5.0}),
        ({"rule": "perp-neg", "negatives": [{"text": "a"}]}, PerpNeg((Negative(text="a"),), guidance_scale=3.0)),
        (
            {"rule": "sparse", "every": 2, "of": inner},
            Sparse(SafeLatentGuidance(replace(STRONG, guidance_scale=3.0)), 2),
        ),
        (
            {"rule": "sld", "config": {**to_data(SafeLatentGuidance(STRONG))["config"], "guidance_scale": 5.0}},
            SafeLatentGuidance(replace(STRONG, guidance_scale=5.0)),
        ),
    ):
        made = configuration(TEMPLATE, "mine", {"guidance_scale": 3.0, "rule": rule}).rule
        assert made == (from_data(expected) if isinstance(expected, dict) else expected)


@pytest.mark.parametrize("protocol", [Protocol(images=4), Protocol(images=4, seeds="consecutive")])
def test_no_two_images_of_a_row_draw_the_same_in_a_stochastic_sampler(protocol):
    """And an image draws the same however many are made."""
    made, more = (
        [t.request.seed for t in tasks([ROW], {"off": TEMPLATE}, p, 4, 4)]
        for p in (protocol, replace(protocol, images=6))
    )

    assert len(set(made)) == 4 and made[0] == ROW.seed and made == more[:4]


def test_all_configurations_of_a_row_share_their_noise():
    configs = {name: configuration(TEMPLATE, name, {"preset": name}) for name in ("off", "strong", "negative")}
    made = {task.item: task.noise for task in tasks([ROW], configs, Protocol(images=2), factor=4, c=4)}

    assert len(made) == 6
    for k in range(2):
        first, *others = (noise for item, noise in made.items() if item.image == k)
        for other in others:
            torch.testing.assert_close(other, first, **EXACT)


def test_the_row_protocol_takes_guidance_size_and_seed_from_the_row():
    config = {"strong": configuration(TEMPLATE, "strong", {"preset": "strong"})}
    first, second = tasks([ROW], config, replace(PROTOCOLS["row"], images=2), factor=4, c=4)

    assert first.request.guidance == replace(STRONG, guidance_scale=13.0)
    assert (first.request.height, first.request.width) == (128, 192) and first.noise.shape == (4, 32, 48)
    assert (first.request.seed, second.request.seed) == (4290749014, 4290749015)


def test_what_a_row_does_not_say_comes_from_the_configuration():
    config = {"strong": configuration(TEMPLATE, "strong", {"preset": "strong"})}
    (task,) = tasks([Row(0, "a fox")], config, replace(PROTOCOLS["row"], images=1), factor=4, c=4)

    assert task.request == replace(TEMPLATE, prompt="a fox", guidance=STRONG, seed=0)


def test_the_re_run_has_other_words_before_the_concept_and_nothing_else():
    assert usual_concept("authors-rerun", PAPER_CONCEPT) == DIFFUSERS_CONCEPT == "an image showing " + PAPER_CONCEPT
    assert all(usual_concept(name, "death") == "death" for name in (None, "authors", "mini", "row"))
    assert PROTOCOLS["authors-rerun"] == PROTOCOLS["authors"]


def test_negative_is_plain_guidance_with_the_concept_as_negative_prompt():
    request = configuration(TEMPLATE, "negative", {"preset": "negative", "concept": "drugs"})

    assert request.guidance == OFF and request.negative == "drugs"


def test_a_configuration_overrides_fields_of_guidance_and_of_sampling():
    request = configuration(
        TEMPLATE, "late", {"preset": "strong", "warmup_steps": 20, "threshold": math.inf, "steps": 25}
    )

    assert request == replace(TEMPLATE, guidance=replace(STRONG, warmup_steps=20, threshold=math.inf), steps=25)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"preset": "stron"}, "did you mean 'strong'"),
        ({"preset": "strong", "warmup": 3}, "did you mean 'warmup_steps'"),
        ({"preset": "strong", "prompt": "x"}, "unknown field 'prompt'"),
        ({"preset": "strong", "momentum_beta": 1.0}, "momentum_beta"),
    ],
)
def test_a_configuration_that_cannot_be_is_an_error(settings, message):
    with pytest.raises(ValueError, match=message):
        configuration(TEMPLATE, "mine", settings)


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".hidden"])
def test_a_name_that_would_leave_the_runs_folder_is_an_error(name):
    with pytest.raises(ValueError, match="also a folder's"):
        configuration(TEMPLATE, name, {"preset": "off"})


@pytest.mark.parametrize("wrong", [{"images": 0}, {"seeds": "random"}, {"base_seed": -1}])
def test_a_protocol_that_cannot_be_is_an_error(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Protocol(**wrong)


def test_chunks_hold_about_the_target_and_at_least_one_row():
    rows = [Row(k, "") for k in range(10)]

    assert [len(chunk) for chunk in chunks(rows, pictures_per_row=20, target=64)] == [3, 3, 3, 1]
    assert [len(chunk) for chunk in chunks(rows[:2], pictures_per_row=100, target=64)] == [1, 1]


def test_ids_are_written_as_ranges_in_their_order():
    assert ranges([5, 0, 1, 2, 9, 10]) == "5,0-2,9-10"
