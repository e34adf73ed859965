"""Every rule as a compiled graph: how many kernels, equal to eager, and one graph for all settings and evaluations."""

import re
from collections.abc import Sequence

import pytest
import torch
from compiled_rules import CASES, CFG
from conftest import NETWORK
from guided import concept_rows, contrast
from torch._dynamo.testing import CompileCounterWithBackend
from torch._inductor.utils import run_and_get_code
from torch.testing import assert_close

from sld.guidance import DynamicNegativeGuidance
from sld.samplers import Level

STEPS = 18  # more than Weak's warm-up


def kernels(programs: Sequence[str]) -> int:
    """C++ functions in Inductor's programs. How many loops are in each depends on the processor's vectors."""
    return len(re.findall(r"extern \"C\" +void +kernel\(", "".join(programs)))


@pytest.mark.parametrize("name", CASES)
def test_a_rule_compiles_to_one_graph_of_few_kernels(name: str):
    """Killed by: a setting of the rule for that of its parameters, a branch on a value, a sum image by image."""
    case = CASES[name]
    torch.compiler.reset()
    counter = CompileCounterWithBackend("inductor")
    compiled = torch.compile(case.one.__call__, fullgraph=True, backend=counter)
    steps = concept_rows(len(case.one.conditions) - 2, dtype=torch.float32, steps=STEPS)
    text = steps[0].text
    steps = contrast(steps) if case.one.conditions == CFG.conditions else steps

    def compare():
        for rule in (case.one, case.other):
            state, params = rule.init(text), rule.params(STEPS, len(text))
            for i, rows in enumerate(steps):
                index = torch.tensor(i)
                expected, expected_state = rule(rows, state, index, params)
                guided, after = compiled(rows, state, index, params)
                assert_close((guided, after), (expected, expected_state), **case.close)
                state = expected_state

    _, programs = run_and_get_code(compare)
    assert counter.frame_count == 1
    assert kernels(programs) == case.kernels


def test_what_a_move_teaches_compiles_to_one_graph():
    torch.compiler.reset()
    rule, (rows,) = DynamicNegativeGuidance("a"), concept_rows(1, dtype=torch.float32, steps=1)
    compiled = torch.compile(rule.moved, fullgraph=True)
    alpha_bar, params = torch.linspace(0.1, 0.9, STEPS), rule.params(STEPS, 2)

    def compare():
        for i in range(STEPS - 1):
            a, b = Level.of(alpha_bar[i]), Level.of(alpha_bar[i + 1])
            given = (rows, rule.init(rows.text), torch.tensor(i), rows.text, rows.uncond, a, b, params)
            assert_close(compiled(*given), rule.moved(*given), **NETWORK)

    _, programs = run_and_get_code(compare)
    assert kernels(programs) == 1
