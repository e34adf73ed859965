"""On a GPU: networks, pipelines, compiled forms, commands and training do there what they do on the CPU.

Skipped as a whole where there is none. `-rP` shows what was measured: differences, bits, bytes, kernels.

TF32 is off but where a test asks for it: by default cuDNN rounds float32 convolutions to 10 bits.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace

import pytest
import torch

if not torch.cuda.is_available():  # before what takes long to import
    pytest.skip("there is no GPU that torch can use", allow_module_level=True)

import numpy as np
import reference
from compiled_rules import CASES
from conftest import EXACT
from PIL import Image
from reference import ReferenceUNet, reference_run, safe_pipeline
from running import here
from torch import nn
from torch._dynamo.utils import counters
from torch.profiler import ProfilerActivity, profile
from torch.testing import assert_close

import sld
from benchmarks.live import half_by_default
from sld.config import UNetConfig
from sld.evaluation import runner
from sld.evaluation.distances import ssim
from sld.evaluation.results import read_results
from sld.guidance import DIFFUSERS_CONCEPT, MAX, OFF, PRESETS, STRONG, SafeLatentGuidance, guidance_for
from sld.guidance.trace import Traced
from sld.images import to_pil, to_uint8
from sld.models.denoiser import Cond
from sld.models.text import TextEncoder
from sld.models.unet import UNet
from sld.models.vae import VAE
from sld.published import SD15
from sld.samplers import DDIM, PNDM, SAMPLERS, Schedule, make_sampler
from sld.speed.compiled import compiled_step
from sld.state import SampleState
from sld.step import advance
from sld.testbed import erase
from sld.testbed.fit import Recipe, fit
from sld.testbed.judge import Embedded, detector_features
from sld.testbed.vocabulary import write_tokenizer

DEVICE = torch.device("cuda")
pytestmark = pytest.mark.filterwarnings("ignore:the text is longer")

PROMPTS = ["a fox in a dark alley", "a robot with a knife", "the beach", "an owl"]
SEEDS = [7, 3, 2**40, 11]
GB = 10**9

# Largest difference over largest value, of one pass through a network of the embedded model. In half precision three
# times what it is between the CPU's kernels; TF32 has the digits of float16.
APART = {torch.float32: 1e-4, torch.float16: 3e-3, torch.bfloat16: 2e-2}
TF32 = APART[torch.float16]


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Let products and convolutions in float32 be rounded to TF32, or not."""
    parts = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [part.allow_tf32 for part in parts]
    try:
        for part in parts:
            part.allow_tf32 = allowed
        yield
    finally:
        for part, was in zip(parts, before, strict=True):
            part.allow_tf32 = was


@pytest.fixture(autouse=True)
def float32_is_float32():
    with tf32(False):
        yield


@pytest.fixture(scope="module")
def cpu():
    return sld.load()


@pytest.fixture(scope="module")
def gpu():
    return sld.load(device=DEVICE)


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    folder = tmp_path_factory.mktemp("words")
    write_tokenizer(folder)
    return folder


def apart(a, b) -> float:
    """Largest difference over the largest value."""
    a, b = a.detach().cpu().double(), b.detach().cpu().double()
    return float((a - b).abs().max() / b.abs().max())


def final(pipe, batch=1, sampler="ddim", steps=5, preset="strong", size=32, **how):
    how = {"sampler": make_sampler(sampler, pipe.schedule, steps), "guidance": guidance_for(preset), **how}
    *_, state = pipe.sample(PROMPTS[:batch], SEEDS[:batch], size=size, **how)
    return state.x


# ---------------------------------------------------------------------------------------------------------- networks


@pytest.mark.parametrize(
    ("dtype", "rounded"),
    [(torch.float32, False), (torch.float32, True), (torch.float16, False), (torch.bfloat16, False)],
)
@torch.no_grad()
def test_networks_compute_what_they_compute_on_the_cpu(cpu, dtype, rounded):
    """UNet, decoder, encoder and text encoder, the GPU's in the dtype and the CPU's in float32; see APART and TF32."""
    there, bound = sld.load(device=DEVICE, dtype=dtype), TF32 if rounded else APART[dtype]
    x, picture = torch.randn(3, 4, 16, 16), torch.rand(1, 3, 64, 64) * 2 - 1
    t, ids = torch.tensor([981, 1, 500]), cpu.tokenizers[0](PROMPTS[:3])
    cond = Cond(cpu.texts[0](ids))

    with tf32(rounded):
        found = {
            "unet": there.unet(x.to(DEVICE), t.to(DEVICE), Cond(cond.tokens.to(DEVICE))),
            "decoder": there.vae.decode(x[:1].to(DEVICE)),
            "encoder": there.vae.encode(picture.to(DEVICE)),
            "text": there.texts[0](ids.to(DEVICE)),
        }
    expected = {
        "unet": cpu.unet(x, t, cond),
        "decoder": cpu.vae.decode(x[:1]),
        "encoder": cpu.vae.encode(picture),
        "text": cond.tokens,
    }

    measured = {name: apart(value, expected[name]) for name, value in found.items()}
    print(f"{dtype}, TF32 {rounded}: {measured}")
    assert all(value.isfinite().all() and value.device.type == DEVICE.type for value in found.values())
    assert max(measured.values()) < bound


@torch.no_grad()
def test_the_network_takes_a_timestep_from_the_host(gpu):
    """As diffusers' does. Killed by: features of time where the timestep is."""
    x, cond = torch.randn(2, 4, 16, 16, device=DEVICE), gpu.encode(PROMPTS[:2])

    assert_close(gpu.unet(x, torch.tensor(981), cond), gpu.unet(x, torch.tensor(981, device=DEVICE), cond), **EXACT)


# -------------------------------------------------------------------------------------------- the bits of diffusers


@pytest.fixture(scope="module")
def pipes(words, tmp_path_factory):
    """diffusers' pipeline on the GPU and ours of its folder, both with channels outermost, as diffusers has them."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    theirs = safe_pipeline(words)
    theirs.save_pretrained(folder)
    return theirs.to(DEVICE), sld.load(folder, device=DEVICE, channels_last=False)


@pytest.fixture
def table_on_the_gpu(monkeypatch):
    """diffusers' schedulers with their table on the GPU, where their own `add_noise` puts it.

    By a number of the host a CUDA kernel divides by way of its reciprocal, which rounds twice.
    """

    def on_the_gpu(make):
        def made(**options):
            scheduler = make(**options)
            scheduler.alphas_cumprod = scheduler.alphas_cumprod.to(DEVICE)
            return scheduler

        return made

    for name, make in reference.SCHEDULERS.items():
        monkeypatch.setitem(reference.SCHEDULERS, name, on_the_gpu(make))


def our_run(pipe, batch, config, sampler, steps=20):
    how = {"sampler": make_sampler(sampler, pipe.schedule, steps), "guidance": guidance_for(config)}
    states = pipe.sample(PROMPTS[:batch], SEEDS[:batch], size=16, concept=DIFFUSERS_CONCEPT, **how)
    return [state.x for state in states][1:]


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", ["off", "weak", "strong", "max"])
def test_latents_and_pictures_of_ddim_have_the_bits_of_diffusers(pipes, table_on_the_gpu, name, batch):
    """20 steps, after every evaluation; and one picture as floats. Killed by: rows swapped."""
    theirs, ours = pipes
    config = {"off": OFF, **PRESETS}[name]

    expected, _ = reference_run(theirs, PROMPTS[:batch], SEEDS[:batch], config, "ddim", 20)
    found = our_run(ours, batch, config, "ddim")

    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert torch.equal(a, b), f"evaluation {i}: {(a - b).abs().max()}"
    if batch == 1:
        _, floats = reference_run(theirs, PROMPTS[:1], SEEDS[:1], config, "ddim", 20, output="np")
        decoded = (ours.decode(found[-1]) / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
        assert torch.equal(decoded.cpu(), torch.from_numpy(floats))


@pytest.mark.parametrize(("name", "bound"), [("off", 1e-4), ("strong", 5e-3)])
def test_latents_of_pndm_do_but_for_one_division_by_twelve(pipes, table_on_the_gpu, name, bound):
    """At the fourth evaluation diffusers divides by a number of the host. The masks of SLD amplify it from there on.

    The bound is that of the mean difference over the mean size after 20 steps.
    """
    theirs, ours = pipes
    config = {"off": OFF, **PRESETS}[name]

    expected, _ = reference_run(theirs, PROMPTS[:3], SEEDS[:3], config, "pndm", 20)
    found = our_run(ours, 3, config, "pndm")

    for a, b in zip(found[:3], expected[:3], strict=True):
        assert_close(a, b, **EXACT)
    measured = (found[-1] - expected[-1]).abs().mean() / expected[-1].abs().mean()
    print(f"pndm, {name}: fourth {apart(found[3], expected[3]):.1e}, last {measured:.1e}")
    assert apart(found[3], expected[3]) < 1e-5 and measured < bound


class Cast(ReferenceUNet):
    """diffusers' UNet in half precision as a denoiser of ours, which keeps latents in float32."""

    def __call__(self, x, t, cond):
        return self.unet(x.to(self.dtype), t, cond.tokens.to(self.dtype)).sample.to(x.dtype)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@torch.no_grad()
def test_networks_have_the_bits_of_diffusers_in_every_dtype_and_layout(pipes, dtype, layout):
    """UNet and decoder; and with the UNet of either side, latents of a whole run. Killed by: a sum in another order."""
    theirs, ours = pipes
    unet, vae = (deepcopy(m).to(dtype).to(memory_format=layout) for m in (theirs.unet, theirs.vae))
    own_unet, own_vae = (deepcopy(m).to(dtype).to(memory_format=layout) for m in (ours.unet, ours.vae))
    x, t = torch.randn(3, 4, 8, 8, device=DEVICE).to(dtype), torch.tensor([981, 1, 500], device=DEVICE)
    tokens = torch.randn(3, 77, 32, device=DEVICE).to(dtype)

    assert_close(own_unet(x, t, Cond(tokens)), unet(x, t, tokens).sample, **EXACT)
    assert_close(own_vae.decoder(x[:1]), vae.decode(x[:1]).sample, **EXACT)
    runs = [our_run(replace(ours, unet=u), 3, PRESETS["strong"], "ddim") for u in (own_unet, Cast(unet))]
    assert_close(*runs, **EXACT)
    assert all(latents.dtype == torch.float32 and latents.isfinite().all() for latents in runs[0])


# ------------------------------------------------------------------------------------------------- noise and numerics


@pytest.mark.parametrize("sampler", ["ddim", "euler-ancestral"])
def test_a_seed_means_the_same_noise_and_nearly_the_same_picture(cpu, gpu, sampler):
    """Without safety guidance as good as equal; under Strong, whose masks amplify rounding, hardly to be told apart."""
    for preset, bound in (("off", 0.999), ("strong", 0.9)):
        runs = []
        for pipe in (cpu, gpu):
            how = {"sampler": make_sampler(sampler, pipe.schedule, 15), "guidance": guidance_for(preset)}
            runs.append(list(pipe.sample(PROMPTS, SEEDS, **how)))
        assert_close(runs[1][0].x.cpu(), runs[0][0].x, **EXACT)
        assert_close(runs[1][-1].random, runs[0][-1].random, **EXACT)
        a, b = (to_uint8(pipe.decode(run[-1].x)) for pipe, run in zip((cpu, gpu), runs, strict=True))
        likeness = ssim(a, b)
        print(f"{sampler}, {preset}: SSIM {np.round(likeness, 4)}, mean of 255 {np.abs(a.astype(int) - b).mean():.3f}")
        assert np.mean(likeness) > bound


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("numerics", ["reference", "invariant", "fast"])
def test_an_image_of_a_batch_is_that_image_alone_up_to_rounding(numerics, channels_last):
    """On a GPU no numerics promise bits; whether they are equal is printed."""
    pipe = sld.load(device=DEVICE, numerics=numerics, channels_last=channels_last)
    together = final(pipe, 4)
    for batch in (1, 2, 3):
        fewer = final(pipe, batch)
        print(
            f"{numerics}, channels_last={channels_last}: the first {batch} of 4: equal bits "
            f"{torch.equal(fewer, together[:batch])}, apart {apart(fewer, together[:batch]):.1e}"
        )
        assert_close(fewer, together[:batch], rtol=0, atol=1e-3)
    reference = final(sld.load(device=DEVICE, channels_last=channels_last), 4)
    print(f"{numerics}: {apart(together, reference):.1e} from the reference")
    assert_close(together, reference, rtol=0, atol=1e-3)
    assert_close(final(pipe, 4), together, **EXACT)  # again


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_runs_and_goes_on_from_a_state_on_either_device(gpu, cpu, sampler, tmp_path):
    """Killed by: the states of generators on the GPU handed to generators of the CPU."""
    guidance = guidance_for("strong")
    how = {"sampler": make_sampler(sampler, gpu.schedule, 4), "guidance": guidance, "size": 32}
    states = list(gpu.sample(PROMPTS[0], SEEDS[:2], **how))
    states[2].save(tmp_path / "s.safetensors")

    for pipe, device in ((gpu, DEVICE), (cpu, "cpu")):
        state, _ = SampleState.load(tmp_path / "s.safetensors", guidance, how["sampler"], device)
        assert state.x.device.type == torch.device(device).type
        own = {**how, "sampler": make_sampler(sampler, pipe.schedule, 4)}
        *_, last = pipe.sample(PROMPTS[0], SEEDS[:2], state=state, **own)
        if pipe is gpu:
            assert_close(last.x, states[-1].x, **EXACT)
        assert_close(last.x.cpu(), states[-1].x.cpu(), rtol=0, atol=1e-2)


@pytest.mark.parametrize("name", CASES)
def test_every_rule_runs_there(cpu, gpu, name):
    """Its latents after three evaluations are the CPU's."""
    made = [final(pipe, 2, guidance=CASES[name].one, steps=3) for pipe in (cpu, gpu)]
    assert_close(made[1].cpu(), made[0], rtol=0, atol=1e-2)


def test_a_trace_of_regions_is_that_of_the_cpu(cpu, gpu):
    found = []
    for pipe in (cpu, gpu):
        rule = Traced(SafeLatentGuidance(MAX), 3, {"left": (torch.arange(8) < 4).float().expand(8, 8)})
        how = {"sampler": make_sampler("ddim", pipe.schedule, 3), "guidance": rule, "size": 32}
        *_, last = pipe.sample(PROMPTS[0], SEEDS[:2], **how)
        found.append(rule.taken(last.guidance).measures)
    assert_close(found[1].would, found[0].would, rtol=1e-2, atol=1e-3)
    assert_close(found[1].gap, found[0].gap, rtol=0, atol=1e-2)


def test_a_picture_to_start_from_and_a_mask_are_taken_there(cpu, gpu):
    picture = cpu(PROMPTS[0], 1, steps=5)[0]
    mask = Image.fromarray(np.repeat(np.uint8([[0, 255]]), 32, 1).repeat(64, 0))
    for how in ({"strength": 0.6}, {"mask": mask}, {"mask": mask, "strength": 0.6, "sampler": "pndm"}):
        made = [np.array(pipe(PROMPTS[1], 2, image=picture, steps=5, **how)[0])[None] for pipe in (cpu, gpu)]
        assert ssim(*made)[0] > 0.9


def test_networks_that_wait_on_the_cpu_and_rows_and_tiles_one_by_one_change_little(gpu):
    waiting = sld.load(device=DEVICE, offload=True)
    assert {p.device.type for network in (waiting.vae, *waiting.texts) for p in network.parameters()} == {"cpu"}
    assert_close(final(waiting, 2), final(gpu, 2), **EXACT)
    x = final(gpu, 1, size=128)
    assert_close(waiting.decode(x), gpu.decode(x), **EXACT)
    assert (replace(gpu, tile=64).decode(x) - gpu.decode(x)).abs().mean() < 0.1
    for numerics in ("reference", "invariant", "fast"):
        pipe = replace(gpu, numerics=numerics)
        assert_close(final(replace(pipe, rows_at_once=1), 2), final(pipe, 2), rtol=0, atol=1e-3)


# ---------------------------------------------------------------------------------------------------- compiled forms


@pytest.fixture
def fresh_compiler():
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


@pytest.fixture(scope="module")
def small(gpu):
    """A pipeline whose UNet has three kinds of blocks."""
    torch.manual_seed(0)
    config = UNetConfig(
        channels=(32,), res_blocks=1, attention=(True,), heads=(2,), depth=(1,), context=128, linear_projection=True,
        groups=8,
    )  # fmt: skip
    unet = UNet(config).eval().requires_grad_(False).to(DEVICE, memory_format=torch.channels_last)
    return replace(gpu, unet=unet)


def kernels(run) -> list[str]:
    """Names of the kernels that a call launches on the GPU, without copies and fillings of memory."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        run()
        torch.cuda.synchronize()
    on_gpu = [event for event in seen.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    names = [event.name for event in on_gpu if not event.is_user_annotation]  # which name regions, such as a graph's
    return [name for name in names if not name.startswith(("Memcpy", "Memset"))]


@pytest.mark.parametrize(("mode", "numerics"), [("default", "reference"), ("reduce-overhead", "fast")])
def test_a_compiled_pipeline_goes_the_same_way_and_compiles_once(small, mode, numerics, fresh_compiler):
    """States are kept to the end, since a CUDA graph writes every result to the same memory.

    Killed by: results of a graph handed out without a copy; no mark before the first evaluation, in which a block then
    overwrites what an earlier one has left for a later one.
    """
    eager = replace(small, numerics=numerics)
    compiled = eager.compile(mode=mode)

    def states(pipe):
        sampler = make_sampler("pndm", pipe.schedule, 3)
        guidance = SafeLatentGuidance(replace(STRONG, warmup_steps=1))
        return list(pipe.sample(PROMPTS[:2], SEEDS[:2], sampler=sampler, guidance=guidance, size=32))

    expected, first = states(eager), states(compiled)
    graphs = counters["stats"]["unique_graphs"]
    again = states(compiled)
    launched = kernels(lambda: states(compiled))

    usual = kernels(lambda: states(eager))
    print(f"{mode}: {graphs} graphs, {len(launched)} kernels in 4 evaluations, eager {len(usual)}")
    for a, b, c in zip(expected, first, again, strict=True):
        assert_close(b.x, a.x, rtol=0, atol=2e-3)
        assert_close(b.guidance.nu, a.guidance.nu, rtol=0, atol=2e-3)
        assert_close(c.x, b.x, **EXACT)
    assert counters["stats"]["unique_graphs"] == graphs
    assert mode == "default" or not counters["inductor"]["cudagraph_skips"]


@pytest.mark.parametrize("name", ["ddim", "pndm"])
@torch.no_grad()
def test_guidance_and_step_are_one_kernel(gpu, name, fresh_compiler):
    """What `test_cuda_kernels.py` reads in the code, seen by the profiler."""
    schedule = gpu.schedule
    sampler, guidance = make_sampler(name, schedule, 50), SafeLatentGuidance(STRONG)
    x, rows = torch.randn(4, 4, 64, 64, device=DEVICE), torch.randn(12, 4, 64, 64, device=DEVICE)
    level = schedule.level(sampler.timesteps[8])
    states, at = (guidance.init(x), sampler.init(x)), torch.tensor(8, device=DEVICE)
    args = (
        guidance,
        sampler,
        schedule,
        "raw",
        guidance.params(50, 4, DEVICE),
        at,
        level,
        level,
        x,
        rows,
        *states,
        None,
    )
    compiled = compiled_step(advance)

    found, expected = compiled(*args), advance(*args)
    (kernel,) = kernels(lambda: compiled(*args))

    print(f"{name}: {kernel}; eager launches {len(kernels(lambda: advance(*args)))}")
    assert_close(found, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_picture_of_stable_diffusion_takes_the_memory_that_is_said():
    """SD 1.5 in fp16, 512 x 512, SLD: 2.55 GB by an account of live tensors; and what cuDNN takes for its work."""
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    with torch.device(DEVICE), half_by_default():
        unet, vae, text = UNet(SD15.unet).eval(), VAE(SD15.vae).eval(), TextEncoder(SD15.texts[0]).eval()
    networks = [network.to(DEVICE, memory_format=torch.channels_last) for network in (unet, vae)]
    text.to(DEVICE)
    torch.cuda.reset_peak_memory_stats()
    schedule, guidance = Schedule.from_config(SD15.schedule).to(DEVICE), SafeLatentGuidance(STRONG)
    sampler = PNDM.leading(schedule, 50)
    cond = Cond(text(torch.zeros(3, 77, dtype=torch.int64, device=DEVICE)))
    x = torch.randn(1, 4, 64, 64, device=DEVICE)
    states, params = (guidance.init(x), sampler.init(x)), guidance.params(51, 1, DEVICE)
    for i in range(3):
        at, level = torch.tensor(i, device=DEVICE), schedule.level(sampler.timesteps[i])
        rows = networks[0](x.repeat(3, 1, 1, 1), torch.tensor(sampler.timesteps[i]), cond)
        x, *states = advance(guidance, sampler, schedule, "raw", params, at, level, level, x, rows, *states, None)
    step = torch.cuda.max_memory_allocated() - before
    networks[1].decode(x)
    peak = torch.cuda.max_memory_allocated() - before

    print(f"peak of three steps {step / GB:.2f} GB, with the decoder {peak / GB:.2f} GB")
    assert peak < 3.2 * GB


# ---------------------------------------------------------------------------------------------- commands and judges


def done(*arguments):
    run = here(*arguments)
    assert run.returncode == 0, run.stderr
    return run


@pytest.mark.parametrize("settings", [(), ("--numerics", "invariant", "--dtype", "bfloat16", "--sampler", "pndm")])
def test_generate_writes_a_picture_that_its_sidecar_makes_again(settings, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    usual = ("--device", DEVICE, *settings)
    made = done("generate", PROMPTS[0], *usual, "--steps", 6, "--safety", "strong", "--out", first).stdout.split()
    sidecar = first / made[0].split("/")[-1].replace(".png", ".json")
    about = json.loads(sidecar.read_text())
    assert torch.device(about["device"]).type == DEVICE.type

    again = done("generate", "--again", sidecar, *usual[: 6 if settings else 2], "--out", second)

    (png,) = second.glob("*.png")
    assert png.read_bytes() == sidecar.with_suffix(".png").read_bytes() and "may differ" not in again.stderr


def test_explain_draws_a_figure_there(tmp_path):
    files = ("--out", tmp_path / "x.png", "--trace", tmp_path / "x.csv")
    done("explain", PROMPTS[1], "--device", DEVICE, "--steps", 4, "--size", 32, *files)
    assert {path.name for path in tmp_path.iterdir()} >= {"x.png", "x.csv"}


def test_an_interrupted_evaluation_ends_as_an_untouched_one(tmp_path, monkeypatch):
    """Two rows under two presets, in chunks of one row; the second chunk is interrupted, then the command repeated."""
    command = ("evaluate", "--device", DEVICE, "--first", 2, "--images", 1, "--steps", 4, "--chunk", 2, "--keep", "all")
    command = (*command, "--presets", "off,max", "--out")
    done(*command, tmp_path / "whole")
    make = runner.make_chunk

    def interrupted(evaluation, number, tick):
        if number == 1:
            raise OSError("the power is gone")
        return make(evaluation, number, tick)

    with monkeypatch.context() as patch:
        patch.setattr(runner, "make_chunk", interrupted)
        assert here(*command, tmp_path / "parts").returncode == 2
    done(*command, tmp_path / "parts")

    whole, parts = (read_results(tmp_path / name) for name in ("whole", "parts"))
    assert whole.records == parts.records and len(whole.records) == 4
    assert all(record.failure is None for record in whole.records)


def test_ablate_makes_a_point_there(tmp_path):
    (tmp_path / "s.toml").write_text(
        'first = 1\nimages = 1\nsteps = 3\nsampler = "ddim"\n[[grid]]\npreset = ["max"]\nthreshold = [0.0]\n'
    )
    done("ablate", tmp_path / "s.toml", "--device", DEVICE, "--out", tmp_path / "run")
    assert len(read_results(tmp_path / "run").records) == 2 and (tmp_path / "run/ablation/table.csv").is_file()


def test_the_detector_judges_there_as_on_the_cpu(cpu):
    pictures = torch.from_numpy(to_uint8(cpu.decode(final(cpu, 4, preset="off", size=64, steps=10))))
    judged = [Embedded(device=device)(pictures.to(device)) for device in ("cpu", DEVICE)]
    for a, b in zip(*judged, strict=True):
        assert (a.unsafe, a.broken) == (b.unsafe, b.broken)
        for prop, probability in a.detail["probabilities"].items():
            assert abs(probability - b.detail["probabilities"][prop]) < 1e-3
    seen = [detector_features(device).extract(pictures.permute(0, 3, 1, 2)) for device in ("cpu", DEVICE)]
    assert apart(seen[1], seen[0]) < 1e-4


# ------------------------------------------------------------------------------------------------------------ training


class Copying:
    """The loss of a network that is to give back what it gets."""

    def draw(self, generator, batch):
        return (torch.randn(batch, 3, generator=generator),)

    def __call__(self, network, x):
        assert x.device.type == DEVICE.type
        return {"loss": ((network(x) - x[:, :2]) ** 2).mean()}


@pytest.mark.parametrize(("bf16", "ahead"), [(False, 0), (True, 0), (False, 2)])
def test_a_training_goes_on_where_it_was_interrupted(tmp_path, bf16, ahead):
    """In bfloat16 too, and where forked processes draw ahead of the GPU."""
    recipe = Recipe(steps=6, batch=4, rate=1e-2, ema=0.9, warmup=2, decay=0.0, save_every=3)

    def train(folder, steps=6):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(3, 5), nn.SiLU(), nn.Linear(5, 2)).to(DEVICE)
        settings = replace(recipe, steps=steps)
        return fit("tiny", network, Copying(), settings, folder, lambda line: None, bf16=bf16, ahead=ahead)

    whole = train(tmp_path / "whole")
    train(tmp_path / "parts", steps=3)
    assert_close(train(tmp_path / "parts").state_dict(), whole.state_dict(), **EXACT)


def test_a_concept_is_erased_there(monkeypatch, tmp_path):
    """Killed by: features of time where the timestep is."""
    monkeypatch.setattr(erase, "_EVALUATIONS", 2)
    recipe = replace(erase.RECIPE, steps=1, batch=1)
    file = erase.erase(sld.load(device=DEVICE), "death", tmp_path, method="x", eta=1.0, recipe=recipe)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        changed = sld.load(device=DEVICE, changes={"unet": file})
    assert to_pil(changed.decode(final(changed)))[0].size == (32, 32)
    assert isinstance(changed.sampler(), DDIM)
