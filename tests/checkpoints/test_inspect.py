import pytest
import torch
from safetensors.torch import save_file
from tiny import TINY1, TINY2, compvis_tensors, modules

from sld.checkpoints import CheckpointError, inspect, save_compvis, save_diffusers
from sld.checkpoints.parts import parts
from sld.config import ModelConfig
from sld.models.text import TextEncoder
from sld.models.unet import UNet
from sld.models.vae import VAE
from sld.published import SD21


def full_size_tensors(config: ModelConfig) -> dict[str, torch.Tensor]:
    """Every tensor of a published single file, one number of memory each."""
    with torch.device("meta"):
        models = UNet(config.unet), VAE(config.vae), TextEncoder(config.texts[0])
    tensors = {}
    for part, model in zip(parts(config), models, strict=True):
        state = model.state_dict()
        for key_map in part.key_maps("compvis"):
            tensors[key_map.theirs[0]] = torch.zeros((), dtype=torch.float16).expand(key_map.write(state).shape)
    return tensors


def test_a_report_tells_what_is_in_a_full_size_checkpoint(tmp_path):
    tensors = full_size_tensors(SD21)
    tensors["cond_stage_model.model.transformer.resblocks.23.ln_1.weight"] = torch.zeros(1024)
    tensors["model_ema.diffusion_modelout2bias"] = torch.zeros(4)
    tensors["betas"] = torch.zeros(1000)
    path = tmp_path / "v2-1_768.ckpt"
    torch.save({"state_dict": tensors, "global_step": 1}, path)
    report = inspect(path)
    assert str(report).splitlines() == [
        str(path),
        "  format       compvis",
        "  model        sd21 (told by the shapes)",
        '  prediction   v (assumed: SD 2 weights do not tell; for the 512-pixel models give config="sd21-base")',
        "  sampler      pndm",
        "  size         768 pixels",
        "  dtype        float16",
        "  UNet           865,910,724 parameters in 686 tensors",
        "  autoencoder     83,653,863 parameters in 248 tensors",
        "  text encoder   340,387,840 parameters in 280 tensors",
        "  EMA          yes: use_ema=True reads it",
        "  left out     OpenCLIP's last layer, behind the one that is read (1)",
        "  left out     averaged UNet (EMA) (1)",
        "  left out     noise schedule of the training code (1)",
        "  left out     state of the training, beside the weights (1)",
        "  complete     every key is accounted for",
    ]
    assert not report.problems


@pytest.mark.parametrize("config", [TINY1, TINY2], ids=lambda c: c.name)
def test_both_formats_of_a_model_hold_the_same_number_of_parameters(config, tmp_path):
    networks = modules(config)
    save_compvis(tmp_path / "single.safetensors", config, *networks, dtype=torch.bfloat16)
    save_diffusers(tmp_path / "folder", config, *networks)
    single, folder = inspect(tmp_path / "single.safetensors"), inspect(tmp_path / "folder")
    expected = {p.key: sum(x.numel() for x in n.parameters()) for p, n in zip(parts(config), networks, strict=True)}
    assert single.parameters == folder.parameters == expected
    assert single.dtypes == {"bfloat16": sum(expected.values())}
    assert folder.dtypes == {"float32": sum(expected.values())}
    assert (single.checkpoint.format, folder.checkpoint.format) == ("compvis", "diffusers")
    assert single.checkpoint.told_by == folder.checkpoint.told_by == "checkpoint"
    assert single.checkpoint.config.schedule == folder.checkpoint.config.schedule == config.schedule


def test_what_is_missing_and_extra_is_reported_and_not_raised(tmp_path):
    tensors = compvis_tensors(TINY1, tmp_path)
    tensors = {key: x for key, x in tensors.items() if not key.startswith("first_stage_model.")}
    del tensors["model.diffusion_model.out.2.bias"]
    save_file(tensors | {"unheard.of": torch.zeros(1)}, tmp_path / "model.safetensors")
    report = inspect(tmp_path / "model.safetensors", TINY1)
    assert report.tensors["vae"] == 0
    assert len(report.problems) == 3
    for expected in ("autoencoder  missing", "unheard.of", "unet.conv_out.bias", "holds no autoencoder"):
        assert expected in str(report)
    assert "every key" not in str(report)


def test_a_folder_without_the_weights_of_a_part_is_reported(tmp_path):
    save_diffusers(tmp_path / "folder", TINY1, *modules(TINY1))
    (tmp_path / "folder/vae/diffusion_pytorch_model.safetensors").unlink()
    assert "expected vae/diffusion_pytorch_model.safetensors" in str(inspect(tmp_path / "folder"))


def test_what_cannot_be_opened_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match="there is no such file"):
        inspect(tmp_path / "model.ckpt")
