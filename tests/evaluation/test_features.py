"""What makes features: networks, functions and the embedded detector.

Mutants that fail here: class scores of the Inception file in place of its features; channels last; any shape let
through; the detector's pictures in [0, 1]; its map summed in place of averaged; other sizes let through; CLIP's
pictures with channels first; the source's hash left out.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import EXACT, NETWORK
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from sld.evaluation.classifiers.clip import CLIPEmbedder
from sld.evaluation.features import features, load_extractor
from sld.files import sha256
from sld.images import from_uint8
from sld.testbed.detector import load_detector, shipped_detector


def pictures(b: int, h: int = 24, w: int = 20, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (b, h, w, 3), dtype=np.uint8)


def mean_colour(x: Tensor) -> Tensor:
    return x.float().mean((2, 3))


class MeanColour(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.float().mean((2, 3))


class Inception(nn.Module):
    """Has the usual file's call: class scores, or features if asked."""

    def forward(self, x: Tensor, return_features: bool = False) -> Tensor:
        found = x.float().mean((2, 3))
        return found if return_features else found.softmax(1)


def test_features_are_those_of_the_extractor():
    a = pictures(5)
    found = torch.cat(list(features([a[:3], a[3:]], mean_colour)))
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, torch.from_numpy(a.mean((1, 2))), rtol=1e-6, atol=0)


@pytest.mark.parametrize("wrong", [lambda x: x, lambda x: x.float().mean((2, 3))[:1], lambda x: (x,)])
def test_an_extractor_that_gives_no_features_is_an_error(wrong):
    with pytest.raises(ValueError, match=r"features \(2, d\)"):
        list(features([pictures(2)], wrong))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("network", [MeanColour(), Inception()])
def test_features_come_from_a_torchscript_file(tmp_path, network):
    torch.jit.script(network).save(tmp_path / "network.pt")
    x = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8)
    made = load_extractor(str(tmp_path / "network.pt"))
    torch.testing.assert_close(made.extract(x), mean_colour(x))
    assert made.protocol["weights"] == {"network": sha256(tmp_path / "network.pt")}
    assert ("return_features" in made.protocol["rule"]) == isinstance(network, Inception)


def test_features_come_from_an_exported_file(tmp_path):
    x = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8)
    batch = torch.export.Dim("batch")
    torch.export.save(torch.export.export(MeanColour(), (x,), dynamic_shapes=({0: batch},)), tmp_path / "network.pt2")
    made = load_extractor(str(tmp_path / "network.pt2"))
    torch.testing.assert_close(made.extract(x[:2]), mean_colour(x[:2]))
    assert made.protocol["weights"] == {"network": sha256(tmp_path / "network.pt2")}


def test_features_come_from_a_function_by_name():
    made = load_extractor(f"{__name__}:mean_colour")
    assert made.extract is mean_colour
    assert made.protocol == {
        "features": f"{__name__}:mean_colour",
        "weights": {"source": sha256(Path(__file__))},
        "rule": "as returned",
    }


def test_features_of_the_embedded_detector_are_its_last_map_averaged():
    a, detector = pictures(3, 64, 64), load_detector()
    made = load_extractor("embedded")
    with torch.no_grad():
        maps = detector.features(from_uint8(a)).tolist()
    expected = torch.tensor([[sum(map(sum, m)) / (len(m) * len(m[0])) for m in picture] for picture in maps])
    (found,) = features([a], made.extract)
    torch.testing.assert_close(found.float(), expected, **NETWORK)
    assert made.protocol["weights"] == {"detector": sha256(shipped_detector())}
    assert json.loads(json.dumps(made.protocol)) == made.protocol


def test_the_embedded_detector_sees_no_other_size():
    with pytest.raises(ValueError, match="64 x 64, got 32 x 64"):
        list(features([pictures(1, 32, 64)], load_extractor("embedded").extract))


def test_features_of_clip_are_its_embeddings(tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = CLIPVisionConfig(**sizes, image_size=28, patch_size=14, projection_dim=6)
    CLIPVisionModelWithProjection(config).save_pretrained(tmp_path)
    made, a = load_extractor(f"clip:{tmp_path}"), pictures(3)
    (found,) = features([a], made.extract)
    torch.testing.assert_close(found.float(), CLIPEmbedder(tmp_path).embed(a), **EXACT)
    assert made.protocol["weights"] == {"ViT-8/14": sha256(tmp_path / "model.safetensors")}


@pytest.mark.parametrize("missing", ["sld.nothing:here", "math:here"])
def test_an_unknown_function_is_an_error(missing):
    with pytest.raises(ValueError, match=f"cannot load features '{missing}'"):
        load_extractor(missing)


def test_a_missing_inception_file_is_an_error_that_says_where_one_is():
    with pytest.raises(ValueError, match=r"no file inception.pt.*inception-2015-12-05.pt"):
        load_extractor("inception.pt")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ["weights.pt", "weights.pt2"])
def test_a_state_dict_is_an_error_that_says_what_to_do(tmp_path, name):
    torch.save(MeanColour().state_dict(), tmp_path / name)
    with pytest.raises(ValueError, match=r"torch.jit.script\(network\).save"):
        load_extractor(str(tmp_path / name))
