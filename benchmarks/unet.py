"""The UNet alone: the three rows of an SLD step, in every form that ours has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import Timing, by_turns, spent
from benchmarks.setup import Setup
from benchmarks.sides import difference, ours, theirs
from sld.models.denoiser import Cond
from sld.speed.compiled import compiled_blocks
from sld.speed.keys import KeyedUNet


def run(setup: Setup) -> dict[str, Any]:
    """Ratios of the UNet around keys ("fast" numerics), eager in every form it has and compiled against compiled.

    `benchmarks.numerics` has the other numerics.
    """
    device, results = setup.device, {}
    forms = {
        f"channels_{layout}": ours(setup.folder, device, setup.dtype, channels_last=layout == "last")
        for layout in ("first", "last")
    }
    if device.kind == "cpu":
        forms["winograd"] = forms["channels_first"].winograd()
    reference = theirs(setup.folder, device, setup.dtype).unet
    x = torch.randn(1, 4, setup.latent, setup.latent, device=device.torch)
    text = torch.randn(3, 77, setup.config.unet.context, device=device.torch)
    t = torch.tensor(421, device=device.torch)

    @torch.no_grad()
    def of_theirs(unet: Any = reference) -> Tensor:
        return unet(x.repeat(3, 1, 1, 1).to(setup.dtype), t, text.to(setup.dtype)).sample

    def of_ours(keyed: KeyedUNet) -> Callable[[], Tensor]:
        with torch.no_grad():
            time_keys, text_keys = keyed.time_keys(t), keyed.text_keys(Cond(text))

        @torch.no_grad()
        def call() -> Tensor:
            return keyed(x, time_keys, text_keys)

        return call

    keyed = {form: KeyedUNet(pipe.unet) for form, pipe in forms.items()}
    eager: dict[str, Timing] = {}
    for form, network in keyed.items():
        call = of_ours(network)
        results[f"unet_difference_{form}"] = difference(call(), of_theirs())
        eager[form] = by_turns(device, call, of_theirs, setup.pairs)
        results[f"unet_eager_{form}"] = eager[form].to_dict()
    best = max(eager, key=lambda form: eager[form].clock.value)
    results["unet_form"] = best
    results["ratio_unet_eager"] = eager[best].ratio

    blocks = of_ours(compiled_blocks(keyed[best], **setup.compiler))
    whole = torch.compile(reference, **setup.compiler)
    results["unet_first_call_s"] = {
        "ours": spent(device, blocks)._asdict(),
        "theirs": spent(device, lambda: of_theirs(whole))._asdict(),
    }
    results["unet_difference_compiled"] = difference(blocks(), of_theirs(whole))
    compiled = by_turns(device, blocks, lambda: of_theirs(whole), setup.pairs)
    results["unet_compiled"] = compiled.to_dict()
    results["ratio_unet_compiled"] = compiled.ratio
    against_eager = by_turns(device, blocks, of_theirs, setup.pairs)
    results["unet_compiled_over_eager"] = against_eager.to_dict()
    results["ratio_unet_compiled_over_eager"] = against_eager.ratio
    return results
