"""Peak memory of a picture in half precision by an account of live tensors, both sides on the meta device."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn

from benchmarks.live import LiveBytes
from benchmarks.setup import Setup
from sld.models.text import TextEncoder
from sld.models.unet import UNet
from sld.models.vae import VAE


@torch.no_grad()
def run(setup: Setup) -> dict[str, Any]:
    """Bytes of weights, and the most beside them in a step of three rows and in decoding one picture of full size.

    A whole run of ours is accounted for in `tests/test_pipeline_memory.py`; what lives between steps is small.
    """
    config, side = setup.config, setup.config.size // setup.config.vae.factor
    with torch.device("meta"):
        ours = UNet(config.unet).half(), VAE(config.vae).half(), TextEncoder(config.text).half()
        theirs = _made(UNet2DConditionModel, setup, "unet").half(), _made(AutoencoderKL, setup, "vae").half()
    x = torch.empty(1, config.unet.latent, side, side, device="meta")
    text = torch.empty(3, 77, config.unet.context, device="meta")
    t = torch.empty((), dtype=torch.int64, device="meta")
    weights = sum(p.nbytes for network in ours for p in network.parameters())
    unet, vae, _ = ours
    keys = unet.text_keys(text)
    results: dict[str, Any] = {"weights_bytes": weights}
    calls: dict[str, tuple[nn.Module, Callable[[], Any], nn.Module, Callable[[], Any]]] = {
        "step": (unet, lambda: unet(x, t, keys), theirs[0], lambda: theirs[0](_half(x, 3), t, text.half()).sample),
        "decode": (vae, lambda: vae.decode(x), theirs[1], lambda: theirs[1].decode(_half(x, 1)).sample),
    }
    peaks = {"ours": 0, "theirs": 0}
    for name, (mine, call, other, their_call) in calls.items():
        for who, network, work in (("ours", mine, call), ("theirs", other, their_call)):
            bytes_ = _beside_weights(network, work)
            results[f"{name}_bytes_{who}"] = bytes_
            peaks[who] = max(peaks[who], bytes_)
    results["live_peak_bytes"] = {who: weights + peak for who, peak in peaks.items()}
    return results


def _made(network: Any, setup: Setup, part: str) -> nn.Module:
    values = json.loads((setup.folder / part / "config.json").read_text())
    return network.from_config(values)


def _half(x: Tensor, rows: int) -> Tensor:
    return x.half().repeat(rows, 1, 1, 1)


def _beside_weights(network: nn.Module, call: Callable[[], Any]) -> int:
    with LiveBytes("meta", network.parameters()) as live:
        before = live.now
        call()
    return live.peak - before
