import json
import os
import pickle
import shutil
import sys
from dataclasses import replace
from types import ModuleType

import diffusers
import pytest
import torch
from conftest import EXACT
from diffusers import AutoencoderKL, DDIMScheduler, PNDMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from tiny import TINY1, TINY2, compvis_tensors, modules, same, states
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import CLIPTextConfig, CLIPTextModel

from sld.checkpoints import CheckpointError, load, save_compvis, save_diffusers
from sld.checkpoints.folders import read_config, write_configs
from sld.models.denoiser import Cond
from sld.published import MINI, SD15, SD21

CROSS = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D")
PLAIN = ("DownBlock2D", "UpBlock2D")
UNETS = {
    "SD 1: convolutional projections, one number of heads": {
        "block_out_channels": (32, 64, 64),
        "attention": (True, True, False),
        "attention_head_dim": 4,
        "layers_per_block": 2,
    },
    "SD 2: linear projections, heads of one width": {
        "block_out_channels": (32, 64),
        "attention": (True, True),
        "attention_head_dim": [2, 4],
        "use_linear_projection": True,
        "layers_per_block": 2,
        "upcast_attention": True,
    },
    "ours: no attention at the finest level, one block": {
        "block_out_channels": (16, 32, 48),
        "attention": (False, True, True),
        "attention_head_dim": [2, 2, 3],
        "use_linear_projection": True,
        "layers_per_block": 1,
        "norm_num_groups": 8,
    },
    "depth, a single level less attention": {
        "block_out_channels": (32, 32),
        "attention": (True, False),
        "attention_head_dim": 2,
        "transformer_layers_per_block": [2, 1],
        "layers_per_block": 1,
    },
}


def reference(folder, unet=UNETS["SD 1: convolutional projections, one number of heads"], activation="quick_gelu"):
    """A folder of tiny random networks as diffusers and transformers write it, and the networks."""
    torch.manual_seed(1)
    attention = unet["attention"]
    options = {key: value for key, value in unet.items() if key != "attention"}
    networks = (
        UNet2DConditionModel(
            **options,
            down_block_types=tuple((CROSS if a else PLAIN)[0] for a in attention),
            up_block_types=tuple((CROSS if a else PLAIN)[1] for a in reversed(attention)),
            cross_attention_dim=24,
            sample_size=8,
        ),
        AutoencoderKL(
            block_out_channels=(16, 32, 32),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            norm_num_groups=8,
            layers_per_block=2,
            scaling_factor=0.3,
        ),
        CLIPTextModel(
            CLIPTextConfig(
                vocab_size=50,
                hidden_size=24,
                intermediate_size=40,
                num_hidden_layers=3,
                num_attention_heads=4,
                max_position_embeddings=9,
                hidden_act=activation,
                bos_token_id=48,
                eos_token_id=49,
            )
        ),
    )
    for network, name in zip(networks, ("unet", "vae", "text_encoder"), strict=True):
        network.eval().save_pretrained(folder / name)
    PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, skip_prk_steps=True
    ).save_pretrained(folder / "scheduler")
    return networks


@pytest.mark.parametrize("size", [(8, 8), (7, 10)], ids=str)
@pytest.mark.parametrize("unet", UNETS.values(), ids=UNETS)
def test_a_unet_from_diffusers_computes_what_it_computed_there(unet, size, tmp_path):
    theirs = reference(tmp_path, unet)[0]
    ours = load(tmp_path).unet
    x, text = torch.randn(2, 4, *size), torch.randn(2, 9, 24)
    with torch.no_grad():
        expected = theirs(x, torch.tensor(321), text).sample
        assert_close(ours(x, torch.tensor(321), Cond(text)), expected, **EXACT)


def test_an_autoencoder_from_diffusers_computes_what_it_computed_there(tmp_path):
    theirs = reference(tmp_path)[1]
    ours = load(tmp_path).vae
    images, z = torch.randn(2, 3, 24, 16).clamp(-1, 1), torch.randn(2, 4, 6, 4)
    with torch.no_grad():
        posterior = theirs.encode(images).latent_dist
        mean, log_variance = ours.moments(images)
        assert_close(mean, posterior.mean, **EXACT)
        assert_close(log_variance, posterior.logvar, **EXACT)
        assert_close(ours.decode(z), theirs.decode(1 / 0.3 * z).sample, **EXACT)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_a_text_encoder_from_transformers_computes_what_it_computed_there(activation, tmp_path):
    theirs = reference(tmp_path, activation=activation)[2]
    parts = load(tmp_path)
    ids = torch.randint(50, (3, 9))
    with torch.no_grad():
        assert_close(parts.texts[0](ids), theirs(input_ids=ids).last_hidden_state, **EXACT)
    assert parts.config.texts[0].pad == (0 if activation == "gelu" else None)


def test_loaded_networks_are_in_eval_mode_whole_and_want_no_gradient(tmp_path):
    reference(tmp_path)
    parts = load(tmp_path)
    for network in (parts.unet, parts.vae, *parts.texts):
        assert not network.training
        tensors = [*network.parameters(), *network.buffers()]
        assert not any(x.requires_grad or x.is_meta for x in tensors)
        assert {p.dtype for p in network.parameters()} == {torch.float32}


def test_no_weight_is_drawn_that_the_checkpoint_replaces(tmp_path):
    """A third of the time of loading went into drawing them. Seen to fail without `_Unwritten`."""

    class Called(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            names.add(function.overloadpacket.__name__)
            return function(*args, **(kwargs or {}))

    reference(tmp_path)
    names: set[str] = set()
    with Called():
        load(tmp_path)

    assert "empty" in names
    assert not names & {"normal_", "uniform_", "erfinv_"}


def test_the_schedule_and_the_size_come_from_the_folder(tmp_path):
    reference(tmp_path)
    DDIMScheduler(
        beta_start=0.001,
        beta_end=0.02,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        set_alpha_to_one=True,
        num_train_timesteps=500,
    ).save_pretrained(tmp_path / "scheduler")
    config = load(tmp_path).config
    assert config.schedule.prediction == "v"
    assert (config.schedule.steps, config.schedule.beta_start, config.schedule.beta_end) == (500, 0.001, 0.02)
    assert config.schedule.final_alpha_one
    assert config.schedule.steps_offset == 1  # what both originals take where a folder says nothing
    assert config.defaults.size == 8 * 4
    assert config.vae.scaling == 0.3


@pytest.mark.parametrize(
    ("scheduler", "sampler"),
    [
        ("PNDMScheduler", "pndm"),
        ("DDIMScheduler", "ddim"),
        ("EulerDiscreteScheduler", "euler"),
        ("EulerAncestralDiscreteScheduler", "euler-ancestral"),
        ("LMSDiscreteScheduler", "lms"),
        ("DPMSolverMultistepScheduler", "dpmpp-2m"),
    ],
)
def test_the_sampler_is_the_one_that_the_folder_names(scheduler, sampler, tmp_path):
    """And it changes nothing else. Killed by: the class not read; PNDM written always."""
    write_configs(tmp_path / "a", replace(TINY1, defaults=replace(TINY1.defaults, sampler="pndm")))
    (tmp_path / "a/model_index.json").unlink()  # it names PNDM
    plain = read_config(tmp_path / "a")
    kind = getattr(diffusers, scheduler)
    kind.from_pretrained(tmp_path / "a/scheduler").save_pretrained(tmp_path / "a/scheduler")
    config = read_config(tmp_path / "a")
    spacing = None if sampler in ("pndm", "ddim") else "leading"  # PNDM's usual one, which the file states
    assert config == replace(plain, defaults=replace(plain.defaults, sampler=sampler, spacing=spacing))

    write_configs(tmp_path / "b", config)
    assert type(kind.from_pretrained(tmp_path / "b/scheduler")) is kind
    assert json.loads((tmp_path / "b/model_index.json").read_text())["scheduler"] == ["diffusers", scheduler]
    assert read_config(tmp_path / "b") == replace(config, name="b")


def test_a_published_model_has_its_name_whichever_sampler_its_folder_names(tmp_path):
    """Killed by: whole configs compared."""
    for sampler in ("pndm", "ddim"):
        write_configs(tmp_path, replace(SD21, defaults=replace(SD21.defaults, sampler=sampler)))
        config = read_config(tmp_path)
        assert (config.name, config.defaults.sampler) == ("sd21", sampler)


@pytest.mark.parametrize(
    ("file", "content", "pad"),
    [
        ("special_tokens_map.json", {"pad_token": "!"}, 0),
        ("special_tokens_map.json", {"pad_token": {"content": "!", "lstrip": False}}, 0),
        ("special_tokens_map.json", {"pad_token": "<|endoftext|>"}, None),
        ("tokenizer_config.json", {"pad_token": "!", "eos_token": "<|endoftext|>"}, 0),
        ("tokenizer_config.json", {"pad_token": "[end]", "eos_token": "[end]"}, None),
    ],
)
def test_the_padding_comes_from_the_tokenizer(file, content, pad, tmp_path):
    reference(tmp_path)
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer/vocab.json").write_text(json.dumps({"!": 0, "<|endoftext|>": 49}))
    (tmp_path / "tokenizer" / file).write_text(json.dumps(content))
    parts = load(tmp_path)
    assert parts.config.texts[0].pad == pad
    assert parts.tokenizer_folder == tmp_path / "tokenizer"


@pytest.mark.parametrize("shape", ["linear", "convolution"])
def test_old_names_of_the_attention_in_the_autoencoder_are_read(shape, tmp_path):
    reference(tmp_path)
    new = states(load(tmp_path))
    path = tmp_path / "vae/diffusion_pytorch_model.safetensors"
    tensors = {}
    for key, x in load_file(path).items():
        for now, before in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
            if now in key:
                key = key.replace(now, before)
                x = x[:, :, None, None] if shape == "convolution" and x.ndim == 2 else x
        tensors[key] = x
    save_file(tensors, path)
    assert any("proj_attn" in key for key in tensors)
    assert same(states(load(tmp_path)), new)


def test_text_keys_are_read_with_their_prefix_and_with_stray_positions(tmp_path):
    reference(tmp_path)
    plain = states(load(tmp_path))
    path = tmp_path / "text_encoder/model.safetensors"
    tensors = {f"text_model.{key}": x for key, x in load_file(path).items()}
    assert not any(key.startswith("text_model.text_model") for key in tensors)
    save_file(tensors | {"text_model.embeddings.position_ids": torch.arange(9)[None]}, path)
    assert same(states(load(tmp_path)), plain)


def test_weights_of_a_folder_may_be_pickles_or_a_half_precision_variant(tmp_path):
    reference(tmp_path)
    full = states(load(tmp_path))
    unet = tmp_path / "unet/diffusion_pytorch_model.safetensors"
    torch.save(load_file(unet), unet.with_suffix(".bin"))
    unet.unlink()
    text = tmp_path / "text_encoder/model.safetensors"
    torch.save(load_file(text), text.with_name("pytorch_model.bin"))
    text.unlink()
    vae = tmp_path / "vae/diffusion_pytorch_model.safetensors"
    save_file({key: x.half() for key, x in load_file(vae).items()}, vae.with_suffix(".fp16.safetensors"))
    vae.unlink()
    parts = load(tmp_path, dtype=None)
    assert parts.vae.dtype == torch.float16
    assert parts.unet.dtype == torch.float32
    assert same(states(parts), {key: x.half() if key.startswith("1.") else x for key, x in full.items()})
    assert list(parts.source.sha256) == [
        "unet/diffusion_pytorch_model.bin",
        "vae/diffusion_pytorch_model.fp16.safetensors",
        "text_encoder/pytorch_model.bin",
    ]


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("unet/config.json", "class_embed_type", "timestep"),
        ("unet/config.json", "addition_embed_type", "text_time"),
        ("unet/config.json", "in_channels", 5),
        ("unet/config.json", "down_block_types", ["AttnDownBlock2D"] * 3),
        ("vae/config.json", "use_quant_conv", False),
        ("text_encoder/config.json", "hidden_act", "relu"),
        ("scheduler/scheduler_config.json", "prediction_type", "sample"),
    ],
)
def test_a_folder_that_asks_for_what_we_do_not_compute_is_refused(file, key, value, tmp_path):
    reference(tmp_path)
    config = json.loads((tmp_path / file).read_text())
    (tmp_path / file).write_text(json.dumps(config | {key: value}))
    with pytest.raises(CheckpointError, match=str(value).split("'")[1] if isinstance(value, list) else str(value)) as e:
        load(tmp_path)
    assert file in str(e.value)


@pytest.mark.parametrize("missing", ["unet/config.json", "scheduler", "vae/diffusion_pytorch_model.safetensors"])
def test_a_folder_with_a_missing_piece_is_named_by_it(missing, tmp_path):
    reference(tmp_path)
    path = tmp_path / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(CheckpointError, match=missing):
        load(tmp_path)


# Single files


@pytest.mark.parametrize("config", [TINY1, TINY2, MINI], ids=lambda c: c.name)
def test_a_file_we_wrote_says_itself_which_model_it_is(config, tmp_path):
    networks = modules(config)
    save_compvis(tmp_path / "model.safetensors", config, *networks)
    parts = load(tmp_path / "model.safetensors")
    assert parts.config == config
    assert same(states(parts), states(networks))
    assert list(parts.source.sha256) == ["model.safetensors"]
    assert parts.tokenizer_folder is None


def test_training_leftovers_and_averages_are_known_and_left_out(tmp_path):
    tensors = compvis_tensors(TINY2, tmp_path)
    extra = {
        "betas": torch.zeros(10),
        "sqrt_recipm1_alphas_cumprod": torch.zeros(10),
        "posterior_log_variance_clipped": torch.zeros(10),
        "logvar": torch.zeros(10),
        "model_ema.decay": torch.tensor(0.9),
        "model_ema.num_updates": torch.tensor(3),
        "model_ema.diffusion_modeltime_embed0weight": torch.zeros(3),
        "first_stage_model.loss.logvar": torch.zeros(()),
        "cond_stage_model.model.transformer.resblocks.2.ln_1.weight": torch.zeros(16),
        "cond_stage_model.model.text_projection": torch.zeros(16, 16),
        "cond_stage_model.model.logit_scale": torch.zeros(()),
    }
    torch.save(
        {
            "state_dict": tensors | extra,
            "optimizer_states": [{"state": {0: torch.zeros(4)}}],
            "global_step": 5,
            "callbacks": {},
        },
        tmp_path / "full.ckpt",
    )
    assert same(states(load(tmp_path / "full.ckpt", TINY2)), states(modules(TINY2)))


def test_openclips_last_layer_is_left_out_but_no_other_extra_layer(tmp_path):
    tensors = compvis_tensors(TINY2, tmp_path)
    save_file(
        tensors | {"cond_stage_model.model.transformer.resblocks.3.ln_1.weight": torch.zeros(16)},
        tmp_path / "extra.safetensors",
    )
    with pytest.raises(CheckpointError, match=r"1 key of the file is unknown: +cond_stage_model.*resblocks\.3"):
        load(tmp_path / "extra.safetensors", TINY2)


def test_averaged_weights_are_read_when_asked_for(tmp_path):
    tensors = compvis_tensors(TINY1, tmp_path)
    ema = {
        "model_ema." + key.removeprefix("model.").replace(".", ""): x + 1
        for key, x in tensors.items()
        if key.startswith("model.diffusion_model.")
    }
    torch.save({"state_dict": tensors | ema | {"model_ema.decay": torch.tensor(0.9)}}, tmp_path / "ema.ckpt")
    last = states(load(tmp_path / "ema.ckpt", TINY1))
    averaged = states(load(tmp_path / "ema.ckpt", TINY1, use_ema=True))
    assert same(averaged, {key: x + 1 if key.startswith("0.") else x for key, x in last.items()})


def test_a_file_without_averages_cannot_give_them(tmp_path):
    save_compvis(tmp_path / "model.safetensors", TINY1, *modules(TINY1))
    with pytest.raises(CheckpointError, match="no averaged UNet"):
        load(tmp_path / "model.safetensors", use_ema=True)


def test_a_folder_is_not_asked_for_averages(tmp_path):
    reference(tmp_path)
    with pytest.raises(CheckpointError, match="leave use_ema out"):
        load(tmp_path, use_ema=True)


@pytest.mark.parametrize("prefix", ["cond_stage_model.transformer.", "cond_stage_model.transformer.text_model."])
def test_sd1_text_keys_of_a_single_file_are_read_in_both_spellings(prefix, tmp_path):
    tensors = compvis_tensors(TINY1, tmp_path)
    long = "cond_stage_model.transformer.text_model."
    tensors = {prefix + key.removeprefix(long) if key.startswith(long) else key: x for key, x in tensors.items()}
    tensors[f"{prefix}embeddings.position_ids"] = torch.arange(8)[None]
    save_file(tensors, tmp_path / "other.safetensors")
    assert same(states(load(tmp_path / "other.safetensors", TINY1)), states(modules(TINY1)))


def test_half_precision_is_kept_or_cast_as_asked(tmp_path):
    networks = modules(TINY1)
    save_compvis(tmp_path / "half.safetensors", TINY1, *networks, dtype=torch.float16)
    half = {key: x.half() for key, x in states(networks).items()}
    assert same(states(load(tmp_path / "half.safetensors", dtype=None)), half)
    assert same(states(load(tmp_path / "half.safetensors")), {key: x.float() for key, x in half.items()})
    assert load(tmp_path / "half.safetensors", dtype=torch.bfloat16).unet.dtype == torch.bfloat16


@pytest.mark.parametrize(("context", "config"), [(768, SD15), (1024, SD21)], ids=["768", "1024"])
def test_the_text_width_tells_sd1_from_sd2(context, config, tmp_path):
    key = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
    save_file({key: torch.zeros(320, context)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=rf"does not match {config.name} read as 'compvis'"):
        load(tmp_path / "model.safetensors")


# Errors


def test_one_error_lists_every_problem_and_the_likely_cause(tmp_path):
    tensors = compvis_tensors(TINY1, tmp_path)
    key = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
    tensors[key] = torch.zeros(16, 1024)
    tensors["model.diffusion_model.label_emb.0.0.weight"] = torch.zeros(3)
    tensors["model.diffusion_model.label_emb.0.0.bias"] = torch.zeros(3)
    del tensors["first_stage_model.quant_conv.bias"]
    tensors["model.diffusion_model.out.0.bias"] = torch.zeros(16, dtype=torch.int8)
    save_file(tensors, tmp_path / "sd-v1-4.safetensors")
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path / "sd-v1-4.safetensors", TINY1)
    assert str(caught.value).splitlines() == [
        "sd-v1-4.safetensors does not match tiny1 read as 'compvis'",
        "  2 keys of the file are unknown:              model.diffusion_model.label_emb.0.0.bias",
        "                                               model.diffusion_model.label_emb.0.0.weight",
        "  1 parameter of the model is not in the file: vae.encoder.moments.bias",
        "  1 shape differs:                             "
        "unet.down.0.attn.0.blocks.0.cross.k.weight  file (16, 1024)  model (16, 12)",
        "  1 tensor is not floating point:              model.diffusion_model.out.0.bias",
        '  The shapes suggest an SD 2 file: try config="sd21-base" or "sd21".',
    ]


def test_a_stacked_projection_of_a_wrong_size_is_a_shape_that_differs(tmp_path):
    tensors = compvis_tensors(TINY2, tmp_path)
    tensors["cond_stage_model.model.transformer.resblocks.0.attn.in_proj_bias"] = torch.zeros(2)
    tensors["cond_stage_model.model.transformer.resblocks.1.attn.in_proj_bias"] = torch.zeros(())
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="6 shapes differ"):
        load(tmp_path / "model.safetensors", TINY2)


def test_two_spellings_of_one_parameter_are_not_chosen_from(tmp_path):
    reference(tmp_path)
    path = tmp_path / "text_encoder/model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"text_model.final_layer_norm.bias": torch.ones(24)}, path)
    with pytest.raises(CheckpointError, match=r"1 key of the file .*text_encoder/final_layer_norm\.bias"):
        load(tmp_path)


def test_a_file_without_a_text_encoder_says_so_in_one_line(tmp_path):
    tensors = compvis_tensors(TINY1, tmp_path)
    save_file({k: x for k, x in tensors.items() if not k.startswith("cond_stage")}, tmp_path / "pruned.safetensors")
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path / "pruned.safetensors", TINY1)
    assert "the file holds no text encoder" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("key", "shape", "hint"),
    [
        ("conditioner.embedders.0.transformer.x", (3,), "SDXL"),
        ("model.diffusion_model.input_blocks.0.0.weight", (16, 5, 3, 3), "5 channels: depth"),
        ("model.diffusion_model.input_blocks.0.0.weight", (16, 9, 3, 3), "9 channels"),
    ],
)
def test_models_of_another_kind_are_recognized(key, shape, hint, tmp_path):
    save_file(compvis_tensors(TINY1, tmp_path) | {key: torch.zeros(shape)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match=hint):
        load(tmp_path / "other.safetensors", TINY1)


def test_an_unknown_file_names_what_it_begins_with(tmp_path):
    save_file({"lora_unet.x": torch.zeros(1)}, tmp_path / "lora.safetensors")
    with pytest.raises(CheckpointError, match="lora_unet"):
        load(tmp_path / "lora.safetensors")


def test_a_misspelt_model_gets_a_suggestion(tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="did you mean 'sd21-base'"):
        load(tmp_path / "model.safetensors", "sd21_base")


class Command:
    """A pickle of this runs a command when it is read carelessly."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("zipped", [False, True])
def test_a_pickle_that_would_run_code_is_refused_and_runs_nothing(zipped, nested, tmp_path):
    evil = Command(f"touch {tmp_path}/ran")
    content = {"state_dict": {"x": torch.zeros(2)}, "callbacks": evil} if nested else evil
    torch.save(content, tmp_path / "evil.ckpt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"would run code when read \(it refers to posix.system\)"):
        load(tmp_path / "evil.ckpt", TINY1)
    assert not (tmp_path / "ran").exists()
    pickle.loads(pickle.dumps(evil))
    assert (tmp_path / "ran").exists()  # the command works


LIGHTNING = "pytorch_lightning.callbacks.model_checkpoint"


def test_the_reference_to_lightning_in_sd1_checkpoints_is_read_without_lightning(tmp_path, monkeypatch):
    for name in ("pytorch_lightning", "pytorch_lightning.callbacks", LIGHTNING):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    callback = type("ModelCheckpoint", (), {"__module__": LIGHTNING})
    sys.modules[LIGHTNING].ModelCheckpoint = callback
    torch.save(
        {"state_dict": compvis_tensors(TINY1, tmp_path), "callbacks": {callback: {"best": None}}}, tmp_path / "sd.ckpt"
    )
    monkeypatch.undo()
    assert LIGHTNING not in sys.modules
    assert same(states(load(tmp_path / "sd.ckpt", TINY1)), states(modules(TINY1)))


@pytest.mark.parametrize("zipped", [False, True])
def test_pickles_are_read_in_both_of_torchs_formats_and_unnested(zipped, tmp_path):
    tensors = compvis_tensors(TINY1, tmp_path)
    torch.save(tensors | {"global_step": 7}, tmp_path / "flat.ckpt", _use_new_zipfile_serialization=zipped)
    assert same(states(load(tmp_path / "flat.ckpt", TINY1)), states(modules(TINY1)))


@pytest.mark.parametrize("kept", [0, 4, 100, 0.5, 0.999])
@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_a_truncated_file_is_an_error_that_says_so(suffix, kept, tmp_path):
    tensors = compvis_tensors(TINY1, tmp_path)
    path = tmp_path / f"cut{suffix}"
    save_file(tensors, path) if suffix == ".safetensors" else torch.save(tensors, path)
    data = path.read_bytes()
    path.write_bytes(data[: kept if isinstance(kept, int) else int(kept * len(data))])
    with pytest.raises(CheckpointError, match="fetch it again"):
        load(path, TINY1)


def test_a_safetensors_header_of_any_length_is_not_taken_for_a_pickle(tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    data = (tmp_path / "model.safetensors").read_bytes()
    header = data[8:-4].ljust(0x80)  # 0x80, the length's first byte, also begins a pickle
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + data[-4:])
    with pytest.raises(CheckpointError, match="is not recognized as Stable Diffusion"):
        load(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("model.safetensors", b"version https://git-lfs/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
        ("model.ckpt", b"version https://git-lfs/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
        ("model.safetensors", b"<!DOCTYPE html><html>Sign in", "is a web page"),
        ("model.safetensors", b"PK\x03\x04" + bytes(60), "rename it to .ckpt"),
        ("model.ckpt", (64).to_bytes(8, "little") + b'{"a":' + bytes(60), "rename it to .safetensors"),
        ("model.gguf", b"GGUF", "expected one of .safetensors, .ckpt"),
        ("model.ckpt", pickle.dumps([1, 2], protocol=2), "fetch it again|expected a dictionary"),
    ],
)
def test_a_file_that_is_something_else_says_what_to_do(name, content, says, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=says):
        load(tmp_path / name, TINY1)


def test_a_path_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"nothing-here\.ckpt: there is no such file"):
        load(tmp_path / "nothing-here.ckpt")


def test_a_folder_with_a_single_file_in_it_says_to_give_the_files_path(tmp_path):
    (tmp_path / "model.ckpt").touch()
    with pytest.raises(CheckpointError, match=r"give its path \(model.ckpt\)"):
        load(tmp_path)


def test_a_folder_loaded_under_a_wrong_name_is_told_to_speak_for_itself(tmp_path):
    save_diffusers(tmp_path / "folder", TINY1, *modules(TINY1))
    assert load(tmp_path / "folder").config == replace(TINY1, name="folder")
    with pytest.raises(CheckpointError, match="try without config="):
        load(tmp_path / "folder", TINY2)
