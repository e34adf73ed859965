"""Peak memory of a picture in half precision by an account of live tensors, of both sides."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.live import LiveBytes, half_by_default
from benchmarks.setup import Setup
from sld.models.denoiser import Cond
from sld.models.text import TextEncoder
from sld.models.unet import UNet
from sld.models.vae import VAE
from sld.speed.keys import KeyedUNet


@torch.no_grad()
def run(setup: Setup) -> dict[str, Any]:
    """Bytes of weights, and the most beside them in a step of three rows and in decoding one picture of full size.

    A step of ours is taken with "reference" numerics and with "fast" ones. Tensors have sizes and no contents. A whole
    run of ours is accounted for in `tests/test_pipeline_memory.py`; what lives between steps is small.
    """
    config, side = setup.config, setup.config.defaults.size // setup.config.vae.factor
    with FakeTensorMode(allow_non_fake_inputs=True), half_by_default():
        unet, vae, text = UNet(config.unet).eval(), VAE(config.vae).eval(), TextEncoder(config.texts[0]).eval()
        their_unet, their_vae = _made(UNet2DConditionModel, setup, "unet"), _made(AutoencoderKL, setup, "vae")
        x, features = torch.randn(1, config.unet.latent, side, side), torch.randn(3, 77, config.unet.context)
        t = torch.tensor(421)
        rows, cond, keyed = x.repeat(3, 1, 1, 1), Cond(features), KeyedUNet(unet)
        time, keys = keyed.time_keys(t), keyed.text_keys(cond)
        calls: dict[str, tuple[nn.Module, Callable[[], Any]]] = {
            "step_bytes_ours": (unet, lambda: unet(rows, t, cond)),
            "step_bytes_ours_fast": (unet, lambda: keyed(x, time, keys)),
            "step_bytes_theirs": (their_unet, lambda: their_unet(rows, t, features).sample),
            "decode_bytes_ours": (vae, lambda: vae.decode(x)),
            "decode_bytes_theirs": (their_vae, lambda: their_vae.decode(x).sample),
        }
        results: dict[str, Any] = {name: _beside_weights(*call) for name, call in calls.items()}
        results["weights_bytes"] = sum(p.nbytes for network in (unet, vae, text) for p in network.parameters())
    results["live_peak_bytes"] = {
        who: results["weights_bytes"] + max(results[f"{part}_bytes_{who}"] for part in ("step", "decode"))
        for who in ("ours", "theirs")
    }
    return results


def _made(network: Any, setup: Setup, part: str) -> nn.Module:
    return network.from_config(json.loads((setup.folder / part / "config.json").read_text())).eval()


def _beside_weights(network: nn.Module, call: Callable[[], Any]) -> int:
    with LiveBytes("cpu", network.parameters()) as live:
        before = live.now
        call()
    return live.peak - before
