"""The safety row at every k-th evaluation.

Mutants seen to fail here: a look at i % k == 1, the difference kept from the text's prediction, the rule's own idle
rows believed at a look, the unconditional row left out where a look needs it, a difference forgotten in between.
"""

import pytest
import torch
from conftest import EXACT
from guided import STEPS, concept_rows, one_concept, run
from torch.testing import assert_close

import sld
from sld.guidance import (
    MAX,
    SEGA,
    STRONG,
    WEAK,
    ClassifierFreeGuidance,
    Composed,
    DynamicNegativeGuidance,
    Guidance,
    Predictions,
    SafeLatentConcepts,
    SafeLatentGuidance,
    Sparse,
)
from sld.guidance.concepts import ConceptPredictions
from sld.speed.rows import Rows

RULES: dict[str, Guidance] = {
    "weak": SafeLatentGuidance(WEAK),
    "strong": SafeLatentGuidance(STRONG),
    "concepts": SafeLatentConcepts.alike(["a", "b"], MAX),
    "sega": SEGA.safety("strong", ["a", "b"]),
    "interval": Composed(SafeLatentGuidance(STRONG), begin=0.25, end=0.75),
    "dynamic": DynamicNegativeGuidance("a"),
}


def split(rule: Guidance, steps: list[ConceptPredictions]) -> list:
    return [rule.named([e.uncond, e.text, *e.concepts]) for e in steps]


def rows_for(rule: Guidance) -> list[ConceptPredictions]:
    return concept_rows(len(rule.conditions) - 2, dtype=torch.float32)


@pytest.mark.parametrize("name", RULES)
def test_a_look_at_every_evaluation_changes_nothing(name: str):
    rule, steps = RULES[name], rows_for(RULES[name])
    assert_close(run(Sparse(rule, 1), steps), run(rule, split(rule, steps)), **EXACT)
    assert all(Sparse(rule, 1).idle(i, STEPS) <= rule.idle(i, STEPS) for i in range(STEPS))


@pytest.mark.parametrize("every", [2, 3])
def test_in_between_the_last_difference_stands(every: int):
    """The rows by hand: the concept's prediction of the last look, moved by what the unconditional one has moved."""
    steps = rows_for(RULES["strong"])
    expected = []
    for i, e in enumerate(one_concept(steps)):
        last = steps[i - i % every]
        expected.append(
            e if i % every == 0 else Predictions(e.uncond, e.text, e.uncond + (last.concepts[0] - last.uncond))
        )
    assert_close(run(Sparse(RULES["strong"], every), steps), run(RULES["strong"], expected), **EXACT)


@pytest.mark.parametrize("every", [1, 2, 3])
@pytest.mark.parametrize("name", RULES)
def test_an_idle_row_may_hold_anything(name: str, every: int):
    rule = Sparse(RULES[name], every)
    steps = rows_for(rule)
    swapped = []
    for i, e in enumerate(steps):
        rows = zip(rule.conditions, (e.uncond, e.text, *e.concepts), strict=True)
        kept = [e.text if c in rule.idle(i, STEPS) else row for c, row in rows]
        swapped.append(ConceptPredictions(kept[0], kept[1], tuple(kept[2:])))
    assert_close(run(rule, swapped), run(rule, steps), **EXACT)


def test_a_second_look_in_two_saves_a_third_of_the_rows_then():
    pipe = sld.load(numerics="fast")
    assert pipe.network_rows(Sparse(SafeLatentGuidance(STRONG)), 50) == Rows(150, 125)
    assert pipe.network_rows(Sparse(SafeLatentGuidance(STRONG), 3), 50) == Rows(150, 117)
    assert pipe.network_rows(Sparse(SafeLatentGuidance(WEAK)), 50) == Rows(150, 118)  # looks at 14, 16, ..., 48


def test_images_with_their_own_settings_share_a_batch():
    rule = SafeLatentGuidance((STRONG, MAX))
    steps = rows_for(rule)
    both = run(Sparse(rule), steps)
    for k, config in enumerate((STRONG, MAX)):
        alone = [ConceptPredictions(e.uncond[k : k + 1], e.text[k : k + 1], (e.concepts[0][k : k + 1],)) for e in steps]
        assert_close(both[:, k : k + 1], run(Sparse(SafeLatentGuidance(config)), alone), **EXACT)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="Sparse: every must be a whole number >= 1; got 0"):
        Sparse(RULES["strong"], 0)
    with pytest.raises(ValueError, match="ClassifierFreeGuidance has the rows uncond, text: Sparse needs"):
        Sparse(ClassifierFreeGuidance(7.5))
