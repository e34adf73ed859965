"""Guidance and the sampler's step as CUDA kernels, generated and assembled without a GPU.

Whether they are fast, and which bits they give, only a GPU can tell; what is read here is the code.
"""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from compiled_rules import CASES as RULES

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton, the compiler of CUDA kernels, is not installed"
)

# Whole latents: predictions, momentum, and what a sampler reads and writes; see test_kernels.py for PNDM's history.
TRAFFIC = {"sld": [4, 2], "sld + ddim": [5, 2], "sld + pndm": [9, 6]}
CASES = [f"{name}, {dtype}" for name in TRAFFIC for dtype in ("float32", "float16")]


@pytest.fixture(scope="module")
def report():
    """What `cuda_offline.py` says. It pretends that there is a GPU, and so has a process of its own."""
    script = Path(__file__).with_name("cuda_offline.py")
    result = subprocess.run([sys.executable, script], capture_output=True, text=True, cwd=script.parent)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.parametrize("case", CASES)
def test_a_step_is_one_kernel_and_one_launch_with_the_least_traffic(report, case):
    """A mutant that folded gamma from another place into the momentum failed here: it takes a second kernel."""
    found = report[case]

    assert (found["kernels"], found["launches"]) == (1, 1)
    assert found["traffic"] == [TRAFFIC[case.split(",")[0]]]


@pytest.mark.parametrize("step", TRAFFIC)
def test_so_it_is_in_the_graph_for_any_batch(report, step):
    """Mutant: rows cut by their number, of which four kernels came with DDIM and five with PNDM, on an H100 too."""
    found = report[f"{step}, any batch"]

    assert (found["kernels"], found["launches"]) == (1, 1)


@pytest.mark.parametrize("architecture", ["80", "90"])
@pytest.mark.parametrize("case", CASES)
def test_its_code_assembles_for_the_gpus_of_two_generations(report, case, architecture):
    (kernel,) = report[case]["assembled"][architecture]

    assert kernel["target"].startswith(f"sm_{architecture}")
    assert kernel["machine code"] > 1000


@pytest.mark.parametrize("name", RULES)
def test_a_rule_is_few_kernels_and_one_where_it_looks_at_no_whole_image(report, name):
    """Killed by: a sum image by image, which multiplies the launches."""
    assert (report[name]["kernels"], report[name]["launches"]) == RULES[name].cuda
