"""The UNet takes more texts than latents, and computes what precedes the first cross-attention once per latent."""

import pytest
import torch
from conftest import NETWORK

from sld.config import MINI, SD15, SD21, UNetConfig
from sld.models.layers import ResBlock, SpatialTransformer
from sld.models.unet import UNet
from sld.models.vae import VAE

TINY = UNetConfig(
    channels=(32, 64), res_blocks=1, attention=(True, True), heads=(2, 4), depth=(1, 1), context=16,
    linear_projection=True, groups=8,
)  # fmt: skip


def parameters(network):
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    ("config", "unet", "vae"), [(SD15, 859_520_964, 83_653_863), (SD21, 865_910_724, 83_653_863)], ids=["sd15", "sd21"]
)
def test_full_size_networks_have_the_published_parameter_counts(config, unet, vae):
    with torch.device("meta"):
        assert parameters(UNet(config.unet)) == unet
        assert parameters(VAE(config.vae)) == vae


@pytest.mark.parametrize("config", [TINY, MINI.unet], ids=["attention everywhere", "mini"])
@torch.no_grad()
def test_fewer_latents_than_texts_give_what_repeated_latents_give(config):
    torch.manual_seed(0)
    unet = UNet(config).eval()
    x, t = torch.randn(2, 4, 16, 16), torch.tensor(421)
    keys = unet.text_keys(torch.randn(6, 7, config.context))

    shared, repeated = unet(x, t, keys), unet(x.repeat(3, 1, 1, 1), t, keys)

    torch.testing.assert_close(shared, repeated, **NETWORK)


@torch.no_grad()
def test_rows_share_what_precedes_the_first_cross_attention():
    unet = UNet(TINY).eval()
    batches = {}
    first = unet.down[0]
    assert isinstance(first.res[0], ResBlock) and isinstance(first.attn[0], SpatialTransformer)
    watched = {"res": first.res[0], "self": first.attn[0].blocks[0].attn, "ff": first.attn[0].blocks[0].ff}
    for name, module in watched.items():
        module.register_forward_hook(lambda _, args, __, name=name: batches.update({name: len(args[0])}))

    unet(torch.randn(2, 4, 8, 8), torch.tensor(1), unet.text_keys(torch.randn(6, 7, 16)))

    assert batches == {"res": 2, "self": 2, "ff": 6}


@torch.no_grad()
def test_each_latent_may_have_its_own_timestep():
    torch.manual_seed(0)
    unet = UNet(TINY).eval()
    x, text = torch.randn(2, 4, 8, 8), torch.randn(2, 7, 16)
    keys = unet.text_keys(text.repeat(2, 1, 1))

    both = unet(x, torch.tensor([3, 700]), keys)

    for k, t in enumerate((3, 700)):
        alone = unet(x[k : k + 1], torch.tensor(t), unet.text_keys(text[k : k + 1]))
        torch.testing.assert_close(both[k : k + 1], alone, **NETWORK)
        torch.testing.assert_close(both[k + 2 : k + 3], alone, **NETWORK)


@torch.no_grad()
def test_sides_that_halve_unevenly_come_back_to_their_size():
    unet = UNet(TINY).eval()

    assert unet(torch.randn(1, 4, 9, 7), torch.tensor(1), unet.text_keys(torch.randn(1, 7, 16))).shape == (1, 4, 9, 7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_a_network_in_half_precision_takes_and_returns_the_callers_dtype(dtype):
    unet, vae = UNet(TINY).to(dtype), VAE(MINI.vae).to(dtype)
    x = torch.randn(1, 4, 8, 8)

    assert unet(x, torch.tensor(1), unet.text_keys(torch.randn(1, 7, 16))).dtype == torch.float32
    assert vae.decode(x).dtype == torch.float32
    assert vae.encode(torch.zeros(1, 3, 32, 32)).dtype == torch.float32
