import json
from dataclasses import replace

import pytest
import torch
from conftest import EXACT
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file
from tiny import TINY1, TINY2, compvis_tensors, modules, same, states
from torch import nn
from torch.testing import assert_close
from transformers import CLIPTextModel

import sld.checkpoints.files as files
from sld.checkpoints import CheckpointError, convert, load, save_compvis, save_diffusers
from sld.config import Defaults, ModelConfig
from sld.files import sha256
from sld.models.denoiser import Cond
from sld.published import MINI


def stray(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


@pytest.mark.parametrize("config", [TINY1, TINY2, MINI], ids=lambda c: c.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_there_and_back_again_is_bit_equal(config, dtype, tmp_path):
    save_compvis(tmp_path / "a.safetensors", config, *modules(config), dtype=dtype)
    convert(tmp_path / "a.safetensors", tmp_path / "b", "diffusers")
    convert(tmp_path / "b", tmp_path / "c.safetensors", "compvis")
    a = load_file(tmp_path / "a.safetensors")
    assert same(load_file(tmp_path / "c.safetensors"), a)
    assert {x.dtype for x in a.values()} == {dtype}
    assert load(tmp_path / "c.safetensors").config == replace(config, name=load(tmp_path / "b").config.name)
    assert stray(tmp_path) == []


@pytest.mark.parametrize("config", [TINY1, TINY2], ids=lambda c: c.name)
def test_leftovers_are_gone_after_a_conversion_and_averages_take_their_place(config, tmp_path):
    tensors = compvis_tensors(config, tmp_path)
    ema = {
        "model_ema." + key.removeprefix("model.").replace(".", ""): x * 2
        for key, x in tensors.items()
        if key.startswith("model.diffusion_model.")
    }
    torch.save({"state_dict": tensors | ema | {"betas": torch.zeros(3)}, "epoch": 3}, tmp_path / "full.ckpt")
    convert(tmp_path / "full.ckpt", tmp_path / "last.safetensors", "compvis", config=config)
    convert(tmp_path / "full.ckpt", tmp_path / "averaged.safetensors", "compvis", config=config, use_ema=True)
    assert same(load_file(tmp_path / "last.safetensors"), tensors)
    doubled = {key: x * 2 if key.startswith("model.diffusion") else x for key, x in tensors.items()}
    assert same(load_file(tmp_path / "averaged.safetensors"), doubled)


def test_a_conversion_may_change_the_dtype(tmp_path):
    save_compvis(tmp_path / "a.safetensors", TINY1, *modules(TINY1))
    convert(tmp_path / "a.safetensors", tmp_path / "b", "diffusers", dtype=torch.float16)
    half = {key: x.half() for key, x in states(modules(TINY1)).items()}
    assert same(states(load(tmp_path / "b", dtype=None)), half)


def test_the_config_is_json_in_the_metadata_of_a_single_file(tmp_path):
    save_compvis(tmp_path / "a.safetensors", MINI, *modules(MINI))
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        stored = file.metadata()["sld.config"]
    assert ModelConfig.from_dict(json.loads(stored)) == MINI


@pytest.mark.parametrize("config", [TINY1, TINY2, MINI], ids=lambda c: c.name)
def test_diffusers_and_transformers_load_our_folder_and_compute_the_same(config, tmp_path):
    unet, vae, text = modules(config)
    save_diffusers(tmp_path / "folder", config, unet, vae, text)
    their_unet = UNet2DConditionModel.from_pretrained(tmp_path / "folder/unet")
    their_vae = AutoencoderKL.from_pretrained(tmp_path / "folder/vae")
    their_text, info = CLIPTextModel.from_pretrained(tmp_path / "folder/text_encoder", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    x, images = torch.randn(2, 4, 8, 8), torch.randn(1, 3, 32, 32)
    ids = torch.randint(config.texts[0].vocabulary, (2, config.texts[0].tokens))
    with torch.no_grad():
        features = their_text.eval()(input_ids=ids).last_hidden_state
        assert_close(text.eval()(ids), features, **EXACT)
        assert_close(unet(x, torch.tensor(7), Cond(features)), their_unet(x, 7, features).sample, **EXACT)
        assert_close(vae.moments(images)[0], their_vae.encode(images).latent_dist.mean, **EXACT)
        assert_close(vae.decode(x), their_vae.decode(1 / config.vae.scaling * x).sample, **EXACT)


def test_diffusers_makes_a_whole_pipeline_of_our_folder(tmp_path):
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    words = [*"abcdefghijklmnopqr", *(f"{c}</w>" for c in "abcdefghijklmnopqrst"), "<|startoftext|>", "<|endoftext|>"]
    (tokenizer / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (tokenizer / "merges.txt").write_text("#version: 0.2\n")
    (tokenizer / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", "pad_token": "<|endoftext|>", "model_max_length": 8})
    )
    assert len(words) == TINY1.texts[0].vocabulary
    save_compvis(tmp_path / "a.safetensors", TINY1, *modules(TINY1))
    convert(tmp_path / "a.safetensors", tmp_path / "folder", "diffusers")
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "folder")
    assert pipe.scheduler.config.prediction_type == "epsilon"
    assert pipe.scheduler.config.steps_offset == 1
    pipe.set_progress_bar_config(disable=True)
    assert pipe("a b", num_inference_steps=2, output_type="latent").images.shape == (1, 4, 8, 8)
    assert load(tmp_path / "folder").tokenizer_folder == tmp_path / "folder/tokenizer"


@pytest.mark.parametrize(("target", "format"), [("there.safetensors", "compvis"), ("there", "diffusers")])
def test_an_existing_target_is_not_overwritten(target, format, tmp_path):
    save_compvis(tmp_path / "a.safetensors", TINY1, *modules(TINY1))
    (tmp_path / target).write_text("mine")
    with pytest.raises(CheckpointError, match="exists and is not overwritten"):
        convert(tmp_path / "a.safetensors", tmp_path / target, format)
    assert (tmp_path / target).read_text() == "mine"
    assert stray(tmp_path) == []


@pytest.mark.parametrize(("target", "format"), [("new.safetensors", "compvis"), ("new", "diffusers")])
def test_nothing_half_written_remains_when_writing_fails(target, format, tmp_path):
    unet, vae, text = modules(TINY1)
    vae.decoder.conv_out.weight = nn.Parameter(torch.empty_like(vae.decoder.conv_out.weight, device="meta"))
    save = save_compvis if format == "compvis" else save_diffusers
    with pytest.raises(NotImplementedError):
        save(tmp_path / target, TINY1, unet, vae, text)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_was_written_before_a_failure_is_removed(kind, tmp_path):
    with pytest.raises(RuntimeError), files.whole_or_nothing(tmp_path / "target.x") as partial:
        if kind == "folder":
            partial.mkdir()
        (partial / "part" if kind == "folder" else partial).write_text("half")
        assert not (tmp_path / "target.x").exists()
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_single_file_is_only_written_as_safetensors_into_a_folder_that_exists(tmp_path):
    with pytest.raises(CheckpointError, match=r"written as \.safetensors"):
        save_compvis(tmp_path / "a.ckpt", TINY1, *modules(TINY1))
    with pytest.raises(CheckpointError, match="is no folder"):
        save_compvis(tmp_path / "nowhere/a.safetensors", TINY1, *modules(TINY1))


def test_sha256_is_the_standard_one(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_folder_keeps_what_a_checkpoint_wants_by_default(tmp_path):
    """In a file of ours, where diffusers has no place for it. Killed by: not written; not read."""
    wants = Defaults(size=16, sampler="ddim", spacing="trailing", steps=20, guidance_scale=3.0, concept="a knife")
    for config, kept in ((TINY1, False), (replace(TINY1, defaults=wants), True)):
        folder = tmp_path / str(kept)
        save_diffusers(folder, config, *modules(TINY1))
        assert (folder / "sld.json").exists() == kept
        assert load(folder).config == replace(config, name=folder.name)
    for file in (folder / "scheduler/scheduler_config.json", folder / "model_index.json"):
        file.write_text(file.read_text().replace("DDIMScheduler", "EulerDiscreteScheduler"))
    assert load(folder).config.defaults == replace(wants, sampler="euler")  # what diffusers' own files say counts
    (folder / "sld.json").write_text('{"defaults": {"steps": 0}}')
    with pytest.raises(CheckpointError, match=r"sld\.json does not hold the defaults .*steps must be a whole number"):
        load(folder)
