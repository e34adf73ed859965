"""What a run of the benchmarks is about."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import Device
from sld.config import ModelConfig


@dataclass(frozen=True)
class Setup:
    """Sizes and repetitions.

    Attributes:
        device: where the networks run.
        dtype: of the networks.
        config: of the model of random weights, which lies in `folder`.
        latent: side of the latents of the UNet's benchmark.
        steps, long_steps: of the sampler, in generations under Strong and under Weak.
        pairs: how often a call of the UNet, or a process, is timed on each side.
        runs: how often a generation is.
        quick: take few of everything, to see that all parts run.
    """

    device: Device
    dtype: torch.dtype
    config: ModelConfig
    folder: Path
    latent: int
    steps: int
    long_steps: int
    pairs: int
    runs: int
    quick: bool = False

    @property
    def compiler(self) -> dict[str, Any]:
        """Options of torch.compile. In a quick run eager kernels run the graphs: compiling takes minutes."""
        if self.device.dry:
            return {"disable": True}
        if self.quick:
            return {"backend": "eager"}
        return {"mode": "reduce-overhead"} if self.device.kind == "cuda" else {}
