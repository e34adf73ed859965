import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from conftest import EXACT
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from safetensors.torch import load_file
from tiny import TINY1, TINY2, compvis_tensors, modules
from torch import nn
from torch.testing import assert_close
from transformers import CLIPTextConfig, CLIPTextModel

from sld.checkpoints import save_diffusers
from sld.checkpoints.parts import leftovers, parts
from sld.checkpoints.remap import KeyMap
from sld.config import ModelConfig, TextConfig
from sld.models.text import TextEncoder
from sld.models.unet import UNet
from sld.models.vae import VAE
from sld.published import CONFIGS, MINI, SD15, SD21, SDXL

# From the model cards' config.json files.
DIFFUSERS_UNET = {
    "sd15": {"cross_attention_dim": 768, "attention_head_dim": 8},
    "sd21": {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True},
    "sdxl": {
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": [1, 2, 10],
        "attention_head_dim": [5, 10, 20],
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}
DIFFUSERS_VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
}
# From the state dicts of sd-v1-4.ckpt, v2-1_768-ema-pruned.ckpt and sd_xl_base_1.0.safetensors: one of every kind, and
# the corners.
COMPVIS_SHAPES = {
    "sd15": {
        "model.diffusion_model.time_embed.2.bias": (1280,),
        "model.diffusion_model.input_blocks.3.0.op.weight": (320, 320, 3, 3),
        "model.diffusion_model.input_blocks.4.0.skip_connection.weight": (640, 320, 1, 1),
        "model.diffusion_model.input_blocks.8.1.transformer_blocks.0.attn2.to_v.weight": (1280, 768),
        "model.diffusion_model.input_blocks.1.1.proj_in.weight": (320, 320, 1, 1),
        "model.diffusion_model.input_blocks.11.0.emb_layers.1.weight": (1280, 1280),
        "model.diffusion_model.middle_block.1.norm.weight": (1280,),
        "model.diffusion_model.output_blocks.2.1.conv.weight": (1280, 1280, 3, 3),
        "model.diffusion_model.output_blocks.5.2.conv.weight": (1280, 1280, 3, 3),
        "model.diffusion_model.output_blocks.11.0.in_layers.2.weight": (320, 640, 3, 3),
        "model.diffusion_model.out.2.weight": (4, 320, 3, 3),
        "first_stage_model.quant_conv.weight": (8, 8, 1, 1),
        "first_stage_model.encoder.mid.attn_1.proj_out.weight": (512, 512, 1, 1),
        "first_stage_model.encoder.down.2.downsample.conv.weight": (512, 512, 3, 3),
        "first_stage_model.decoder.up.0.block.0.nin_shortcut.weight": (128, 256, 1, 1),
        "first_stage_model.decoder.up.3.upsample.conv.bias": (512,),
        "cond_stage_model.transformer.text_model.embeddings.position_embedding.weight": (77, 768),
        "cond_stage_model.transformer.text_model.encoder.layers.11.mlp.fc1.weight": (3072, 768),
        "cond_stage_model.transformer.text_model.final_layer_norm.weight": (768,),
    },
    "sd21": {
        "model.diffusion_model.input_blocks.1.1.proj_in.weight": (320, 320),
        "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight": (1280, 1024),
        "cond_stage_model.model.positional_embedding": (77, 1024),
        "cond_stage_model.model.token_embedding.weight": (49408, 1024),
        "cond_stage_model.model.transformer.resblocks.22.attn.in_proj_weight": (3072, 1024),
        "cond_stage_model.model.transformer.resblocks.22.attn.in_proj_bias": (3072,),
        "cond_stage_model.model.transformer.resblocks.0.mlp.c_proj.weight": (1024, 4096),
        "cond_stage_model.model.ln_final.bias": (1024,),
    },
    "sdxl": {
        "model.diffusion_model.label_emb.0.0.weight": (1280, 2816),
        "model.diffusion_model.label_emb.0.2.bias": (1280,),
        "model.diffusion_model.input_blocks.4.1.transformer_blocks.1.attn2.to_k.weight": (640, 2048),
        "model.diffusion_model.middle_block.1.transformer_blocks.9.ff.net.2.weight": (1280, 5120),
        "model.diffusion_model.output_blocks.2.2.conv.weight": (1280, 1280, 3, 3),
        "conditioner.embedders.0.transformer.text_model.encoder.layers.11.mlp.fc1.weight": (3072, 768),
        "conditioner.embedders.0.transformer.text_model.final_layer_norm.weight": (768,),
        "conditioner.embedders.1.model.transformer.resblocks.31.attn.in_proj_weight": (3840, 1280),
        "conditioner.embedders.1.model.ln_final.weight": (1280,),
        "conditioner.embedders.1.model.text_projection": (1280, 1280),
    },
}


@cache
def meta_models(config: ModelConfig) -> dict[str, nn.Module]:
    with torch.device("meta"):
        texts = zip(("text", "text_2"), config.texts, strict=False)
        return {"unet": UNet(config.unet), "vae": VAE(config.vae), **{key: TextEncoder(text) for key, text in texts}}


def key_maps(key: str, format: str, config: ModelConfig, use_ema: bool = False) -> list[KeyMap]:
    return next(part for part in parts(config) if part.key == key).key_maps(format, use_ema)


@pytest.mark.parametrize("config", [*CONFIGS.values(), TINY1, TINY2], ids=lambda c: c.name)
def test_names_and_shapes_are_those_of_the_networks(config: ModelConfig):
    """Killed by: a shortcut for every block, skip connections in another order, a level's change of size left out, a
    norm of the feed-forward width."""
    models = meta_models(config)
    assert [part.key for part in parts(config)] == list(models)
    for part in parts(config):
        assert part.shapes == {name: tuple(x.shape) for name, x in models[part.key].state_dict().items()}


def test_a_second_text_encoder_is_an_entry():
    """Its folder, keys and shapes follow from the config alone."""
    second = TextConfig(width=20, layers=1, heads=2, hidden=40)
    both = parts(replace(TINY1, unet=replace(TINY1.unet, context=32), texts=(*TINY1.texts, second)))
    assert [part.key for part in both] == ["unet", "vae", "text", "text_2"]
    assert (both[3].folder, both[3].title) == ("text_encoder_2", "text encoder 2")
    assert both[3].shapes["clip.encoder.layers.0.mlp.fc1.weight"] == (40, 20)


def test_telling_names_and_shapes_loads_no_torch():
    code = (
        "import sys; from sld.published import SD15; from sld.checkpoints.parts import parts; "
        "[part.shapes for part in parts(SD15)]; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0


def written(part: str, format: str, config: ModelConfig) -> dict[str, torch.Size]:
    state = meta_models(config)[part].state_dict()
    return {key_map.theirs[0]: key_map.write(state).shape for key_map in key_maps(part, format, config)}


@pytest.mark.parametrize("format", ["compvis", "diffusers"])
@pytest.mark.parametrize("config", [*CONFIGS.values(), TINY1, TINY2], ids=lambda c: c.name)
def test_every_parameter_has_one_rule_and_every_rule_another_key(config, format):
    for part, model in meta_models(config).items():
        found = key_maps(part, format, config)
        assert sorted(key for key_map in found for key in key_map.ours) == sorted(model.state_dict())
        keys = [key for key_map in found for key in key_map.theirs]
        assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(("config", "count"), [(SD15, 686), (SD21, 686), (SDXL, 1680)], ids=["sd15", "sd21", "sdxl"])
def test_names_and_shapes_of_the_unet_are_diffusers_own(config, count):
    with torch.device("meta"):
        reference = UNet2DConditionModel(**DIFFUSERS_UNET[config.name])
    ours = written("unet", "diffusers", config)
    assert ours == {key: x.shape for key, x in reference.state_dict().items()}
    assert len(ours) == count


def test_names_and_shapes_of_the_autoencoder_are_diffusers_own():
    with torch.device("meta"):
        reference = AutoencoderKL(**DIFFUSERS_VAE)
    ours = written("vae", "diffusers", SD15)
    assert ours == {key: x.shape for key, x in reference.state_dict().items()}
    assert len(ours) == 248


@pytest.mark.parametrize(
    ("config", "count"),
    [(SD15, 686 + 248 + 196), (SD21, 686 + 248 + 280), (SDXL, 1680 + 248 + 196 + 389)],
    ids=["sd15", "sd21", "sdxl"],
)
def test_compvis_names_and_shapes_are_those_of_the_published_files(config, count):
    shapes = {key: shape for part in meta_models(config) for key, shape in written(part, "compvis", config).items()}
    assert {key: tuple(shapes[key]) for key in COMPVIS_SHAPES[config.name]} == COMPVIS_SHAPES[config.name]
    assert len(shapes) == count


@pytest.mark.parametrize("config", [SD15, SD21, SDXL], ids=lambda c: c.name)
def test_diffusers_converts_all_compvis_names_of_a_full_unet_to_the_names_we_give(config):
    ours = {key_map.theirs[0]: key_map.ours for key_map in key_maps("unet", "compvis", config)}
    theirs = {key_map.theirs[0]: key_map.ours for key_map in key_maps("unet", "diffusers", config)}
    told = {"addition_embed_type": "text_time"} if config.unet.pooled else {}
    assert convert_ldm_unet_checkpoint(ours, {"layers_per_block": 2, **told}) == theirs


@pytest.mark.parametrize("config", [TINY1, TINY2, MINI], ids=lambda c: c.name)
def test_diffusers_converts_our_single_file_to_the_tensors_of_our_folder(config, tmp_path):
    single = compvis_tensors(config, tmp_path)
    save_diffusers(tmp_path / "folder", config, *modules(config))

    unet = convert_ldm_unet_checkpoint(dict(single), {"layers_per_block": config.unet.res_blocks})
    assert_close(unet, load_file(tmp_path / "folder/unet/diffusion_pytorch_model.safetensors"), **EXACT)

    levels = {"down_block_types": config.vae.channels, "up_block_types": config.vae.channels}
    vae = convert_ldm_vae_checkpoint(dict(single), levels)
    assert_close(vae, load_file(tmp_path / "folder/vae/diffusion_pytorch_model.safetensors"), **EXACT)


def test_diffusers_converts_our_openclip_text_encoder_to_the_one_of_our_folder(tmp_path):
    text = TINY2.texts[0]
    single = compvis_tensors(TINY2, tmp_path)
    save_diffusers(tmp_path / "folder", TINY2, *modules(TINY2))
    with torch.device("meta"):
        model = CLIPTextModel(CLIPTextConfig(hidden_size=text.width, num_hidden_layers=2, num_attention_heads=2))
    converted = convert_open_clip_checkpoint(model, single)
    stored = load_file(tmp_path / "folder/text_encoder/model.safetensors")
    assert_close(converted, stored, **EXACT)


def test_averaged_names_of_a_unet_differ_from_each_other_and_are_litemas():
    keys = [key_map.theirs[0] for key_map in key_maps("unet", "compvis", SD15, use_ema=True)]
    assert len(set(keys)) == 686
    assert "model_ema.diffusion_modelinput_blocks101transformer_blocks0attn1to_qweight" not in keys
    assert "model_ema.diffusion_modelinput_blocks11transformer_blocks0attn1to_qweight" in keys
    assert "model_ema.diffusion_modelout2bias" in keys


@pytest.mark.parametrize("use_ema", [False, True])
@pytest.mark.parametrize("format", ["compvis", "diffusers"])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=lambda c: c.name)
def test_no_leftover_claims_a_key_that_has_a_rule(config, format, use_ema):
    if use_ema and format == "diffusers":
        return
    for part in meta_models(config):
        for key_map in key_maps(part, format, config, use_ema):
            known = leftovers(format, config, use_ema)
            assert not [name for name, pattern in known.items() if pattern.fullmatch(key_map.theirs[0])]
