"""Whole pictures from prompt to pixels, against diffusers' safe pipeline and against its plain one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import by_turns, spent
from benchmarks.setup import Setup
from benchmarks.sides import Work, difference, our_pictures, ours, their_pictures, theirs
from sld.guidance import STRONG, WEAK, Guidance, SafeLatentGuidance, Sparse
from sld.pipeline import Pipeline
from sld.speed.reuse import NO_REUSE, Reuse

_STRONG = SafeLatentGuidance(STRONG)
PRICES: dict[str, tuple[Guidance[Any, Any, Any], Reuse]] = {
    "price_of_cfg": (_STRONG, NO_REUSE),
    "price_of_cfg_every_2nd": (Sparse(_STRONG, 2), NO_REUSE),
    "price_of_cfg_every_3rd": (Sparse(_STRONG, 3), NO_REUSE),
    "price_of_cfg_deep_2nd": (_STRONG, Reuse(deep_every=2)),
    "price_of_cfg_deep_3rd": (_STRONG, Reuse(deep_every=3)),
}
"""SLD Strong against diffusers' plain pipeline: exact, or with the safety row or deep features at every k-th step."""


def run(setup: Setup) -> dict[str, Any]:
    """SLD against StableDiffusionPipelineSafe: eager and compiled, Strong and Weak; and the price of plain CFG.

    Ours has "fast" numerics, and on a CPU Winograd's form of the UNet's convolutions, but for "direct".
    """
    device, side = setup.device, setup.latent * 8
    strong, weak = Work(STRONG, "pndm", setup.steps, side), Work(WEAK, "ddim", setup.long_steps, side)
    first, second = replace(strong, steps=2), replace(strong, steps=3)  # after two numbers of steps any will do
    direct = ours(setup.folder, device, setup.dtype, numerics="fast")
    eager = direct.winograd() if device.kind == "cpu" else direct
    results: dict[str, Any] = {}

    def compare(
        name: str, pipe: Pipeline, other: Any, work: Work, rule: Any = None, reuse: Reuse = NO_REUSE
    ) -> float | str:
        made: list[Tensor] = []
        timing = by_turns(
            device,
            lambda: made.append(our_pictures(pipe, work, rule, reuse)),
            lambda: made.append(their_pictures(other, work)),
            setup.runs,
            warm=False,
        )
        results[name] = timing.to_dict()
        if other is safe:
            results[name]["difference"] = difference(made[0], made[1])
        return timing.ratio

    safe = theirs(setup.folder, device, setup.dtype)
    results["ratio_generate_eager"] = compare("generate_eager", eager, safe, strong)
    if eager is not direct:
        results["ratio_generate_eager_direct"] = compare("generate_eager_direct", direct, safe, strong)
    results["ratio_generate_weak"] = compare("generate_weak", eager, safe, weak)

    compiled = eager.compile(**setup.compiler)
    results["first_compiled_picture_s"] = spent(device, lambda: our_pictures(compiled, first))._asdict()
    our_pictures(compiled, second)
    over_eager = compare("generate_compiled_over_eager", compiled, safe, strong)
    results["ratio_generate_compiled_over_eager"] = over_eager
    safe.unet = torch.compile(safe.unet, **setup.compiler)
    results["first_compiled_picture_of_diffusers_s"] = spent(device, lambda: their_pictures(safe, first))._asdict()
    results["ratio_generate_compiled"] = compare("generate_compiled", compiled, safe, strong)

    plain = theirs(setup.folder, device, setup.dtype, safe=False)
    names = ("price_of_cfg", "price_of_cfg_deep_2nd") if setup.quick else tuple(PRICES)
    for name, (rule, reuse) in ((name, PRICES[name]) for name in names):
        our_pictures(compiled, first, rule, reuse), our_pictures(compiled, second, rule, reuse)
        results[f"ratio_{name}"] = compare(name, compiled, plain, strong, rule, reuse)
    return results
