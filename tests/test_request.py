"""Requests: what a picture is made from, as data.

Mutants that these tests were seen to fail: the reading dropped in `guidance_of`; the rule kept by `without_safety`; the
reading left out of the batch key.
"""

import json
from dataclasses import replace

import pytest
import torch

import sld
from sld.batching import batches, guidance_of, network_rows, run
from sld.guidance import (
    OFF,
    READINGS,
    SEGA,
    STRONG,
    WEAK,
    ClassifierFreeGuidance,
    PerpNeg,
    SafeLatentGuidance,
)
from sld.request import Request
from sld.speed.rows import Rows

PLAIN = Request("a fox", "unsafe", 64, 64, guidance=STRONG)
SEMANTIC = replace(PLAIN, rule=SEGA.safety("strong", ["weapons"]))


@pytest.mark.parametrize("request_", [PLAIN, replace(PLAIN, reading="clamp as printed"), SEMANTIC])
def test_a_request_comes_back_from_json(request_):
    assert Request.from_dict(json.loads(json.dumps(request_.to_dict()))) == request_


def test_the_usual_request_says_nothing_of_readings_and_rules():
    assert not {"reading", "rule"} & set(PLAIN.to_dict())


def test_an_unknown_reading_is_an_error_with_a_suggestion():
    with pytest.raises(ValueError, match="clamp as printed"):
        replace(PLAIN, reading="clamp as print")


def test_a_reading_changes_the_equations_and_a_rule_takes_their_place():
    assert guidance_of([replace(PLAIN, reading="clamp as printed")]) == SafeLatentGuidance(
        STRONG, READINGS["clamp as printed"]
    )
    assert guidance_of([SEMANTIC]) is SEMANTIC.rule


def test_without_safety_nothing_is_left_of_reading_and_rule():
    for request in (SEMANTIC, replace(PLAIN, reading="clamp as printed")):
        assert guidance_of([request.without_safety()]) == ClassifierFreeGuidance(STRONG.guidance_scale)


def test_only_requests_of_one_rule_and_reading_share_a_batch():
    plain = PLAIN.without_safety()
    requests = [
        PLAIN,
        replace(PLAIN, guidance=replace(STRONG, threshold=0.1)),
        replace(PLAIN, reading="clamp as printed"),
        SEMANTIC,
        replace(PLAIN, rule=PerpNeg(())),
        plain,
        replace(plain, reading="clamp as printed"),
        replace(plain, guidance=replace(plain.guidance, guidance_scale=1.0)),
    ]
    assert sorted(map(sorted, batches(requests))) == [[0, 1, 5, 6], [2], [3], [4], [7]]


def test_requests_that_begin_alike_stay_in_one_batch():
    requests = [replace(PLAIN, prompt=p, guidance=g) for g in (STRONG, WEAK, OFF) for p in ("a fox", "a pig", "an owl")]
    alike = [[k for k, r in enumerate(requests) if r.prompt == p] for p in ("a fox", "a pig", "an owl")]
    assert batches(requests, 4) == alike
    assert batches(requests, 6) == [alike[0] + alike[1], alike[2]]
    assert [len(batch) for batch in batches(requests, 2)] == [2, 1, 2, 1, 2, 1]


def test_images_of_one_request_are_each_with_their_counterparts():
    strong, weak = PLAIN, replace(PLAIN, guidance=WEAK)
    assert batches([strong, strong, weak, weak], 2) == [[0, 2], [1, 3]]


@pytest.mark.parametrize("size", [None, 2])
def test_rows_that_are_counted_are_those_that_the_network_computes(size):
    """Mutants: images of one request taken for one image; the batch's size left out."""
    pipe = sld.load(numerics="fast")
    base = replace(PLAIN, sampler="ddim", steps=4)
    configs = [replace(WEAK, warmup_steps=2), replace(STRONG, warmup_steps=1), OFF]
    requests = [replace(base, guidance=config) for config in configs for _ in range(2)] + [replace(base, prompt="")]
    noise = [torch.full((4, 16, 16), 0.1 * (k % 2)) for k in range(len(requests))]
    computed = 0

    def seen(module, inputs, output):
        nonlocal computed
        computed += len(inputs[0])

    handle = pipe.unet.norm_out.register_forward_hook(seen)
    try:
        for members in batches(requests, size):
            run(pipe, [requests[k] for k in members], noise=[noise[k] for k in members])
    finally:
        handle.remove()
    counted = network_rows(pipe, requests, size)
    assert counted == Rows(4 * (2 * (3 + 3 + 2) + 3), computed)
    assert counted.computed < counted.asked
