"""A UNet alone, named as erased models are published, and a text encoder come in place of the checkpoint's.

Mutants seen to fail here: the checkpoint's weights before the file's; keys that are no parameter passed over; the
number of heads not compared, which no shape shows.
"""

import json
import shutil

import pytest
import torch
from changed import ours, tiny_pipeline
from safetensors.torch import load_file, save_file

import sld
from sld.checkpoints import CheckpointError
from sld.checkpoints.parts import parts
from sld.testbed.vocabulary import write_tokenizer


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A model, and weights of a UNet that is another in each of them, by diffusers' and by CompVis' names."""
    write_tokenizer(words := tmp_path_factory.mktemp("words"))
    pipe = tiny_pipeline(words)
    pipe.save_pretrained(folder := tmp_path_factory.mktemp("made") / "model")
    plain = sld.load(folder)
    state = {key: x + 0.5 for key, x in plain.unet.state_dict().items()}
    part = parts(plain.config)[0]
    names = {
        format: {m.theirs[0].removeprefix("model.diffusion_model."): m.write(state) for m in part.key_maps(format)}
        for format in ("diffusers", "compvis")
    }
    return folder, ours(plain)["unet"], names


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(x, b[key]) for key, x in a.items())


@pytest.mark.parametrize("prefix", ["", "unet.", "model.diffusion_model.", "diffusion_model."])
@pytest.mark.parametrize("format", ["diffusers", "compvis"])
def test_a_whole_unet_is_read_in_both_names_with_and_without_a_prefix(format, prefix, made, tmp_path):
    folder, before, names = made
    weights = {prefix + key: x.contiguous() for key, x in names[format].items()}
    if prefix:
        save_file(weights, file := tmp_path / "esd.safetensors")
    else:
        torch.save(weights, file := tmp_path / "esd.pt")

    pipe = sld.load(folder, changes={"unet": str(file)})

    assert equal(ours(pipe)["unet"], names["diffusers"]) and not equal(before, names["diffusers"])
    assert [record["unet"] for record in pipe.unusual["changes"]] == [file.name]


def test_a_part_of_a_unet_leaves_the_rest_and_says_so(made, tmp_path):
    folder, before, names = made
    part = {key: x for key, x in names["diffusers"].items() if key.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))}
    save_file(part, tmp_path / "uce.safetensors")

    with pytest.warns(UserWarning, match=r"uce\.safetensors holds a part of the UNet: 200 tensors stay"):
        pipe = sld.load(folder, changes={"unet": str(tmp_path / "uce.safetensors")})

    assert equal(ours(pipe)["unet"], before | part)


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"conv_in.weight": (32, 9, 3, 3)}, r"conv_in\.weight has the shape \(32, 9, 3, 3\) there"),
        ({"conv_in.weight": (32, 4, 3, 3), "head.weight": (2,)}, r"head\.weight is no parameter of this model's UNet"),
        ({"lora_unet_a.lora_up.weight": (2, 2)}, "is a LoRA, .*--lora"),
        ({"first_stage_model.x": (2,), "model.diffusion_model.out.0.weight": (32,)}, "is a whole checkpoint"),
        ({"a": (2,)}, "a is no parameter of this model's UNet"),
    ],
)
def test_what_is_no_unet_of_the_model_is_refused_by_file_and_key(tensors, says, made, tmp_path):
    save_file({key: torch.ones(shape) for key, shape in tensors.items()}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=rf"a\.safetensors.*{says}"):
        sld.load(made[0], changes={"unet": tmp_path / "a.safetensors"})


@pytest.fixture
def safe(made, tmp_path):
    """The folder of a CLIP model with another text encoder, as Safe-CLIP is published."""
    folder = tmp_path / "safeclip"
    shutil.copytree(made[0] / "text_encoder", folder)
    weights = {key: x + 0.5 for key, x in load_file(folder / "model.safetensors").items()}
    weights = {f"text_model.{key.removeprefix('text_model.')}": x for key, x in weights.items()}
    beside = ("vision_model.x.weight", "visual_projection.weight", "text_projection.weight", "logit_scale")
    save_file({**weights, **{key: torch.ones(2) for key in beside}}, folder / "model.safetensors")
    text = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({"model_type": "clip", "text_config": text, "vision_config": {}}))
    return folder


def test_a_text_encoder_is_read_alone_or_with_the_rest_of_clip(made, safe):
    plain, changed = sld.load(made[0]), sld.load(made[0], changes={"text_encoder": str(safe)})
    a, b = (ours(pipe)["text_encoder"] for pipe in (plain, changed))
    assert equal({key: x + 0.5 for key, x in a.items()}, b)
    assert equal(ours(plain)["unet"], ours(changed)["unet"])
    alone = sld.load(made[0], changes={"text_encoder": made[0] / "text_encoder"})
    assert equal(ours(alone)["text_encoder"], a)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"num_attention_heads": 2}, r"config\.json: the text encoder's heads is 2, and the model's 4"),
        ({"hidden_act": "gelu"}, "activation is 'gelu'"),
        ({"model_type": "bert"}, "model_type is 'bert'"),
    ],
)
def test_a_text_encoder_of_another_shape_is_refused(change, says, made, safe):
    values = json.loads((safe / "config.json").read_text())
    kind = values if "model_type" in change else values["text_config"]
    kind |= change
    (safe / "config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=says):
        sld.load(made[0], changes={"text_encoder": str(safe)})


def test_keys_of_a_text_encoder_are_accounted_for(made, safe):
    weights = load_file(safe / "model.safetensors")
    save_file({**weights, "head.weight": torch.ones(2)}, safe / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: head\.weight is no parameter"):
        sld.load(made[0], changes={"text_encoder": str(safe)})
    del weights["text_model.final_layer_norm.bias"]
    save_file(weights, safe / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lacks clip\.final_layer_norm\.bias"):
        sld.load(made[0], changes={"text_encoder": str(safe)})


@pytest.mark.parametrize(
    ("path", "says"),
    [("none", "does not exist"), ("", "give .*text_encoder"), ("text_encoder/model.safetensors", "is a file")],
)
def test_what_is_no_folder_of_a_text_encoder_is_refused(path, says, made):
    with pytest.raises(CheckpointError, match=says):
        sld.load(made[0], changes={"text_encoder": made[0] / path})
