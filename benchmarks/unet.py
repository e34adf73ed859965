"""The UNet alone: the three rows of an SLD step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import Timing, by_turns, seconds
from benchmarks.setup import Setup
from benchmarks.sides import difference, ours, theirs
from sld.models.unet import UNet
from sld.speed.compiled import compiled_blocks


def run(setup: Setup) -> dict[str, Any]:
    """Ratios of the UNet, eager in every form it has and compiled against compiled, at the setup's latents."""
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

    def of_ours(unet: UNet) -> Any:
        with torch.no_grad():
            keys, times = unet.text_keys(text), unet.time_keys(t)

        @torch.no_grad()
        def call() -> Tensor:
            return unet(x, times, keys)

        return call

    eager: dict[str, Timing] = {}
    for form, pipe in forms.items():
        call = of_ours(pipe.unet)
        results[f"unet_difference_{form}"] = difference(call(), of_theirs())
        eager[form] = by_turns(device, call, of_theirs, setup.pairs)
        results[f"unet_eager_{form}"] = eager[form].to_dict()
    best = max(eager, key=lambda form: eager[form].ratio)
    results["unet_form"] = best
    results["ratio_unet_eager"] = eager[best].ratio

    blocks = of_ours(compiled_blocks(forms[best].unet, **setup.compiler))
    whole = torch.compile(reference, **setup.compiler)
    results["unet_first_call_s"] = {
        "ours": seconds(device, blocks),
        "theirs": seconds(device, lambda: of_theirs(whole)),
    }
    results["unet_difference_compiled"] = difference(blocks(), of_theirs(whole))
    compiled = by_turns(device, blocks, lambda: of_theirs(whole), setup.pairs)
    results["unet_compiled"] = compiled.to_dict()
    results["ratio_unet_compiled"] = compiled.ratio
    against_eager = by_turns(device, blocks, of_theirs, setup.pairs)
    results["unet_compiled_over_eager"] = against_eager.to_dict()
    results["ratio_unet_compiled_over_eager"] = against_eager.ratio
    return results
