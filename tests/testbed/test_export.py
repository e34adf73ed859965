"""From training checkpoints to the files that are shipped.

Mutants seen to fail here: an old model left in place, a model that only its owner can read, a file left out of the
manifest, a file that does not name its guidance scale, a mean in which the last model counts for half.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import EXACT

from sld.checkpoints import load
from sld.files import sha256
from sld.models.vae import VAE
from sld.published import MINI
from sld.testbed.diffusion import DiffusionModel
from sld.testbed.export import export


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A training folder as it stands before the decoder is tuned, with random weights."""
    torch.manual_seed(0)
    vae, model = VAE(MINI.vae), DiffusionModel(MINI)
    made = tmp_path / "training"
    made.mkdir()
    torch.save({"scaling": 0.5, "vae": vae.state_dict()}, made / "latents.pt")
    average = [p.detach() + 1 for p in model.parameters()]
    torch.save({"network": model.state_dict(), "average": average}, made / "unet.pt")
    (made / "unet.jsonl").write_text("{}\n")
    (made / "detector.safetensors").write_bytes(b"detector")
    return made


def test_an_export_holds_the_averaged_model_its_logs_and_a_manifest_and_replaces_an_older_one(folder, tmp_path):
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "mini.safetensors").write_text("old")
    export(folder, weights, guidance_scale=3.5)

    parts = load(weights / "mini.safetensors")
    name, weight = next(iter(torch.load(folder / "unet.pt")["network"].items()))
    assert name.startswith("unet.") and parts.config.vae.scaling == 0.5
    found = parts.unet.state_dict()[name.removeprefix("unet.")]
    torch.testing.assert_close(found, (weight + 1).half().float(), **EXACT)
    assert parts.config.defaults == replace(MINI.defaults, guidance_scale=3.5)
    assert (weights / "mini.safetensors").stat().st_mode & 0o044 == 0o044

    manifest = json.loads((weights / "manifest.json").read_text())
    assert {"mini.safetensors", "detector.safetensors", "tokenizer/vocab.json"} <= set(manifest)
    assert all(sha256(weights / file) == digest for file, digest in manifest.items())
    assert (weights / "training" / "unet.jsonl").read_text() == "{}\n"
    assert not [path for path in weights.rglob("*") if path.name.startswith(".")]


def test_models_tuned_from_the_same_start_are_written_as_their_mean_in_which_each_counts_alike(folder, tmp_path):
    saved = torch.load(folder / "unet.pt")
    for other, more in enumerate((3, 8)):
        average = [weight + more for weight in saved["average"]]
        torch.save({"network": saved["network"], "average": average}, folder / "unet.pt")
        export(folder, tmp_path / f"other-{other}")
    torch.save(saved, folder / "unet.pt")
    export(folder, tmp_path / "mean", also=[tmp_path / f"other-{other}/mini.safetensors" for other in range(2)])

    found, model = load(tmp_path / "mean/mini.safetensors"), DiffusionModel(MINI)
    with torch.no_grad():
        for weight, average in zip(model.parameters(), saved["average"], strict=True):
            weight.copy_(average + (0 + 3 + 8) / 3)
    for mine, expected in ((found.unet, model.unet), (found.texts[0], model.text)):
        for name, weight in mine.state_dict().items():
            torch.testing.assert_close(weight, expected.state_dict()[name], rtol=2e-3, atol=1e-2)
