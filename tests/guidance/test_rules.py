import json
import math
import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import EXACT, NETWORK
from documents import ROOT, examples
from guided import concept_rows, contrast, run
from torch.testing import assert_close

from sld import guidance
from sld.guidance import (
    APG,
    MAX,
    RULES,
    SEGA,
    STRONG,
    WEAK,
    ClassifierFreeGuidance,
    Composed,
    Concept,
    DynamicNegativeGuidance,
    Edit,
    Guidance,
    Negative,
    PerpNeg,
    Rescale,
    SafeLatentConcepts,
    SafeLatentGuidance,
    Sparse,
    Traced,
    Unguided,
    from_data,
    safe_latent_guidance,
    to_data,
)
from sld.guidance.readings import clamp_as_printed, warmup_inclusive, warmup_without_momentum
from sld.guidance.rules import AFTERWARDS, READINGS

# Every class, and every field away from its default somewhere.
EXAMPLES: dict[str, Guidance] = {
    "unguided": Unguided(),
    "cfg": ClassifierFreeGuidance(5.0),
    "cfg per image": ClassifierFreeGuidance((5.0, 7.5)),
    "sld": SafeLatentGuidance(replace(STRONG, warmup_fraction=0.2, guidance_scale=6.0)),
    "sld per image": SafeLatentGuidance((WEAK, MAX)),
    "concepts": SafeLatentConcepts(
        (
            Concept(text="a", weight=0.5, safety_scale=3.0, threshold=0.2, warmup_steps=4),
            Concept(text="b", warmup_fraction=0.3),
        ),
        combination="select",
        momentum_scale=0.1,
        momentum_beta=0.2,
        guidance_scale=9.0,
    ),
    "sega": SEGA(
        (
            Edit(text="a", direction="towards", scale=3.0, threshold=0.8, weight=2.0),
            Edit(text="b", warmup_steps=2, cooldown_steps=20),
        ),
        momentum_scale=0.6,
        momentum_beta=0.7,
        guidance_scale=8.0,
    ),
    "perp-neg": PerpNeg((Negative(text="a", weight=0.4), Negative(text="b")), guidance_scale=3.0),
    "dynamic": DynamicNegativeGuidance("a", 2.0, 5.0, 0.1, 0.4, 0.01, 1e-4, 0.7),
    "composed": Composed(SEGA.safety("strong", ["a"]), (Rescale(0.5), APG(0.1, 3.0, -0.2)), begin=0.1, end=0.8),
    "sparse": Sparse(SafeLatentGuidance(STRONG), 3),
    **{f"sld {name}": SafeLatentGuidance(STRONG, reading) for name, reading in READINGS.items()},
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_rule_survives_a_trip_through_json(name: str):
    """Killed by: a rule without its name, zero taken for nothing, tuples written, lists read."""
    data = to_data(EXAMPLES[name])
    read = json.loads(json.dumps(data, allow_nan=False))
    assert read == data
    assert from_data(read) == EXAMPLES[name]


def test_every_rule_and_afterwards_has_an_example():
    assert {type(rule) for rule in EXAMPLES.values()} == set(RULES.values())
    composed = EXAMPLES["composed"]
    assert isinstance(composed, Composed)
    assert {type(after) for after in composed.after} == set(AFTERWARDS.values())


def test_every_concrete_rule_of_the_package_has_a_name():
    def below(cls: type) -> set[type]:
        return {cls, *(c for sub in cls.__subclasses__() for c in below(sub))}

    concrete = {c for c in below(Guidance) if not c.__abstractmethods__ and c.__module__.startswith("sld.guidance")}
    assert {c for c in concrete if not c.__module__.startswith("sld.guidance.trace")} == set(RULES.values())


def test_a_rule_is_read_from_toml():
    rule = from_data(
        tomllib.loads(
            """
            rule = "composed"
            after = [{ rule = "rescale", phi = 0.5 }]
            end = 0.9

            [of]
            rule = "concepts"
            combination = "maximum"

            [[of.concepts]]
            text = "weapons"

            [[of.concepts]]
            text = "blood"
            weight = 2.0
            """
        )
    )
    concepts = (Concept(text="weapons"), Concept(text="blood", weight=2.0))
    assert rule == Composed(SafeLatentConcepts(concepts, "maximum"), (Rescale(0.5),), end=0.9)


def test_sld_may_be_given_a_preset_by_name():
    assert from_data({"rule": "sld", "config": "strong"}) == SafeLatentGuidance(STRONG)
    assert from_data({"rule": "sld", "config": ["weak", "max"]}) == SafeLatentGuidance((WEAK, MAX))


def test_a_reading_of_sld_is_named_in_data():
    read = from_data({"rule": "sld", "config": "strong", "reading": "clamp as printed"})
    assert read == SafeLatentGuidance(STRONG, reading=clamp_as_printed)
    nested = {"rule": "sparse", "of": {"rule": "sld", "config": "strong", "reading": "code"}, "every": 3}
    assert from_data(nested) == Sparse(SafeLatentGuidance(STRONG), 3)


@pytest.mark.parametrize("name", ["concepts", "sega"])
def test_a_run_starts_as_the_rules_with_its_key_do(name: str):
    """Killed by: the last warm-up for the first, another key."""
    rule, steps = EXAMPLES[name], concept_rows(2, dtype=torch.float32)
    plain = ClassifierFreeGuidance(to_data(rule)["guidance_scale"])
    start = rule.start(len(steps))
    assert start.key == plain.start(len(steps)).key
    differs = (run(rule, steps) != run(plain, contrast(steps))).flatten(1).any(dim=1)
    assert differs.nonzero()[0] == start.until > 0


def test_readings_of_sld_are_called_what_they_are():
    """Killed by: one reading for another."""
    assert {
        "code": safe_latent_guidance,
        "clamp as printed": clamp_as_printed,
        "warm-up without momentum": warmup_without_momentum,
        "warm-up inclusive": warmup_inclusive,
    } == READINGS


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"scale": 5.0}, "does not say which rule it is: give 'rule', one of unguided, cfg"),
        ({"rule": "segaa"}, "no rule 'segaa', .*did you mean 'sega'"),
        ({"rule": "cfg", "scal": 5.0}, "rule 'cfg' has no field 'scal', it has scale; did you mean 'scale'"),
        ({"rule": "unguided", "scale": 5.0}, "rule 'unguided' has no field 'scale', it has none"),
        ({"rule": "concepts"}, "rule 'concepts': .*missing .*'concepts'"),
        ({"rule": "concepts", "concepts": ["weapons"]}, "a concept must be a table of its fields; got 'weapons'"),
        ({"rule": "concepts", "concepts": [{"text": "a", "treshold": 1}]}, "a concept has .*did you mean 'threshold'"),
        ({"rule": "sega", "concepts": [{"text": "a", "threshold": 2}]}, "Edit: threshold must be in"),
        ({"rule": "sld", "config": "stron"}, "no SLD preset 'stron', .*did you mean 'strong'"),
        ({"rule": "sld", "config": "weak", "reading": "cod"}, "no reading of SLD 'cod', .*did you mean 'code'"),
        ({"rule": "composed", "of": {"rule": "sdl", "config": "weak"}}, "no rule 'sdl'.*did you mean 'sld'"),
        (
            {"rule": "composed", "of": {"rule": "cfg"}, "after": [{"rule": "ap"}]},
            "no rule 'ap', there are rescale, apg",
        ),
        ({"rule": "composed", "of": {"rule": "unguided"}}, "there is no guidance to change"),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_reason(data: Mapping[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        from_data(data)


def test_a_rule_without_a_name_is_refused():
    with pytest.raises(ValueError, match="has no name in data; those with one are"):
        to_data(SafeLatentGuidance(STRONG, reading=lambda eps, momentum, i, p: (eps.text, momentum)))


@pytest.mark.parametrize("number", [3, 5, 6, 7, 8])
def test_an_equation_of_the_paper_stands_in_one_line(number: int):
    """Eq. 5 stands once more as the paper prints it, in `readings.py`."""
    folder = Path(guidance.__file__).parent
    text = "\n".join(path.read_text() for path in folder.rglob("*.py"))
    assert len(re.findall(rf"# Eq\. {number}$", text, flags=re.MULTILINE)) == 1


def test_importing_the_package_loads_no_torch():
    code = "import sys, sld; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_rule_that_contributing_shows_works_and_is_short():
    (code,) = examples(ROOT / "CONTRIBUTING.md", "A new rule")
    assert len(code.splitlines()) <= 40
    space: dict[str, Any] = {"__name__": "contributed"}
    exec(compile(code, "CONTRIBUTING.md", "exec", dont_inherit=True), space)
    rule = space["Bounded"]
    steps = contrast(concept_rows(0, dtype=torch.float32))
    assert_close(run(rule(bound=math.inf), steps), run(ClassifierFreeGuidance(7.5), steps), **EXACT)
    bounded = run(rule(guidance_scale=4.0, bound=0.25), steps) - torch.stack([e.uncond for e in steps])
    assert bounded.abs().max() == pytest.approx(1.0)
    traced = Traced(rule(guidance_scale=4.0, bound=0.25), len(steps))
    state, params = traced.init(steps[0].text), traced.params(len(steps), 2)
    for i, e in enumerate(steps):
        _, state = traced(traced.named(e), state, i, params)
    takes_off = [((e.text - e.uncond).abs() - 0.25).clamp(min=0).square().sum(1).sqrt() for e in steps]
    assert_close(state.trace.applied_map, torch.stack(takes_off), **NETWORK)
