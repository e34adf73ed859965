"""The step beside the network: guidance and sampler, eager and as one kernel."""

from __future__ import annotations

import re
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._inductor.utils import run_and_get_code
from torch.utils._pytree import tree_leaves

from benchmarks.measure import by_turns
from benchmarks.setup import Setup
from sld.guidance import PRESETS, SafeLatentGuidance
from sld.samplers import Schedule, make_sampler
from sld.step import advance

BATCHES = (8, 16, 64)
SIDE = 64


@torch.no_grad()
def run(setup: Setup) -> dict[str, Any]:
    """Fused over eager at three batch sizes, kernels in the step, and compilations beyond the first."""
    device, results = setup.device, {}
    schedule = Schedule.from_config(setup.config.schedule).to(device.torch)
    side, batches = (8, (2,)) if setup.device.dry else (SIDE, BATCHES[:1] if setup.quick else BATCHES)
    for name in ("ddim", "pndm"):
        torch.compiler.reset()
        counter = CompileCounterWithBackend("inductor")
        compiled = torch.compile(advance, fullgraph=True, backend=counter)
        sampler = make_sampler(name, schedule, 50).to(device.torch)

        def arguments(config: Any, batch: int, i: int, sampler: Any = sampler) -> tuple[Any, ...]:
            guidance = SafeLatentGuidance(config)
            x = torch.randn(batch, 4, side, side, device=device.torch)
            rows = torch.randn(3 * batch, 4, side, side, device=device.torch)
            level = schedule.level(torch.tensor(sampler.timesteps[i], device=device.torch))
            states = guidance.init(x), sampler.init(x)
            params = guidance.params(len(sampler.timesteps), batch, device.torch)
            at = torch.tensor(i, device=device.torch)
            return guidance, sampler, schedule, "raw", params, at, level, level, x, rows, *states, None

        first = arguments(PRESETS["weak"], batches[0], 0)
        for tensor in tree_leaves(first):
            if isinstance(tensor, Tensor) and tensor.ndim == 4:
                torch._dynamo.mark_dynamic(tensor, 0)  # the batch may change; what a graph was told once it keeps
        compiled(*first)
        for config, batch, i in product(PRESETS.values(), (2, *batches), range(0, 50, 7)):
            compiled(*arguments(config, batch, i))
        _, code = run_and_get_code(torch.compile(advance, fullgraph=True), *first)
        results[f"kernels_sld_and_{name}"] = len(
            re.findall(r"async_compile\.(?:cpp_pybinding|triton)\(", "".join(code))
        )
        results[f"recompilations_{name}"] = counter.frame_count - 1
        for batch in batches:
            given = arguments(PRESETS["strong"], batch, 9)

            def many(step: Any, given: tuple[Any, ...] = given) -> Tensor:
                for _ in range(20):
                    x, *_ = step(*given)
                return x

            timing = by_turns(device, partial(many, compiled), partial(many, advance), 4 * setup.pairs)
            results[f"guidance_{name}_batch_{batch}"] = timing.to_dict()
    results["ratio_guidance"] = results[f"guidance_ddim_batch_{batches[0]}"]["ratio"]
    results["guidance_kernels"] = results["kernels_sld_and_ddim"]
    results["recompilations"] = results["recompilations_ddim"] + results["recompilations_pndm"]
    return results
