"""A compiled pipeline makes the same pictures, compiles few forms, and leaves the pipeline it came from alone."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from conftest import EXACT, NETWORK
from torch._dynamo.utils import counters
from torch.testing import assert_close

import sld
from sld.config import UNetConfig
from sld.guidance import SafeLatentGuidance
from sld.guidance.sld import STRONG
from sld.models.denoiser import Cond
from sld.models.layers import ResBlock, SpatialTransformer
from sld.models.unet import UNet
from sld.samplers import make_sampler
from sld.speed.compiled import compiled_blocks, compiled_step

# One level: three shapes of blocks, each of them there more than once. The text is that of the embedded model.
ONE_LEVEL = UNetConfig(
    channels=(32,), res_blocks=2, attention=(True,), heads=(2,), depth=(1,), context=128, linear_projection=True,
    groups=8,
)  # fmt: skip
KINDS = 3  # ResBlocks of 32 and of 64 channels, transformers
PROMPTS = ["a fox in a dark alley", "an owl", "a robot", "the beach", "a bear"]


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


@pytest.fixture(scope="module")
def plain():
    torch.manual_seed(0)
    unet = UNet(ONE_LEVEL).eval().requires_grad_(False)
    return replace(sld.load(), unet=unet)


@pytest.fixture(scope="module")
def pipe(plain):
    return replace(plain, numerics="fast")


def sample(pipe, batch=2, size=32, steps=2):
    """All states of a run, kept until its end; SLD acts from its second evaluation on."""
    return list(
        pipe.sample(
            PROMPTS[:batch],
            list(range(batch)),
            sampler=make_sampler("pndm", pipe.schedule, steps),
            guidance=SafeLatentGuidance(replace(STRONG, warmup_steps=1)),
            size=size,
        )
    )


def graphs():
    return counters["stats"]["unique_graphs"]


@pytest.mark.parametrize("numerics", ["reference", "invariant", "fast"])
def test_a_compiled_pipeline_goes_the_same_way_at_every_evaluation(plain, numerics):
    """To the bit, with the graphs run by eager kernels. A mutant that gave all blocks the first one's form failed."""
    pipe = replace(plain, numerics=numerics)
    ours, theirs = sample(pipe.compile(backend="eager")), sample(pipe)

    assert len(ours) == 4
    for a, b in zip(ours, theirs, strict=True):
        assert_close(a.x, b.x, **EXACT)
        assert_close(a.guidance.nu, b.guidance.nu, **EXACT)


@torch.no_grad()
def test_compiled_blocks_predict_what_eager_ones_do(pipe):
    """In half precision, where a compiler rounds less often, they are no farther from the float32 network."""
    x, t, cond = torch.randn(2, 4, 8, 8), torch.tensor(421), Cond(torch.randn(2, 7, 128))
    expected = pipe.unet(x, t, cond)
    for dtype in (torch.float32, torch.bfloat16):
        unet = deepcopy(pipe.unet).to(dtype)
        eager, compiled = (u(x, t, cond) for u in (unet, compiled_blocks(unet)))
        if dtype == torch.float32:
            assert_close(compiled, eager, **NETWORK)
        else:
            assert compiled.dtype == torch.float32
            assert (compiled - expected).abs().max() < 1.5 * (eager - expected).abs().max()


def test_compiled_networks_in_half_precision_keep_latents_in_float32(pipe):
    half = replace(pipe, unet=deepcopy(pipe.unet).half())

    state = sample(half.compile(backend="eager"))[-1]

    assert {tensor.dtype for tensor in (state.x, *state.guidance, *state.sampler)} == {torch.float32}


def test_blocks_of_equal_shapes_share_one_compiled_form(pipe):
    """A mutant that gave every block a form of its own failed here."""
    blocks = [m for m in pipe.unet.modules() if isinstance(m, ResBlock | SpatialTransformer)]
    assert len(blocks) == 13
    step = 1

    sample(replace(pipe, numerics="reference").compile(backend="eager"))
    assert graphs() == KINDS + step

    counters.clear()
    sample(pipe.compile(backend="eager"))

    # the first ResBlock and the first transformer take every latent once, others like them once for every row
    assert graphs() == KINDS + 2 + step


def test_a_batch_and_a_size_are_compiled_for_once_each(pipe):
    compiled = pipe.compile(backend="eager")
    sample(compiled)
    first = graphs()

    def added(**what):
        before = graphs()
        sample(compiled, **what)
        return graphs() - before

    assert added() == 0
    assert added(batch=3) <= first
    assert added(batch=5) == 0
    assert added(size=48) <= first
    assert added(size=64) == added(batch=4, size=48) == 0
    assert added(steps=6) == 1  # the step alone, whose tables have as many rows
    assert added(steps=8) == 0


def test_compiling_leaves_the_pipeline_as_it_was_and_shares_its_weights(pipe):
    """A mutant that compiled the network itself failed here."""
    compiled = pipe.compile(backend="eager")

    assert not any("forward" in vars(module) for module in pipe.unet.modules())
    assert any("forward" in vars(module) for module in compiled.unet.modules())
    for a, b in zip(pipe.unet.parameters(), compiled.unet.parameters(), strict=True):
        assert a is b
    before = graphs()
    sample(pipe)
    assert graphs() == before


def test_an_evaluation_is_marked_before_the_first_and_after_each_where_there_are_graphs(monkeypatch):
    """Before the first mark a CUDA graph takes every call for an evaluation, and overwrites the skips of the UNet.

    Mutant: no mark before the first evaluation."""
    marks = []
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: marks.append("mark"))

    step = compiled_step(lambda x: marks.append("step") or (x,), mode="reduce-overhead", disable=True)
    step(torch.zeros(2))
    step(torch.zeros(2))

    assert marks == ["mark", "step", "mark", "step", "mark"]


def test_what_a_step_with_graphs_hands_out_is_never_written_over():
    """Checked where there are no graphs by a step that hands its argument back; without the copy it failed."""
    x = torch.zeros(2)

    (result,) = compiled_step(lambda x: (x,), mode="reduce-overhead")(x)

    assert_close(result, x, **EXACT)
    assert result.data_ptr() != x.data_ptr()
