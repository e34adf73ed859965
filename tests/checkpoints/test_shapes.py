"""Shapes told from a config are those of the networks.

Mutants seen to fail here: a shortcut for every block, skip connections in another order, a level's change of size left
out, a norm of the feed-forward width.
"""

import subprocess
import sys

import pytest
import torch
from tiny import TINY1, TINY2

from sld.checkpoints.shapes import shapes
from sld.config import CONFIGS, ModelConfig
from sld.models.text import TextEncoder
from sld.models.unet import UNet
from sld.models.vae import VAE


@pytest.mark.parametrize("config", [*CONFIGS.values(), TINY1, TINY2], ids=lambda config: config.name)
def test_shapes_are_those_of_the_networks(config: ModelConfig):
    with torch.device("meta"):
        networks = {"unet": UNet(config.unet), "vae": VAE(config.vae), "text": TextEncoder(config.text)}

    told = shapes(config)
    for part, network in networks.items():
        assert told[part] == {name: tuple(x.shape) for name, x in network.state_dict().items()}


def test_telling_shapes_loads_no_torch():
    code = (
        "import sys; from sld.config import SD15; from sld.checkpoints.shapes import shapes; shapes(SD15); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
