"""Guidance and the sampler's step under the compiler: how many kernels, how much memory traffic, which bits.

What Inductor writes for the CPU is read here; `test_cuda_kernels.py` has the same for CUDA.
"""

import re
from dataclasses import replace
from itertools import product

import pytest
import torch
from conftest import EXACT
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._inductor.utils import run_and_get_code
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import sld
from sld.guidance import (
    MEDIUM,
    PRESETS,
    STRONG,
    WEAK,
    ClassifierFreeGuidance,
    Predictions,
    SafeLatentGuidance,
    guidance_for,
    safe_latent_guidance,
)
from sld.published import SD15
from sld.samplers import SAMPLERS, Schedule, make_sampler
from sld.step import advance

SCHEDULE = Schedule.from_config(SD15.schedule)
GRID = [
    replace(
        MEDIUM, safety_scale=scale, threshold=threshold, momentum_scale=momentum, momentum_beta=beta, warmup_steps=n
    )
    for scale, threshold, momentum, beta, n in product(
        (200.0, 1000.0, 5000.0), (-0.1, 0.01, 0.5), (0.0, 0.3, 0.5), (0.0, 0.7), (0, 10)
    )
]


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def latents(batch: int, seed: int = 0) -> Tensor:
    return randn(batch, 4, 8, 8, seed=seed)


def arguments(guidance, sampler, i: int, x: Tensor, predictions: Tensor, states):
    """Of `advance`, on a model that predicts eps."""
    n = len(sampler.timesteps)
    level = SCHEDULE.level(torch.tensor(sampler.timesteps[i]))
    params = guidance.params(n, len(x))
    return (
        guidance,
        sampler,
        SCHEDULE,
        "raw",
        params,
        torch.tensor(i),
        level,
        level,
        x,
        predictions,
        *states,
        None,
    )


def kernels(function, *args) -> list[str]:
    """The C++ of every kernel that Inductor makes of a call."""
    code = "".join(run_and_get_code(torch.compile(function, fullgraph=True), *args)[1])
    return re.findall(r"extern \"C\" +void +kernel\(.*?\n'''", code, re.S)


def traffic(kernel: str) -> tuple[int, int]:
    """Whole latents that a kernel reads and writes: its distinct vector loads, and its vector stores."""
    loads = re.findall(r"Vectorized<float>::loadu\((.*?), static_cast", kernel)
    stores = re.findall(r"\.store\((.*?)\);", kernel)
    assert len(set(stores)) == len(stores)
    return len(set(loads)), len(stores)


@torch.no_grad()
def test_sld_alone_is_one_kernel_with_the_least_traffic():
    """Four latents read (three predictions, the momentum), two written."""
    rows, p = Predictions(*(latents(4, seed) for seed in range(3))), MEDIUM.params(50)

    (kernel,) = kernels(safe_latent_guidance, rows, latents(4, 3), torch.tensor(7), p)

    assert traffic(kernel) == (4, 2)


@pytest.mark.parametrize(
    ("name", "reads", "writes"),
    [
        # x, three predictions, momentum; x and momentum
        ("ddim", 5, 2),
        # the same with the history: its three predictions and the start of the first step, read and written. Eight
        # reads and three writes would do if the history stayed in place; but a tensor, the index, says if it moves.
        ("pndm", 9, 6),
    ],
)
@torch.no_grad()
def test_guidance_and_step_are_one_kernel_with_the_least_traffic(name, reads, writes):
    sampler, guidance, x = make_sampler(name, SCHEDULE, 50), SafeLatentGuidance(STRONG), latents(4)
    states = guidance.init(x), sampler.init(x)

    (kernel,) = kernels(advance, *arguments(guidance, sampler, 8, x, randn(12, 4, 8, 8, seed=1), states))

    assert traffic(kernel) == (reads, writes)


@pytest.mark.parametrize("name", ["ddim", "pndm"])
@torch.no_grad()
def test_one_graph_serves_every_step_preset_grid_point_and_batch_bit_for_bit(name):
    """50 steps x 4 presets x 3 batch sizes, and 108 grid points; each compared with eager.

    Mutants that failed here: a hyper-parameter taken from the configuration as a Python number (a graph for each
    value), the warm-up decided by a Python `if` (no graph at all), the momentum's mean added to it.
    """
    counter = CompileCounterWithBackend("inductor")
    compiled = torch.compile(advance, fullgraph=True, backend=counter)
    sampler = make_sampler(name, SCHEDULE, 50)
    whole_runs = [(config, batch, 50) for config, batch in product(PRESETS.values(), (2, 3, 7))]
    for config, batch, steps in whole_runs + [(config, 2, 4) for config in GRID]:
        guidance = SafeLatentGuidance(config)
        x = latents(batch)
        eager = states = guidance.init(x), sampler.init(x)
        xe = x
        for i in range(steps):
            predictions = randn(3 * batch, 4, 8, 8, seed=i)
            if counter.frame_count == 0:  # the batch may change; what a graph has been told once it keeps
                for tensor in tree_leaves((x, predictions, states)):
                    torch._dynamo.mark_dynamic(tensor, 0)
            x, *states = compiled(*arguments(guidance, sampler, i, x, predictions, states))
            xe, *eager = advance(*arguments(guidance, sampler, i, xe, predictions, eager))
        for a, b in zip(tree_leaves((x, states)), tree_leaves((xe, eager)), strict=True):
            assert_close(a, b, **EXACT)

    assert len(GRID) == 108
    assert counter.frame_count == 1


@torch.no_grad()
def test_hyper_parameters_of_each_image_are_in_the_same_kernel():
    guidance = SafeLatentGuidance((STRONG, WEAK, MEDIUM))
    rows, p = Predictions(*(latents(3, seed) for seed in range(3))), guidance.params(50, 3)
    nu, i = latents(3, 3), torch.tensor(12)

    (kernel,) = kernels(safe_latent_guidance, rows, nu, i, p)
    compiled = torch.compile(safe_latent_guidance, fullgraph=True)(rows, nu, i, p)

    assert traffic(kernel) == (4, 2)
    for a, b in zip(compiled, safe_latent_guidance(rows, nu, i, p), strict=True):
        assert_close(a, b, **EXACT)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float16, 2**-9), (torch.bfloat16, 2**-6)])
@torch.no_grad()
def test_half_precision_differs_from_eager_by_its_rounding(dtype, bound):
    """Compiled, only the results are rounded to half; eager rounds every intermediate value.

    Two units in the last place of the largest value; measured: 0.7 of one. At a threshold of 0 the mask is the same in
    both: a difference keeps its sign when it is rounded.
    """
    config = replace(STRONG, threshold=0.0)
    rows = Predictions(*(randn(4, 4, 8, 8, seed=seed, dtype=dtype) for seed in range(3)))
    p, nu, i = config.params(50, dtype=dtype), randn(4, 4, 8, 8, seed=3, dtype=dtype), torch.tensor(20)

    compiled = torch.compile(safe_latent_guidance, fullgraph=True)(rows, nu, i, p)
    eager = safe_latent_guidance(rows, nu, i, p)

    for a, b in zip(compiled, eager, strict=True):
        assert a.dtype == dtype
        worst = (a.float() - b.float()).abs().max() / b.float().abs().max()
        assert 0 < worst < bound


class OneDevice(TorchDispatchMode):
    """Refuses whatever moves a value from one device to another."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        inside, outside = ({x.device for x in tree_leaves(v) if isinstance(x, Tensor)} for v in (args, result))
        assert len(inside | outside) <= 1, f"{func} moves {inside} to {outside}"
        return result


RULES = {
    "sld": guidance_for("strong"),
    "idle": guidance_for(replace(WEAK, warmup_steps=2)),
    "per image": SafeLatentGuidance((STRONG, WEAK)),
    "cfg": ClassifierFreeGuidance((7.5, 1.0)),
}


@pytest.fixture(scope="module", params=["reference", "fast"])
def on_meta(request):
    """A pipeline whose tensors have no values: what asks for one fails."""
    return sld.load(device="meta", numerics=request.param)


@pytest.mark.parametrize(
    ("name", "rule"),
    # a stochastic sampler's noise is drawn by the host
    [*((name, "sld") for name in SAMPLERS if name != "euler-ancestral"), *(("pndm", rule) for rule in RULES)],
)
def test_nothing_waits_for_the_device_in_the_sampling_loop(on_meta, name, rule):
    """Tensors on the meta device have no values, so that `.item()`, `.tolist()`, `bool()` and boolean indexing fail.

    Mutants that failed here: `int(i)` in the sampler's row, `float(t)` in the pipeline, the sampler's table left on
    the CPU, the warm-up decided by a Python `if`.
    """
    sampler = make_sampler(name, SCHEDULE, 3)
    states = on_meta.sample(["a fox", "a bear"], [0, 1], sampler=sampler, guidance=RULES[rule], size=16)
    next(states)  # what is prepared once may wait

    with OneDevice():
        assert len(list(states)) == len(sampler.timesteps)
