"""Models small enough to build in every test, and the files they make."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from sld.checkpoints import Parts, save_compvis
from sld.config import Defaults, ModelConfig, ScheduleConfig, TextConfig, UNetConfig, VAEConfig
from sld.models.text import TextEncoder
from sld.models.unet import UNet
from sld.models.vae import VAE

TINY1 = ModelConfig(
    "tiny1",
    UNetConfig((16, 32), 1, (True, False), (2, 2), (1, 1), 12, linear_projection=False, groups=4),
    VAEConfig((8, 16), 1, scaling=0.5, groups=4),
    (TextConfig(width=12, layers=2, heads=2, hidden=24, tokens=8, vocabulary=40),),
    ScheduleConfig(),
    Defaults(size=16),
)
TINY2 = replace(
    TINY1,
    name="tiny2",
    unet=UNetConfig((16, 32, 48), 2, (False, True, True), (2, 4, 6), (1, 2, 1), 16, linear_projection=True, groups=4),
    vae=VAEConfig((8, 16, 16), 2, scaling=0.5, groups=4),
    texts=(TextConfig(width=16, layers=2, heads=2, hidden=32, tokens=8, vocabulary=40, activation="gelu", pad=0),),
    schedule=ScheduleConfig(prediction="v"),
    defaults=Defaults(size=32),
)


def modules(config: ModelConfig) -> tuple[UNet, VAE, TextEncoder]:
    """Random networks, the same for the same config."""
    torch.manual_seed(0)
    networks = UNet(config.unet), VAE(config.vae), TextEncoder(config.texts[0])
    for parameter in (p for network in networks for p in network.parameters()):
        nn.init.normal_(parameter, std=0.2)
    return networks


def compvis_tensors(config: ModelConfig, folder: Path) -> dict[str, Tensor]:
    """What a single file of a random model holds."""
    save_compvis(folder / "made.safetensors", config, *modules(config))
    return load_file(folder / "made.safetensors")


def states(parts: Parts | tuple[UNet, VAE, TextEncoder]) -> dict[str, Tensor]:
    """All parameters of a model under one set of names."""
    networks = (parts.unet, parts.vae, *parts.texts) if isinstance(parts, Parts) else parts
    return {f"{i}.{key}": x for i, network in enumerate(networks) for key, x in network.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Whether two sets of tensors have the same keys and bits."""
    return a.keys() == b.keys() and all(a[key].dtype == b[key].dtype and torch.equal(a[key], b[key]) for key in a)
