"""The keyed UNet is the plain one: fewer latents than texts, texts and times projected in advance, a shared beginning.

Mutants that failed here: the texts' keys in another order, latents repeated image by image, the time of another block.
"""

import pytest
import torch
from conftest import NETWORK
from torch.testing import assert_close

from sld.config import UNetConfig
from sld.models.denoiser import Cond
from sld.models.unet import UNet
from sld.published import MINI
from sld.speed.keys import KeyedUNet

TINY = UNetConfig(
    channels=(32, 64), res_blocks=1, attention=(True, True), heads=(2, 4), depth=(1, 2), context=16,
    linear_projection=True, groups=8,
)  # fmt: skip
CONVOLUTIONS = UNetConfig(
    channels=(32, 64), res_blocks=2, attention=(True, False), heads=(2, 4), depth=(1, 1), context=16,
    linear_projection=False, groups=8,
)  # fmt: skip
# The widths of Stable Diffusion's two finest levels, with its text's and its heads.
WIDE = UNetConfig(
    channels=(320, 640), res_blocks=1, attention=(True, True), heads=(8, 8), depth=(1, 1), context=768,
    linear_projection=False,
)  # fmt: skip


@pytest.mark.parametrize(
    "config", [TINY, CONVOLUTIONS, MINI.unet, WIDE], ids=["attention everywhere", "convolutions", "mini", "wide"]
)
@torch.no_grad()
def test_it_predicts_what_the_plain_network_does_for_repeated_latents(config):
    torch.manual_seed(0)
    unet = UNet(config).eval()
    keyed = KeyedUNet(unet)
    x, t, cond = torch.randn(2, 4, 8, 8), torch.tensor([421, 3]), Cond(torch.randn(6, 7, config.context))
    times = keyed.time_keys(t)
    for i in range(2):
        predicted = keyed(x, times.at(i), keyed.text_keys(cond))
        assert_close(predicted, unet(x.repeat(3, 1, 1, 1), t[i], cond), **NETWORK)


@torch.no_grad()
def test_rows_share_what_precedes_the_first_cross_attention():
    unet = UNet(TINY).eval()
    keyed = KeyedUNet(unet)
    batches = {}
    first = unet.down[0]
    watched = {"res": first.res[0].conv_in, "self": first.attn[0].blocks[0].attn, "ff": first.attn[0].blocks[0].ff}
    for name, module in watched.items():
        module.register_forward_hook(lambda _, args, __, name=name: batches.update({name: len(args[0])}))

    keyed(torch.randn(2, 4, 8, 8), keyed.time_keys(torch.tensor(1)), keyed.text_keys(Cond(torch.randn(6, 7, 16))))

    assert batches == {"res": 2, "self": 2, "ff": 6}


def test_its_weights_are_those_of_the_plain_network():
    unet = UNet(TINY)
    assert {id(p) for p in KeyedUNet(unet).parameters()} == {id(p) for p in unet.parameters()}
