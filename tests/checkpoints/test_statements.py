"""What single files say of themselves is heard, and what is no whole checkpoint is named."""

import json
import re
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import TINY1, modules, same, states

import sld
from sld import loading
from sld.checkpoints import CheckpointError, convert, inspect, load, save_compvis, save_diffusers
from sld.checkpoints.examine import examine
from sld.checkpoints.statements import AVERAGED, CROSS_ATTENTION
from sld.config import ModelConfig
from sld.published import SD15, SD15_V, SD21, SD21_BASE
from sld.testbed.vocabulary import write_tokenizer

SPEC = {"modelspec.architecture": "stable-diffusion-v2-512", "modelspec.resolution": "512x512"}


def single(folder, width, metadata=None, marks=(), beside=None, key=CROSS_ATTENTION):
    """A file that can be told from others, and no more: the text width, and what it says."""
    tensors = {key: torch.zeros(1, width)} | {mark: torch.zeros(0) for mark in marks}
    save_file(tensors, folder / "a.safetensors", metadata)
    if beside is not None:
        (folder / "a.yaml").write_text(beside)
    return folder / "a.safetensors"


def training(**parameters):
    lines = [f"    {key}: {value}" for key, value in parameters.items()]
    return "\n".join(["model:", "  params:", "    first_stage_key: jpg", *lines])


@pytest.mark.parametrize(
    ("width", "says", "config", "told_by"),
    [
        (768, {}, SD15, "shapes"),
        (1024, {}, SD21, "shapes"),
        (1024, {"metadata": {"modelspec.prediction_type": "epsilon"}}, SD21_BASE, "checkpoint"),
        (1024, {"metadata": {"modelspec.prediction_type": "v"}}, SD21, "checkpoint"),
        (1024, {"metadata": SPEC}, SD21_BASE, "checkpoint"),
        (768, {"metadata": {"modelspec.prediction_type": "v"}}, SD15_V, "checkpoint"),
        (768, {"marks": ("v_pred",)}, SD15_V, "checkpoint"),
        (1024, {"marks": ("v_pred",)}, SD21, "checkpoint"),
        (1024, {"beside": training(parameterization='"v"')}, SD21, "yaml file beside it"),
        (1024, {"beside": training()}, SD21_BASE, "yaml file beside it"),
        (768, {"key": AVERAGED}, SD15, "shapes"),
    ],
)
def test_a_single_file_is_the_model_that_it_says(width, says, config, told_by, tmp_path):
    """Mutants seen to fail: each way of saying it passed over."""
    found = examine(single(tmp_path, width, **says))
    assert (found.config, found.told_by) == (config, told_by)
    assert bool(found.assumed) == (width == 1024 and told_by == "shapes")


def test_marks_metadata_and_training_change_more_than_the_prediction(tmp_path):
    zero = examine(single(tmp_path, 1024, marks=("v_pred", "ztsnr")))
    assert zero.config.schedule.zero_terminal_snr
    assert (zero.config.defaults.sampler, zero.config.defaults.spacing) == ("ddim", "trailing")
    assert list(zero.dropped.values()) == [("v_pred", "ztsnr")]
    wide = examine(single(tmp_path, 768, {"modelspec.prediction_type": "v", "modelspec.resolution": "768x512"}))
    assert wide.config.defaults.sides == (512, 768)
    trained = examine(single(tmp_path, 768, beside=training(linear_end=0.02, timesteps=500, scale_factor=0.2))).config
    assert (trained.schedule.beta_end, trained.schedule.steps, trained.vae.scaling) == (0.02, 500, 0.2)


@pytest.mark.parametrize(
    ("says", "message"),
    [
        ({"metadata": {"modelspec.prediction_type": "v"}, "beside": training()}, "more than one thing"),
        ({"metadata": {"modelspec.prediction_type": "x0"}}, "modelspec.prediction_type is 'x0'"),
        ({"beside": training(parameterization="x0")}, "parameterization is 'x0'"),
        ({"beside": training(timesteps=10**9)}, "a.yaml: steps must be"),
        ({"beside": "model: [1"}, "a.yaml is not the config of a model"),
        ({"beside": "- 1"}, "a.yaml is not the config of a model"),
        ({"metadata": {"sld.config": "[" * 10**5}}, "carries a config that is not one of ours"),
    ],
)
def test_a_statement_that_makes_no_sense_is_refused_in_one_line(says, message, tmp_path):
    with pytest.raises(CheckpointError, match=message) as caught:
        examine(single(tmp_path, 1024, **says))
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder and a single file of one tiny model."""
    folder = tmp_path_factory.mktemp("made")
    save_diffusers(folder / "model", TINY1, *modules(TINY1))
    save_compvis(folder / "model.safetensors", TINY1, *modules(TINY1))
    (folder / "tiny.json").write_text(json.dumps(TINY1.to_dict()))
    return folder


def test_sd_2_without_a_statement_is_assumed_aloud(made, tmp_path, monkeypatch):
    """Generating was silent, and made noise of the 512-pixel models. Mutant seen to fail: no warning."""
    monkeypatch.setattr(sld.checkpoints.examine.Checkpoint, "assumed", "v is assumed: give --config")
    with pytest.warns(UserWarning, match=r"model\.safetensors: v is assumed: give --config"):
        load(made / "model.safetensors")


def test_an_averaged_unet_alone_is_named_and_read_when_asked_for(made, tmp_path):
    tensors = {
        "model_ema." + k.removeprefix("model.").replace(".", "") if k.startswith("model.diffusion_model.") else k: x
        for k, x in load_file(made / "model.safetensors").items()
    }
    save_file(tensors, tmp_path / "ema.safetensors")
    with pytest.raises(CheckpointError, match=r"holds the averaged UNet alone: --use-ema"):
        load(tmp_path / "ema.safetensors", TINY1)
    convert(tmp_path / "ema.safetensors", tmp_path / "b.safetensors", "compvis", config=TINY1, use_ema=True)
    assert same(load_file(tmp_path / "b.safetensors"), load_file(made / "model.safetensors"))


@pytest.mark.parametrize(
    ("kept", "says"),
    [
        (
            ("model.diffusion_model.",),
            "no autoencoder and no text encoder, only the UNet: use .* or copy what is missing",
        ),
        (("first_stage_model.", "cond_stage_model."), "no UNet, only the autoencoder and the text encoder: use"),
        ((), "no UNet and no autoencoder and no text encoder: use .* parts of the model$"),
    ],
)
def test_a_file_without_some_parts_says_what_it_holds_and_what_to_do(kept, says, made, tmp_path):
    """A UNet alone was said to hold no autoencoder, and a model of an unknown size to be a UNet alone.

    Seen to fail: no word of what is there; parts named where there are several.
    """
    tensors = {k: x for k, x in load_file(made / "model.safetensors").items() if k.startswith(kept)}
    save_file(tensors, tmp_path / "a.safetensors")
    assert re.search(f"the file holds {says}", examine(tmp_path / "a.safetensors", TINY1).problems()[0])
    if len(kept) > 1:
        with pytest.raises(CheckpointError, match="not recognized as Stable Diffusion 1, 2 or XL"):
            examine(tmp_path / "a.safetensors")


def test_a_tokenizer_that_is_missing_or_another_models_is_told_before_the_weights_are_read(made, tmp_path, monkeypatch):
    """And what is wrong with the checkpoint before that. Seen to fail: each of the three a line later."""
    monkeypatch.setattr(loading, "load_matched", lambda *_: pytest.fail("the weights were read"))
    monkeypatch.setattr(loading, "hub_tokenizer", lambda: tmp_path / "words")
    write_tokenizer(tmp_path / "words")
    save_file(load_file(made / "model.safetensors"), tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="expects 40"):
        sld.load(tmp_path / "a.safetensors", TINY1)
    shutil.rmtree(tmp_path / "words")
    with pytest.raises(ValueError, match="there is no such folder for a tokenizer"):
        sld.load(tmp_path / "a.safetensors", TINY1)
    with pytest.raises(CheckpointError, match="does not match"):
        sld.load(tmp_path / "a.safetensors", SD15)


def test_a_model_may_be_told_by_a_file_in_json(made, tmp_path):
    save_file(load_file(made / "model.safetensors"), tmp_path / "bare.safetensors")
    assert load(tmp_path / "bare.safetensors", str(made / "tiny.json")).config == TINY1
    (tmp_path / "wrong.json").write_text('{"name": 3}')
    for name in ("wrong.json", "none.json"):
        with pytest.raises(CheckpointError, match=rf"{name} is not the config of a model"):
            examine(tmp_path / "bare.safetensors", str(tmp_path / name))


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("model/unet", r"unet is the UNet of a diffusers folder: give the whole folder, .*model$"),
        ("model/vae/diffusion_pytorch_model.safetensors", "is the autoencoder of a diffusers folder"),
        ("model/model_index.json", r"give the whole folder, .*model$"),
        ("model/unet/config.json", r"give the whole folder, .*model$"),
        ("model/tokenizer", "there is no such file or folder"),
    ],
)
def test_a_part_of_a_folder_is_named_with_the_folder_to_give(path, says, made):
    with pytest.raises(CheckpointError, match=says):
        inspect(made / path)


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("lora_unet_down_blocks_0.lora_up.weight", "a LoRA"),
        ("unet.down_blocks.0.attentions.0.to_q.lora_A.weight", "a LoRA"),
        ("<cat>", "an embedding"),
        ("emb_params", "an embedding"),
        ("control_model.input_blocks.0.0.weight", "a ControlNet"),
        ("conditioner.embedders.0.transformer.x", "an SDXL file"),
        ("model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight", "a file of Stable Diffusion 3"),
        ("input_blocks.0.0.weight", "a UNet alone"),
        ("down_blocks.0.resnets.0.conv1.weight", "the UNet of a diffusers folder"),
        ("decoder.up.0.block.0.conv1.weight", "an autoencoder alone"),
        ("encoder.down_blocks.0.resnets.0.conv1.weight", "the autoencoder of a diffusers folder"),
        ("text_model.final_layer_norm.weight", "a CLIP model"),
    ],
)
def test_another_kind_of_file_is_named_with_the_next_step(key, kind, tmp_path):
    save_file({key: torch.zeros(2)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=rf"a\.safetensors is {kind}.*[:;]"):
        inspect(tmp_path / "a.safetensors")


def test_an_embedding_in_a_pickle_is_named_too(tmp_path):
    torch.save({"string_to_token": {"*": 265}, "string_to_param": {"*": torch.ones(2, 8)}}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="is an embedding"):
        inspect(tmp_path / "a.pt")


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: {"module": x, "ds_version": "0.9"},
        lambda x: {"state_dict": {f"_forward_module.{k}": v for k, v in x.items()}, "epoch": 1},
        lambda x: {"model": {"state_dict": {f"module.{k}": v for k, v in x.items()}}, "step": 3},
    ],
    ids=["DeepSpeed", "Lightning on it", "a training loop"],
)
def test_weights_are_found_in_the_tables_that_training_puts_them_in(wrap, made, tmp_path):
    torch.save(wrap(load_file(made / "model.safetensors")), tmp_path / "a.ckpt")
    assert same(states(load(tmp_path / "a.ckpt", TINY1)), states(modules(TINY1)))


def shards(folder, stem="diffusion_pytorch_model", n=3):
    """The weights of a part's folder in several files, with an index."""
    tensors = load_file(folder / f"{stem}.safetensors")
    (folder / f"{stem}.safetensors").unlink()
    names = [f"{stem}-{k + 1:05}-of-{n:05}.safetensors" for k in range(n)]
    for k, name in enumerate(names):
        save_file(dict(sorted(tensors.items())[k::n]), folder / name)
    index = {"weight_map": {key: names[k % n] for k, key in enumerate(sorted(tensors))}}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index))
    return folder / f"{stem}.safetensors.index.json"


def test_weights_in_shards_are_read_by_their_index(made, tmp_path):
    shutil.copytree(made / "model", tmp_path / "model")
    index = shards(tmp_path / "model/unet")
    shards(tmp_path / "model/text_encoder", "model")
    parts = load(tmp_path / "model")
    assert same(states(parts), states(modules(TINY1)))
    assert len(parts.source.sha256) == 3 + 1 + 3
    places = json.loads(index.read_text())["weight_map"]
    for wrong, says in (
        ({**places, "conv_in.bias": "../../secret"}, "expected the name of a file beside it"),
        ({**places, "conv_in.bias": places["conv_in.weight"]}, "which does not hold it"),
        ({**places, "conv_in.bias": "gone.safetensors"}, "there is no such file"),
        ([], "is no index of shards"),
    ):
        index.write_text(json.dumps({"weight_map": wrong}))
        with pytest.raises(CheckpointError, match=says):
            load(tmp_path / "model")


@pytest.mark.parametrize("variant", ["bf16", "non_ema"])
def test_a_folder_that_has_only_a_variant_is_read(variant, made, tmp_path):
    shutil.copytree(made / "model", tmp_path / "model")
    weights = tmp_path / "model/unet/diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(f".{variant}.safetensors"))
    assert same(states(load(tmp_path / "model")), states(modules(TINY1)))


def test_what_real_files_carry_besides_is_known_and_more_can_be_named(made, tmp_path):
    """And what was named is recorded. Mutants seen to fail: patterns searched instead of matched; not handed on."""
    extra = {
        key: torch.zeros(1)
        for key in (
            "cond_stage_model.logit_scale",
            "cond_stage_model.text_projection",
            "scale_factor",
            "embedding_manager.string_to_param_dict.*",
        )
    }
    path = tmp_path / "a.safetensors"
    save_file(
        load_file(made / "model.safetensors") | extra | {"mine.a": torch.zeros(1), "mine.b": torch.zeros(1)}, path
    )
    for ignore in ((), (r"mine\.a",), ("min",)):
        with pytest.raises(CheckpointError, match=r"mine\.b"):
            load(path, TINY1, ignore=ignore)
    assert load(path, TINY1, ignore=(r"mine\..+",)).source.ignored == (r"mine\..+",)
    with pytest.raises(CheckpointError, match="regular expressions"):
        load(path, TINY1, ignore=("(",))


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_weights_that_are_not_finite_are_named(number, dtype, made, tmp_path):
    """Sums that overflow are no reason. Mutants seen to fail: the sum alone looked at, or no numbers at all."""
    tensors = {key: x.to(dtype) for key, x in load_file(made / "model.safetensors").items()}
    key = "model.diffusion_model.out.2.weight"
    tensors[key] = torch.full_like(tensors[key], 60000 if dtype == torch.float16 else 3e38)
    save_file(tensors, tmp_path / "a.safetensors")
    load(tmp_path / "a.safetensors", TINY1)
    tensors[key].view(-1)[5] = number
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=rf"NaN or infinite in {key}"):
        load(tmp_path / "a.safetensors", TINY1)
    (problem,) = inspect(tmp_path / "a.safetensors", TINY1, read_all=True).problems
    assert key in problem and not inspect(tmp_path / "a.safetensors", TINY1).problems


def test_a_conversion_gives_the_same_bytes_every_time(made, tmp_path):
    """Two entries of metadata came in an order that changed from run to run. Mutant seen to fail: a second entry."""
    for k in range(6):
        convert(made / "model", tmp_path / f"{k}.safetensors", "compvis")
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


def test_a_config_that_does_not_fit_together_is_refused():
    for changes, says in (
        ({"vae": replace(TINY1.vae, latent=8)}, "latents have 4 channels, the autoencoder's 8"),
        ({"unet": replace(TINY1.unet, context=16)}, "takes 16 features of a token, the text encoders give 12"),
    ):
        with pytest.raises(ValueError, match=says):
            replace(TINY1, **changes)
    with pytest.raises(ValueError, match=r"prediction must be eps or v; got 'epsilon'"):
        ModelConfig.from_dict({**TINY1.to_dict(), "schedule": {"prediction": "epsilon"}})
