"""The plain networks beside diffusers' and transformers', bit by bit, and what a user may call them with.

Mutants that failed here: one time for all rows, 1x1 convolutions as linear maps of places, the norm's epsilon of the
other network, the encoder padded on the other sides, the text's state before its last norm.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import EXACT, NETWORK
from diffusers import AutoencoderKL, UNet2DConditionModel
from reference import tiny_unet, tiny_vae
from torch import nn
from torch.testing import assert_close
from transformers import CLIPTextConfig, CLIPTextModel

from sld.checkpoints.parts import parts
from sld.config import ModelConfig, TextConfig, UNetConfig, VAEConfig
from sld.models.denoiser import Cond
from sld.models.text import TextEncoder
from sld.models.unet import UNet
from sld.models.vae import VAE
from sld.published import MINI, SD15, SD21, SDXL

TINY = UNetConfig(
    channels=(32, 64), res_blocks=1, attention=(True, True), heads=(2, 4), depth=(1, 1), context=16,
    linear_projection=True, groups=8,
)  # fmt: skip
UNETS = {
    "SD 1": UNetConfig((32, 64), 1, (True, False), (4, 4), (1, 1), 32, linear_projection=False, groups=8),
    "SD 2": UNetConfig((32, 64), 1, (True, False), (2, 4), (1, 1), 32, linear_projection=True, groups=8),
}
TINY_VAE = VAEConfig((16, 32), res_blocks=1, scaling=0.18215, groups=8)


def parameters(network):
    return sum(p.numel() for p in network.parameters())


def filled(network: Any, key: str, reference: nn.Module, config: ModelConfig) -> Any:
    """Our network with the weights of the reference, in the same memory."""
    theirs = reference.state_dict()
    ours = {}
    for key_map in next(part for part in parts(config) if part.key == key).key_maps("diffusers"):
        ours |= key_map.read(theirs[next(name for name in key_map.theirs if name in theirs)])
    network.load_state_dict(ours, strict=True, assign=True)
    return network.eval().requires_grad_(False)


def a_config(unet: UNetConfig = MINI.unet, vae: VAEConfig = MINI.vae, text: TextConfig | None = None) -> ModelConfig:
    """A model with one network of these; the others fit it."""
    if text is None:
        text = replace(MINI.texts[0], width=unet.context)
    return ModelConfig("", replace(unet, context=text.width), vae, (text,), MINI.schedule, MINI.defaults)


@torch.no_grad()
def test_a_timestep_of_the_host_goes_to_the_device_of_the_latents():
    """As in diffusers' network. The device is the meta device. Mutant: features of time where the timestep is."""
    with torch.device("meta"):
        unet = UNet(TINY)
        x, cond = torch.zeros(2, 4, 8, 8), Cond(torch.zeros(2, 7, 16))

    for t in (torch.tensor(981, device="cpu"), torch.tensor([981, 1], device="cpu")):
        assert unet(x, t, cond).device.type == "meta"


@pytest.mark.parametrize(
    ("config", "unet", "vae"), [(SD15, 859_520_964, 83_653_863), (SD21, 865_910_724, 83_653_863)], ids=["sd15", "sd21"]
)
def test_full_size_networks_have_the_published_parameter_counts(config, unet, vae):
    with torch.device("meta"):
        assert parameters(UNet(config.unet)) == unet
        assert parameters(VAE(config.vae)) == vae


@pytest.mark.parametrize("rows", range(1, 7))
@pytest.mark.parametrize("kind", UNETS)
@torch.no_grad()
def test_the_unet_is_bit_equal_to_diffusers(kind, rows):
    torch.manual_seed(rows)
    reference = tiny_unet(kind).eval()
    unet = filled(UNet(UNETS[kind]), "unet", reference, a_config(UNETS[kind]))
    x, tokens = torch.randn(rows, 4, 8, 8), torch.randn(rows, 7, 32)
    for t in (torch.tensor(981), torch.randint(1000, (rows,))):
        assert torch.equal(unet(x, t, Cond(tokens)), reference(x, t, tokens).sample)


@pytest.mark.parametrize("batch", [1, 3])
@torch.no_grad()
def test_the_autoencoder_is_bit_equal_to_diffusers(batch):
    torch.manual_seed(0)
    reference = tiny_vae().eval()
    vae = filled(VAE(TINY_VAE), "vae", reference, a_config(vae=TINY_VAE))
    images, latents = torch.randn(batch, 3, 16, 24), torch.randn(batch, 4, 8, 12)

    posterior = reference.encode(images).latent_dist
    mean, log_variance = vae.moments(images)
    assert torch.equal(mean, posterior.mean) and torch.equal(log_variance, posterior.logvar)
    assert torch.equal(vae.encode(images), posterior.mean * 0.18215)
    assert torch.equal(vae.decode(latents), reference.decode(1 / 0.18215 * latents).sample)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@torch.no_grad()
def test_the_text_encoder_is_bit_equal_to_transformers(activation):
    torch.manual_seed(0)
    config = TextConfig(width=32, layers=2, heads=4, hidden=64, vocabulary=99, activation=activation)
    reference = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=99, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            hidden_act=activation, bos_token_id=97, eos_token_id=98,
        )
    ).eval()  # fmt: skip
    text = filled(TextEncoder(config), "text", reference, a_config(text=config))
    ids = torch.randint(97, (3, 77))
    assert torch.equal(text(ids), reference(input_ids=ids).last_hidden_state)


FULL = {
    "sd15": (SD15, {"cross_attention_dim": 768, "attention_head_dim": 8, "use_linear_projection": False}),
    "sd21": (SD21, {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True}),
}


@pytest.mark.parametrize("name", FULL)
@torch.no_grad()
def test_full_size_unets_are_bit_equal_to_diffusers(name):
    """Three rows of 8 x 8 latents, random weights, at one timestep and at three."""
    config, own = FULL[name]
    torch.manual_seed(0)
    reference = UNet2DConditionModel(
        block_out_channels=(320, 640, 1280, 1280),
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        **own,
    ).eval()
    with torch.device("meta"):
        empty = UNet(config.unet)
    unet = filled(empty, "unet", reference, config)
    x, tokens = torch.randn(3, 4, 8, 8), torch.randn(3, 77, own["cross_attention_dim"])
    for t in (torch.tensor(981), torch.tensor([981, 1, 500])):
        assert torch.equal(unet(x, t, Cond(tokens)), reference(x, t, tokens).sample)


@pytest.mark.skipif("SLD_LARGE" not in os.environ, reason="takes 12 GB and minutes: SLD_LARGE=1 pytest …")
@torch.no_grad()
def test_the_full_size_unet_of_sdxl_is_bit_equal_to_diffusers():
    """Two rows of 8 x 8 latents, random weights, as SDXL's classifier-free guidance calls it."""
    torch.manual_seed(0)
    with torch.device("meta"):
        empty = UNet(SDXL.unet)
        reference = UNet2DConditionModel(
            block_out_channels=(320, 640, 1280),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 10),
            attention_head_dim=(5, 10, 20),
            cross_attention_dim=2048,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        ).eval()
    reference = reference.to_empty(device="cpu")
    for parameter in reference.parameters():
        parameter.uniform_(-0.03, 0.03)
    unet = filled(empty, "unet", reference, SDXL)
    assert parameters(unet) == 2_567_463_684
    x, tokens, pooled = torch.randn(2, 4, 8, 8), torch.randn(2, 77, 2048), torch.randn(2, 1280)
    sizes = torch.tensor([[1024, 1024, 0, 0, 1024, 1024], [512, 768, 0, 64, 1024, 1024]])
    expected = reference(
        x, torch.tensor(981), tokens, added_cond_kwargs={"text_embeds": pooled, "time_ids": sizes}
    ).sample
    assert torch.equal(unet(x, torch.tensor(981), Cond(tokens, pooled, sizes)), expected)


@torch.no_grad()
def test_the_full_size_autoencoder_is_bit_equal_to_diffusers():
    torch.manual_seed(0)
    reference = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
    ).eval()
    with torch.device("meta"):
        empty = VAE(SD15.vae)
    vae = filled(empty, "vae", reference, SD15)
    images, latents = torch.randn(1, 3, 64, 64), torch.randn(1, 4, 8, 8)
    assert torch.equal(vae.moments(images)[0], reference.encode(images).latent_dist.mean)
    assert torch.equal(vae.decode(latents), reference.decode(1 / 0.18215 * latents).sample)


def test_conditions_are_indexed_by_row():
    cond = Cond(torch.arange(12.0).reshape(4, 1, 3))
    assert len(cond) == 4
    for rows, expected in ((2, [2]), (slice(1, 3), [1, 2]), ([3, 0, 0], [3, 0, 0]), (torch.tensor([1]), [1])):
        assert_close(cond[rows].tokens, cond.tokens[expected], **EXACT)


@torch.no_grad()
def test_each_row_may_have_its_own_timestep():
    torch.manual_seed(0)
    unet = UNet(TINY).eval()
    x, cond = torch.randn(2, 4, 8, 8), Cond(torch.randn(2, 7, 16))

    both = unet(x, torch.tensor([3, 700]), cond)

    for k, t in enumerate((3, 700)):
        assert_close(both[k : k + 1], unet(x[k : k + 1], torch.tensor(t), cond[k]), **NETWORK)


@torch.no_grad()
def test_sides_that_halve_unevenly_come_back_to_their_size():
    unet = UNet(TINY).eval()

    assert unet(torch.randn(1, 4, 9, 7), torch.tensor(1), Cond(torch.randn(1, 7, 16))).shape == (1, 4, 9, 7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_a_network_in_half_precision_takes_and_returns_the_callers_dtype(dtype):
    unet, vae = UNet(TINY).to(dtype), VAE(MINI.vae).to(dtype)
    x = torch.randn(1, 4, 8, 8)

    assert unet(x, torch.tensor(1), Cond(torch.randn(1, 7, 16))).dtype == torch.float32
    assert vae.decode(x).dtype == torch.float32
    assert vae.encode(torch.zeros(1, 3, 32, 32)).dtype == torch.float32
