"""Rules around another rule: what they hand on, and which of them can be traced."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple, final

import pytest
import torch
from conftest import EXACT
from guided import concept_rows, contrast, run
from torch.testing import assert_close

from sld.guidance import (
    MAX,
    SEGA,
    STRONG,
    CFGParams,
    CFGPredictions,
    ClassifierFreeGuidance,
    Composed,
    DynamicNegativeGuidance,
    Guidance,
    SafeLatentConcepts,
    SafeLatentGuidance,
    Sparse,
    Stateless,
    Traceable,
    Traced,
    Wrapping,
    guided,
)
from sld.samplers import Level

STEPS = 6
CONCEPTS = SafeLatentConcepts.alike(["a", "b"], MAX)


class OnlyRule(NamedTuple):
    """State or parameters of `Plain`: those of the inner rule."""

    rule: NamedTuple


@final
@dataclass(frozen=True)
class Plain(Wrapping[Any, OnlyRule, OnlyRule]):
    """A rule around another one that changes nothing."""

    def params(self, steps, batch, device=None, dtype=torch.float32):
        return OnlyRule(self.rule.params(steps, batch, device, dtype))

    def init(self, x):
        return OnlyRule(self.rule.init(x))

    def __call__(self, rows, state, i, params):
        eps_hat, after = self.rule(rows, state.rule, i, params.rule)
        return eps_hat, OnlyRule(after)


@final
@dataclass(frozen=True)
class Untraceable(Guidance[CFGPredictions, Stateless, CFGParams]):
    """Classifier-free guidance with what a run needs of a rule, and nothing for a trace."""

    rows_type: ClassVar[type[NamedTuple]] = CFGPredictions

    def params(self, steps, batch, device=None, dtype=torch.float32):
        return CFGParams(torch.tensor(7.5, dtype=dtype, device=device))

    def init(self, x):
        return Stateless()

    def __call__(self, rows, state, i, params):
        return guided(rows.uncond, rows.text - rows.uncond, params.guidance_scale), state


@pytest.mark.parametrize("wrap", [Plain, Composed, Sparse, lambda rule: Traced(rule, STEPS)])
def test_conditions_and_texts_are_those_of_the_inner_rule(wrap):
    assert wrap(CONCEPTS).conditions == ("uncond", "text", "concept 0", "concept 1")
    assert wrap(CONCEPTS).texts == {"concept 0": "a", "concept 1": "b"}


@pytest.mark.parametrize("rule", [CONCEPTS, SEGA.safety("strong", ["a", "b"])], ids=["concepts", "sega"])
def test_what_is_not_overridden_is_the_inner_rules(rule: Traceable):
    """Killed by: the wrapping's parameters handed to the inner rule, its default answers given to a trace."""
    (rows,), params = concept_rows(2, steps=1), rule.params(STEPS, 2, dtype=torch.float64)
    wrapping, wrapped = Plain(rule), OnlyRule(params)
    assert [wrapping.idle(i, STEPS) for i in range(STEPS)] == [rule.idle(i, STEPS) for i in range(STEPS)]
    assert_close(wrapping.s_g(wrapped), rule.s_g(params), **EXACT)
    assert_close(wrapping.opened(wrapped).rule, rule.opened(params), **EXACT)
    assert_close(wrapping.masks(rows, wrapped), rule.masks(rows, params), **EXACT)
    assert len(rule.masks(rows, params)) == 2


@pytest.mark.parametrize("wrap", [Plain, Composed, lambda rule: Sparse(rule, 1), lambda rule: Traced(rule, STEPS)])
def test_the_inner_rule_learns_where_the_sampler_went(wrap):
    """Killed by: a state in which the inner rule's is not replaced, levels swapped, rows of the wrapping handed on."""
    rule, (e,) = DynamicNegativeGuidance("a"), concept_rows(1, steps=1)
    wrapping, x, y = wrap(rule), e.text, 0.9 * e.text + 0.1 * e.uncond
    a, b = (Level.of(torch.tensor(alpha_bar, dtype=torch.float64)) for alpha_bar in (0.5, 0.6))
    expected = rule.moved(e, rule.init(x), 0, x, y, a, b, rule.params(STEPS, 2, dtype=x.dtype))
    params, rows = wrapping.params(STEPS, 2, dtype=x.dtype), wrapping.named([e.uncond, e.text, *e.concepts])
    assert_close(wrapping.moved(rows, wrapping.init(x), 0, x, y, a, b, params).rule, expected, **EXACT)
    assert expected.log_ratio.any()


def test_wrappings_are_equal_if_all_their_fields_are():
    """Killed by: an equality that the base class defines, which knows the inner rule only."""
    assert Sparse(CONCEPTS, 2) == Sparse(CONCEPTS, 2) != Sparse(CONCEPTS, 3)
    assert Composed(CONCEPTS, begin=0.2) != Composed(CONCEPTS)
    assert Traced(CONCEPTS, STEPS) != Traced(CONCEPTS, STEPS, {"left": torch.ones(4, 4)})


def test_wrappings_nest():
    rule = SafeLatentGuidance(replace(STRONG, warmup_steps=2))
    steps = concept_rows(1, steps=STEPS)
    nested = Plain(Sparse(Plain(rule)))
    rows = [nested.named((e.uncond, e.text, *e.concepts)) for e in steps]
    assert_close(run(nested, rows), run(Sparse(rule), steps), **EXACT)


def test_a_rule_needs_nothing_for_a_trace_to_run_and_to_be_wrapped():
    steps = contrast(concept_rows(0, steps=STEPS))
    expected = run(ClassifierFreeGuidance(7.5), steps)
    assert_close(run(Untraceable(), steps), expected, **EXACT)
    assert_close(run(Composed(Untraceable()), steps), expected, **EXACT)


def test_a_trace_of_a_rule_that_does_not_answer_is_refused_with_the_remedy():
    """Killed by: an AttributeError."""
    remedy = "Untraceable cannot be traced: let it inherit sld.guidance.Traceable in place of Guidance"
    with pytest.raises(ValueError, match=remedy):
        Traced(Untraceable(), STEPS)
    within = Traced(Composed(Untraceable()), STEPS)
    (e,) = concept_rows(0, steps=1)
    rows, params = within.named([e.uncond, e.text]), within.params(STEPS, 2, dtype=e.text.dtype)
    with pytest.raises(ValueError, match=remedy):
        within(rows, within.init(e.text), 0, params)
