"""UNets that inpaint: told by their input, kept in both formats.

Mutants that failed here: the folder's pipeline left as one from text, every input of 9 channels taken for SD 1's, the
input's channels read as the latent's.
"""

import json

import pytest
from tiny import TINY1, modules, same, states

from sld.checkpoints import convert, load, save_compvis
from sld.checkpoints.files import Header
from sld.checkpoints.statements import CROSS_ATTENTION, CROSS_ATTENTION_XL, ENTRY, recognize
from sld.published import SD2_INPAINTING, SD15, SD15_INPAINTING, SD21, SDXL, SDXL_INPAINTING, inpainting

TINY = inpainting(TINY1, "tiny-inpainting")


@pytest.mark.parametrize(
    ("features", "inputs", "model"),
    [
        (768, 9, SD15_INPAINTING),
        (1024, 9, SD2_INPAINTING),
        (2048, 9, SDXL_INPAINTING),
        (768, 4, SD15),
        (1024, 4, SD21),
        (2048, 4, SDXL),
        (640, 9, None),
    ],
)
def test_a_single_file_is_told_by_its_text_and_its_input(features, inputs, model):
    attention = CROSS_ATTENTION_XL if features == 2048 else CROSS_ATTENTION
    shapes = {attention: (320, features), ENTRY: (320, inputs, 3, 3)}
    assert recognize({key: Header(shape, "float32") for key, shape in shapes.items()}) == model


def test_it_stays_what_it_is_from_format_to_format(tmp_path):
    save_compvis(tmp_path / "one.safetensors", TINY, *modules(TINY))
    convert(tmp_path / "one.safetensors", tmp_path / "folder", "diffusers")
    convert(tmp_path / "folder", tmp_path / "two.safetensors", "compvis")

    unet, index = (json.loads((tmp_path / "folder" / f).read_text()) for f in ("unet/config.json", "model_index.json"))
    assert (unet["in_channels"], unet["out_channels"]) == (9, 4)
    assert index["_class_name"] == "StableDiffusionInpaintPipeline"
    loaded = [load(tmp_path / name) for name in ("one.safetensors", "folder", "two.safetensors")]
    assert all(parts.config.unet == TINY.unet for parts in loaded)
    assert loaded[0].unet.conv_in.weight.shape == (16, 9, 3, 3)
    assert same(states(loaded[0]), states(loaded[1])) and same(states(loaded[0]), states(loaded[2]))


def test_an_inpainting_file_read_as_another_model_says_so(tmp_path):
    save_compvis(tmp_path / "one.safetensors", TINY, *modules(TINY))
    with pytest.raises(ValueError, match="9 channels"):
        load(tmp_path / "one.safetensors", TINY1)
