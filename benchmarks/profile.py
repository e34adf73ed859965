"""Where the time of one SLD step goes: by block of the UNet and by kind of operation."""

from __future__ import annotations

import time
from collections import defaultdict
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.setup import Setup
from benchmarks.sides import ours
from sld.guidance import STRONG, SafeLatentGuidance
from sld.models.denoiser import Cond
from sld.samplers import make_sampler
from sld.speed.keys import KeyedUNet

KINDS = {
    "convolutions": ("convolution", "cudnn", "mkldnn"),
    "attention": ("scaled_dot_product", "flash_attention", "efficient_attention"),
    "matrix products": ("addmm", "::mm", "::bmm", "matmul", "::linear"),
    "norms": ("group_norm", "layer_norm"),
    "activations and sums": ("silu", "gelu", "::add", "::mul", "::sub", "::div", "::where"),
    "copies": ("copy_", "::cat", "repeat", "clone", "contiguous"),
}
"""What an operator's name must hold; the first kind that fits."""


def run(setup: Setup) -> dict[str, Any]:
    """Shares of one step's time, and of what is no product, convolution or attention; on CUDA also its kernels."""
    device = setup.device
    pipe = ours(setup.folder, device, setup.dtype, numerics="fast")
    steps = make_sampler("ddim", pipe.schedule, 3)
    states = pipe.sample("a fox", sampler=steps, guidance=SafeLatentGuidance(STRONG), size=setup.latent * 8)
    next(states), next(states)  # the text is encoded, and its keys are made

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.real_cuda else [])]
    with profile(activities=activities) as seen:
        next(states)
        device.wait()
    spent: dict[str, float] = defaultdict(float)
    launches = 0
    for event in seen.key_averages():
        own = event.self_device_time_total if device.real_cuda else event.self_cpu_time_total
        spent[_kind(event.key)] += own
        launches += event.count if device.real_cuda and event.device_type.name == "CUDA" else 0
    whole = sum(spent.values())
    shares = {kind: spent[kind] / whole for kind in sorted(spent, key=lambda kind: -spent[kind])}
    heavy = sum(shares.get(kind, 0) for kind in ("convolutions", "attention", "matrix products"))
    results: dict[str, Any] = {"shares_by_operation": shares, "share_outside_heavy_operations": 1 - heavy}
    if device.kind == "cuda":
        results["kernels_per_step"] = launches
    if not device.real_cuda:
        results["shares_by_block"] = _by_block(setup, KeyedUNet(pipe.unet))
    return results


def _kind(name: str) -> str:
    return next((kind for kind, parts in KINDS.items() if any(part in name for part in parts)), "other")


@torch.no_grad()
def _by_block(setup: Setup, keyed: KeyedUNet) -> dict[str, float]:
    """Shares of a call of three rows, by the clock, blocks one after another."""
    x = torch.randn(1, setup.config.unet.latent, setup.latent, setup.latent)
    cond = Cond(torch.randn(3, 77, setup.config.unet.context))
    time_keys, text_keys = keyed.time_keys(torch.tensor(421)), keyed.text_keys(cond)
    parts: dict[str, list[nn.Module]] = {
        "conv_in": [keyed.unet.conv_in],
        "mid.res": list(keyed.mid),
        "mid.attn": [keyed.mid_attn],
    }
    for name, levels in (("down", keyed.down), ("up", keyed.up)):
        for k, level in enumerate(levels):
            parts[f"{name}[{k}].res"], parts[f"{name}[{k}].attn"] = list(level.res), list(level.attn)
            parts[f"{name}[{k}].resample"] = [level.resample] if level.resample else []
    parts["out"] = [keyed.unet.norm_out, keyed.unet.conv_out]
    spent: dict[str, float] = defaultdict(float)
    hooks = []
    for name, modules in parts.items():

        def begin(*_: Any, name: str = name) -> None:
            spent[name] -= time.perf_counter()

        def end(*_: Any, name: str = name) -> None:
            spent[name] += time.perf_counter()

        for module in modules:
            hooks += [module.register_forward_pre_hook(begin), module.register_forward_hook(end)]
    keyed(x, time_keys, text_keys)
    spent.clear()
    start = time.perf_counter()
    keyed(x, time_keys, text_keys)
    whole = time.perf_counter() - start
    for hook in hooks:
        hook.remove()
    return {name: share / whole for name, share in spent.items()} | {"between": 1 - sum(spent.values()) / whole}
