"""LoRAs change the weights that diffusers' load_lora_weights and fuse_lora change, by the same numbers.

Mutants seen to fail here: alpha, or the user's scale, left out; the rank in place of its root; the last of several
LoRAs alone; CompVis' names, of SDXL's UNet, unknown.
"""

import json

import pytest
import torch
from changed import fused, kohya, lora, ours, theirs, tiny_pipeline
from conftest import EXACT, NETWORK
from diffusers.utils.state_dict_utils import convert_state_dict_to_diffusers
from reference_xl import xl_pipeline
from safetensors.torch import save_file

import sld
from sld.checkpoints import CheckpointError
from sld.checkpoints.changes import Lora
from sld.checkpoints.changes.lora import open_lora
from sld.testbed.vocabulary import write_tokenizer


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    write_tokenizer(folder := tmp_path_factory.mktemp("words"))
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory, words):
    pipe = tiny_pipeline(words)
    pipe.save_pretrained(folder := tmp_path_factory.mktemp("made") / "model")
    return folder, pipe


@pytest.fixture(scope="module")
def peft(made):
    return lora(made[1])


def require_same(found, expected, before, close=NETWORK):
    """Every weight is theirs, and some of each network are not what they were; 3x3 convolutions are close."""
    for part, weights in expected.items():
        assert found[part].keys() == weights.keys()
        for key, x in found[part].items():
            torch.testing.assert_close(x, weights[key], **(NETWORK if x.shape[2:] == (3, 3) else close))
        assert any(not torch.equal(x, before[part][key]) for key, x in found[part].items())


def first_names(made):
    """The names that diffusers gave LoRAs at first."""
    found = {}
    for key, x in made.items():
        key = key.replace("lora_A", "lora.down").replace("lora_B", "lora.up")
        for layer in ("to_q", "to_k", "to_v", "to_out"):
            key = key.replace(f".{layer}.0.lora.", f".{layer}.lora.").replace(
                f".{layer}.lora.", f".processor.{layer}_lora."
            )
        found[key] = x
    return found


@pytest.mark.parametrize("names", ["kohya", "peft"])
def test_a_lora_makes_the_weights_that_diffusers_fuses(names, made, peft, tmp_path):
    folder, pipe = made
    file = tmp_path / "style.safetensors"
    save_file(kohya(peft, {"lora_unet": 1.0, "lora_te": 0.5}) if names == "kohya" else peft, file)

    found = ours(sld.load(folder, changes={"lora": f"{file}:0.7"}))

    require_same(found, fused(pipe, (file, 0.7)), theirs(pipe), EXACT)


def test_several_loras_are_added_one_after_another(made, peft, tmp_path):
    folder, pipe = made
    files = [(tmp_path / "a.safetensors", 0.7), (tmp_path / "b.safetensors", -0.3)]
    save_file(kohya(peft, {}), files[0][0])
    save_file(lora(pipe, rank=3), files[1][0])

    found = ours(sld.load(folder, changes={"lora": [f"{file}:{scale}" for file, scale in files]}))

    require_same(found, fused(pipe, *files), theirs(pipe))


def test_a_lora_of_sdxl_changes_both_text_encoders(words, tmp_path):
    pipe = xl_pipeline(words)
    pipe.save_pretrained(tmp_path / "xl")
    config = sld.load(tmp_path / "xl", device="meta").config
    file = tmp_path / "style.safetensors"
    save_file(kohya(lora(pipe), {"lora": 1.0}, config.unet), file)

    found = ours(sld.load(tmp_path / "xl", changes={"lora": str(file)}))

    require_same(found, fused(pipe, (file, 1.0)), theirs(pipe))


@pytest.mark.parametrize("rename", [first_names, convert_state_dict_to_diffusers])
def test_other_names_of_diffusers_are_read_alike(rename, made, peft, tmp_path):
    own = {key: x for key, x in peft.items() if ".to_" in key or "text" not in key or "_proj" in key}
    save_file(own, tmp_path / "a.safetensors")
    save_file(rename(own), tmp_path / "b.safetensors")

    a, b = (
        ours(sld.load(made[0], changes={"lora": str(tmp_path / name)})) for name in ("a.safetensors", "b.safetensors")
    )

    assert all(torch.equal(x, b[part][key]) for part in a for key, x in a[part].items())


def alpha_of(path, module="base_model.model.mid_block.attentions.0.proj_in", rank=4):
    return open_lora(Lora(path)).factor(module, rank, None)


@pytest.mark.parametrize(
    ("settings", "factor"),
    [
        ({"lora_alpha": 8}, 2.0),
        ({"lora_alpha": 8, "use_rslora": True}, 4.0),
        ({"lora_alpha": 8, "alpha_pattern": {"attentions.0.proj_in": 2}}, 0.5),
        ({"lora_alpha": 8, "alpha_pattern": {"proj_out": 2, "^mid_block.*": 6}}, 1.5),
    ],
)
def test_alpha_is_in_the_settings_of_peft(settings, factor, tmp_path):
    name = "base_model.model.mid_block.attentions.0.proj_in"
    tensors = {f"{name}.lora_A.weight": torch.zeros(4, 8), f"{name}.lora_B.weight": torch.zeros(8, 4)}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=r"adapter_config\.json has its alpha"):
        alpha_of(tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    assert alpha_of(tmp_path / "adapter_model.safetensors") == factor

    own = {key.replace("base_model.model", "unet"): x for key, x in tensors.items()}
    metadata = {"lora_adapter_metadata": json.dumps({f"unet.{key}": value for key, value in settings.items()})}
    save_file(own, tmp_path / "a.safetensors", metadata)
    assert alpha_of(tmp_path / "a.safetensors", name.replace("base_model.model", "unet")) == factor


K = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({f"{K}.lora_up.weight": None}, f"{K} has no matrix 'up'"),
        ({f"{K}.lora_up.weight": (64, 3)}, f"{K} has matrices of shapes .* of no one rank"),
        ({f"{K}.alpha": (2,)}, rf"{K}\.alpha must be one number"),
        ({f"{K}.dora_scale": (64, 1)}, "is of DoRA"),
        ({f"{K}.hada_w1_a": (64, 2)}, "is of LoHa"),
        ({f"{K}.lora_mid.weight": (2, 2)}, "is of a LoRA with a core"),
        ({f"{K}.diff": (64, 32)}, "is of a difference of whole weights"),
        ({f"{K}.lora_up.weight": (65, 2)}, r"lora_down\.weight changes a matrix of shape \(65, 32\)"),
        ({"head.weight": (2, 2)}, r"head\.weight is no matrix of a LoRA"),
        ({"lora_unet_other.lora_up.weight": (2, 2), "lora_unet_other.lora_down.weight": (2, 2)}, "does not have"),
        ({"lora_te2_x.lora_up.weight": (2, 2), "lora_te2_x.lora_down.weight": (2, 2)}, "it was made for SDXL"),
        (
            {f"{K}.lora_down.weight": (2, 1024)},
            "to_k.lora_down.weight takes texts of 1024 features.*32: it was made for Stable Diffusion 2",
        ),
        ({f"{K}.lora_down.weight": float("nan")}, rf"NaN or infinite in {K}\.lora_down\.weight"),
    ],
)
def test_what_is_wrong_in_a_lora_is_refused_by_file_and_key(change, says, made, tmp_path):
    tensors = {f"{K}.lora_up.weight": torch.ones(64, 2), f"{K}.lora_down.weight": torch.ones(2, 32)}
    for key, shape in change.items():
        tensors[key] = torch.full((2, 32), shape) if isinstance(shape, float) else torch.ones(shape or 1)
        if shape is None:
            del tensors[key]
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=says) as error:
        sld.load(made[0], changes={"lora": str(tmp_path / "a.safetensors")})
    assert str(tmp_path / "a.safetensors") in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("tensors", "says"), [({"emb_params": 1}, "an embedding"), ({"a.b": 1}, "no LoRA"), ({}, "no LoRA")]
)
def test_another_file_is_named_for_what_it_is(tensors, says, tmp_path):
    save_file({key: torch.ones(2, 2) for key in tensors}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=rf"a\.safetensors is {says}.*expected a LoRA"):
        open_lora(Lora(tmp_path / "a.safetensors"))
