"""What Inductor makes of a step for CUDA, on a machine without a GPU; prints JSON.

Run by `test_cuda_kernels.py` in a process of its own, for it answers in the device's place whatever Inductor asks of
it. The step is traced with tensors that have no values, lowered, and the Triton kernels that come out are compiled to
PTX and assembled.
"""

from __future__ import annotations

import importlib.util
import json
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
import torch._inductor.config as inductor
import triton
from compiled_rules import CASES, SHAPE
from torch import Tensor
from torch._dynamo.device_interface import CudaInterface
from torch._dynamo.source import ConstantSource
from torch._inductor.debug import DebugContext
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.graph import GraphLowering
from torch._inductor.virtualized import V
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.utils._pytree import tree_flatten, tree_unflatten
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from sld.guidance import STRONG, Predictions, SafeLatentGuidance, safe_latent_guidance
from sld.published import SD15
from sld.samplers import Level, Schedule, make_sampler
from sld.step import advance

DEVICE = SimpleNamespace(
    major=9,
    minor=0,
    name="H100",
    gcnArchName="",
    warp_size=32,
    multi_processor_count=132,
    max_threads_per_block=1024,
    max_threads_per_multi_processor=2048,
    regs_per_multiprocessor=65536,
    shared_memory_per_block=49152,
    shared_memory_per_block_optin=232448,
    total_memory=80 << 30,
)
ARCHITECTURES = (80, 90)


def stand_in_for_the_device() -> None:
    """Answer what Inductor and Triton ask about the GPU before they generate code for it."""
    inductor.compile_threads, inductor.fx_graph_cache, inductor.triton.cudagraphs = 1, False, False
    answers = {
        "get_device_properties": DEVICE,
        "get_compute_capability": 90,
        "current_device": 0,
        "is_available": True,
        "is_triton_capable": True,
        "raise_if_triton_unavailable": None,
    }
    for question, answer in answers.items():
        setattr(CudaInterface, question, staticmethod(lambda *_, answer=answer, **__: answer))
    CudaInterface.Worker.get_device_properties = staticmethod(lambda *_: DEVICE)
    CudaInterface.Worker.current_device = staticmethod(lambda: 0)
    torch.cuda.get_device_properties = lambda *_: DEVICE
    torch.cuda.get_device_capability = lambda *_: (9, 0)
    torch.cuda.current_device = lambda: 0
    torch._C._cuda_getCurrentRawStream = lambda _: 0
    triton.runtime.driver.set_active(
        SimpleNamespace(
            get_current_target=lambda: GPUTarget("cuda", 90, 32),
            get_active_torch_device=lambda: torch.device("cuda"),
            get_current_device=lambda: 0,
        )
    )


def lower(function: Callable[..., Any], args: Sequence[Any], any_batch: bool = False) -> str:
    """Inductor's program for a function of tensors (nested in tuples), as if they were on a GPU.

    For any batch, the first size of latents and rows is a symbol for each tensor, as torch.compile has it once a batch
    has changed.
    """
    tensors, spec = tree_flatten(args)
    sizes = ShapeEnv()
    mode = FakeTensorMode(shape_env=sizes)

    def fake(t: Tensor, k: int) -> Tensor:
        kinds = [DimDynamic.STATIC] * t.ndim
        if any_batch and t.ndim == 4:
            kinds[0] = DimDynamic.DYNAMIC
        context = StatelessSymbolicContext(dynamic_sizes=kinds)
        shape = mode.from_tensor(t, source=ConstantSource(f"tensor{k}"), symbolic_context=context).shape
        with mode:
            return torch.empty(shape, dtype=t.dtype, device="cuda")

    fakes = [fake(t, k) for k, t in enumerate(tensors)]
    with mode:
        trace = make_fx(
            lambda *flat: tree_flatten(function(*tree_unflatten(flat, spec)))[0],
            decomposition_table=select_decomp_table(),
        )
        graph = GraphLowering(trace(*fakes), shape_env=sizes)
    with V.set_graph_handler(graph), V.set_fake_mode(mode), V.set_debug_handler(DebugContext()):
        graph.run(*fakes)
        program, _ = graph.codegen()
    return program.value


def triton_kernels(program: str) -> dict[str, str]:
    """The source of each kernel, by name."""
    return dict(re.findall(r"async_compile\.triton\('(\w+)', '''(.*?)'''", program, re.S))


def module_of(source: str, name: str) -> ModuleType:
    """A kernel's source without its tuning, imported from a file, as Triton needs it."""
    head = (
        "import triton\nimport triton.language as tl\nfrom torch._inductor.runtime import triton_helpers\n"
        "from torch._inductor.runtime.triton_helpers import libdevice, math as tl_math\n"
    )
    path = Path(tempfile.mkdtemp()) / f"{name}.py"
    path.write_text(head + source[source.index("@triton.jit") :])
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def assemble(source: str, name: str, architecture: int) -> dict[str, Any]:
    """What a kernel's PTX is written for, and the size in bytes of the machine code that ptxas makes of it."""
    kernel = getattr(module_of(source, name), name)
    blocks = {argument: 1024 for argument in kernel.arg_names if argument.endswith("BLOCK")}
    found = re.search(r"'signature': (\{.*?\})", source)
    assert found is not None
    signature = eval(found[1]) | dict.fromkeys(blocks, "constexpr")
    compiled = triton.compile(
        ASTSource(fn=kernel, signature=signature, constexprs=blocks), target=GPUTarget("cuda", architecture, 32)
    )
    (target,) = re.findall(r"^\.target (\w+)", compiled.asm["ptx"], re.M)
    return {"target": target, "machine code": len(compiled.asm["cubin"])}


def traffic(source: str) -> tuple[int, int]:
    """Whole latents that a kernel loads and stores: the accesses that move with the element's index."""
    loads, stores = (re.findall(rf"tl\.{way}\(\w+ \+ \(([^()]*)\)", source) for way in ("load", "store"))
    return sum("x0" in place for place in loads), sum("x0" in place for place in stores)


def cases(dtype: torch.dtype) -> dict[str, tuple[Callable[..., Any], Sequence[Any]]]:
    """The project's steps by name, each a function of tensors, with its arguments."""

    def latents(rows: int = 1) -> Tensor:
        return torch.zeros(rows * SHAPE[0], *SHAPE[1:], dtype=dtype)

    guidance = SafeLatentGuidance(STRONG)
    schedule = Schedule.from_config(SD15.schedule, dtype)
    p, i = guidance.params(51, 4, dtype=dtype), torch.tensor(8)
    a = Level(*torch.full((2,), 0.5**0.5, dtype=dtype))
    made: dict[str, tuple[Callable[..., Any], Sequence[Any]]] = {
        "sld": (safe_latent_guidance, (Predictions(*(latents() for _ in range(3))), latents(), i, p))
    }
    for name in ("ddim", "pndm"):
        sampler = make_sampler(name, schedule, 50)

        def step(table: Any, *tensors: Any, sampler: Any = sampler) -> Any:
            return advance(guidance, replace(sampler, table=table), schedule, "raw", *tensors, None)

        x = latents()
        states = guidance.init(x), sampler.init(x)
        made[f"sld + {name}"] = step, (sampler.table, p, i, a, a, x, latents(3), *states)
    return made


def rules() -> dict[str, tuple[Callable[..., Any], Sequence[Any]]]:
    """Every rule by name, as a function of tensors with its arguments."""
    made: dict[str, tuple[Callable[..., Any], Sequence[Any]]] = {}
    for name, case in CASES.items():
        rule, x = case.one, torch.zeros(SHAPE)
        rows = rule.split(torch.zeros(len(rule.conditions) * SHAPE[0], *SHAPE[1:]), SHAPE[0])
        made[name] = rule.__call__, (rows, rule.init(x), torch.tensor(8), rule.params(51, SHAPE[0]))
    return made


def launches(program: str) -> int:
    """How often Inductor's program starts a kernel."""
    return len(re.findall(r"^ +\w+\.run\(", program, re.M))


def main() -> None:
    stand_in_for_the_device()
    report: dict[str, Any] = {}
    for dtype in (torch.float32, torch.float16):
        for name, (function, args) in cases(dtype).items():
            program = lower(function, args)
            kernels = triton_kernels(program)
            report[f"{name}, {str(dtype).removeprefix('torch.')}"] = {
                "kernels": len(kernels),
                "launches": launches(program),
                "traffic": [traffic(source) for source in kernels.values()],
                "assembled": {sm: [assemble(s, k, sm) for k, s in kernels.items()] for sm in ARCHITECTURES},
            }
    for name, (function, args) in cases(torch.float32).items():
        program = lower(function, args, any_batch=True)
        report[f"{name}, any batch"] = {"kernels": len(triton_kernels(program)), "launches": launches(program)}
    for name, (function, args) in rules().items():
        program = lower(function, args)
        report[name] = {"kernels": len(triton_kernels(program)), "launches": launches(program)}
    print(json.dumps(report))


if __name__ == "__main__":
    main()
