"""Every rule as a compiled graph: how many kernels, equal to eager, and one graph for all settings and evaluations.

What works element by element becomes one kernel. A reduction (a dot product, a norm, a deviation) ends a kernel, so
rules that look at a whole image have more, and more of them the longer they chain reductions; their sums run in another
order than torch's own, hence a tolerance. SEGA's sort is torch's own call and not counted.
"""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from conftest import EXACT, NETWORK
from guided import concept_rows, contrast
from torch._dynamo.testing import CompileCounterWithBackend
from torch._inductor import metrics
from torch.testing import assert_close

from sld.guidance import (
    APG,
    MAX,
    SEGA,
    WEAK,
    ClassifierFreeGuidance,
    Composed,
    DynamicNegativeGuidance,
    Guidance,
    Negative,
    PerpNeg,
    Rescale,
    SafeLatentConcepts,
    Sparse,
)

STEPS = 18  # more than Weak's warm-up


@dataclass(frozen=True)
class Case:
    """A rule in two settings that differ in every kind of number, its kernels on the CPU, and how close it is."""

    one: Guidance
    other: Guidance
    kernels: int
    close: dict[str, Any]


def concepts(combination: str, kernels: int, close: dict[str, Any]) -> Case:
    one, other = (SafeLatentConcepts.alike(["a", "b", "c"], config, combination) for config in (WEAK, MAX))
    return Case(one, replace(other, guidance_scale=4.0), kernels, close)


CFG = ClassifierFreeGuidance(7.5)
CASES = {
    "sum": concepts("sum", 1, EXACT),
    "maximum": concepts("maximum", 1, EXACT),
    "select": concepts("select", 3, EXACT),
    "orthogonalised": concepts("orthogonalised", 5, NETWORK),
    "sega": Case(SEGA.safety("medium", ["a", "b"]), SEGA.safety("max", ["a", "b"], guidance_scale=4.0), 4, EXACT),
    "perp-neg": Case(
        PerpNeg((Negative(text="a"), Negative(text="b"))),
        PerpNeg((Negative(text="a", weight=0.2), Negative(text="b", weight=2.0)), guidance_scale=4.0),
        3,
        NETWORK,
    ),
    "dynamic": Case(
        DynamicNegativeGuidance("a"), DynamicNegativeGuidance("a", negative_scale=3.0, prior=0.5), 3, EXACT
    ),
    "rescale": Case(Composed(CFG, (Rescale(0.7),)), Composed(CFG, (Rescale(0.2),)), 5, NETWORK),
    "apg": Case(Composed(CFG, (APG(),)), Composed(CFG, (APG(0.5, 9.0, 0.2),)), 5, NETWORK),
    "sparse": Case(
        Sparse(SafeLatentConcepts.alike(["a", "b"], WEAK)),
        Sparse(SafeLatentConcepts.alike(["a", "b"], MAX), 3),
        1,
        EXACT,
    ),
    "interval": Case(Composed(CFG), Composed(CFG, begin=0.2, end=0.7), 1, EXACT),
}


@pytest.mark.parametrize("name", CASES)
def test_a_rule_compiles_to_one_graph_of_few_kernels(name: str):
    """Killed by: a setting of the rule for that of its parameters, a branch on a value, a sum image by image."""
    case = CASES[name]
    torch.compiler.reset()
    metrics.reset()
    counter = CompileCounterWithBackend("inductor")
    compiled = torch.compile(case.one.__call__, fullgraph=True, backend=counter)

    steps = concept_rows(len(case.one.conditions) - 2, dtype=torch.float32, steps=STEPS)
    text = steps[0].text
    steps = contrast(steps) if case.one.conditions == CFG.conditions else steps
    for rule in (case.one, case.other):
        state, params = rule.init(text), rule.params(STEPS, len(text))
        for i, rows in enumerate(steps):
            index = torch.tensor(i)
            expected, expected_state = rule(rows, state, index, params)
            guided, after = compiled(rows, state, index, params)
            assert_close((guided, after), (expected, expected_state), **case.close)
            state = expected_state
    assert counter.frame_count == 1
    assert metrics.generated_kernel_count == case.kernels


def test_what_a_move_teaches_compiles_to_one_graph():
    torch.compiler.reset()
    metrics.reset()
    rule, (rows,) = DynamicNegativeGuidance("a"), concept_rows(1, dtype=torch.float32, steps=1)
    compiled = torch.compile(rule.moved, fullgraph=True)
    levels, params = torch.linspace(0.1, 0.9, STEPS), rule.params(STEPS, 2)
    for i in range(STEPS - 1):
        given = (rows, rule.init(rows.text), torch.tensor(i), rows.text, rows.uncond, levels[i], levels[i + 1], params)
        assert_close(compiled(*given), rule.moved(*given), **NETWORK)
    assert metrics.generated_kernel_count == 4
