"""Export of the embedded model from training checkpoints: `python -m sld.testbed.export --folder runs/testbed`."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from sld.checkpoints import load, save_compvis
from sld.config import ModelConfig
from sld.files import sha256, whole, write_json
from sld.models.vae import VAE
from sld.published import MINI
from sld.testbed.diffusion import DiffusionModel
from sld.testbed.fit import averaged
from sld.testbed.vocabulary import write_tokenizer

LOGS = ("autoencoder", "text", "unet", "decoder", "detector")


def trained_parts(folder: Path) -> tuple[ModelConfig, DiffusionModel, VAE]:
    """Return the averaged networks of a training folder, finished or not. The decoder is the tuned one, if any."""
    encoded = torch.load(folder / "latents.pt", weights_only=True, mmap=True)
    config = replace(MINI, vae=replace(MINI.vae, scaling=encoded["scaling"]))
    vae = VAE(config.vae)
    vae.load_state_dict(encoded["vae"])
    if (folder / "decoder.pt").exists():
        vae.encoder.requires_grad_(False)
        averaged("decoder", vae, folder)
    model = DiffusionModel(config)
    averaged("unet", model, folder)
    return config, model, vae


@torch.no_grad()
def mean_with(model: DiffusionModel, others: Sequence[Path]) -> None:
    """Set a model's weights to the mean of its own and those of others that were tuned from the same start.

    Each tuning errs in its own way, so that the mean is often better than any of them (Wortsman et al., "Model soups",
    2022, arXiv 2203.05482).

    Args:
        model: changed in place.
        others: checkpoints of the embedded model.

    Raises:
        CheckpointError: a file is not such a checkpoint.
    """
    for count, path in enumerate(others, start=2):
        parts = load(path, MINI)
        for own, other in ((model.unet, parts.unet), (model.text, parts.texts[0])):
            for weight, theirs in zip(own.parameters(), other.parameters(), strict=True):
                weight.lerp_(theirs, 1 / count)


def export(
    folder: Path,
    weights: Path,
    guidance_scale: float = MINI.defaults.guidance_scale,
    also: Sequence[Path] = (),
) -> None:
    """Write the model in fp16, its tokenizer, detector, training logs and a manifest of SHA-256 sums to `weights`.

    Args:
        folder: of the training.
        weights: made if it is not there.
        guidance_scale: s_g that the file names as its default.
        also: exported models of other trainings from the same start, for `mean_with`.
    """
    config, model, vae = trained_parts(folder)
    mean_with(model, also)
    config = replace(config, defaults=replace(config.defaults, guidance_scale=guidance_scale))
    weights.mkdir(parents=True, exist_ok=True)
    with whole(weights / "mini.safetensors") as beside:
        save_compvis(beside, config, model.unet, vae, model.text, dtype=torch.float16)
        beside.chmod(0o644)  # the library that writes it makes it readable for its owner only
    write_tokenizer(weights / "tokenizer")
    (weights / "training").mkdir(exist_ok=True)
    for name in ("detector.safetensors", "detector.json"):
        if (folder / name).exists():
            _copy(folder / name, weights / name)
    for name in LOGS:
        if (folder / f"{name}.jsonl").exists():
            _copy(folder / f"{name}.jsonl", weights / "training" / f"{name}.jsonl")
    write_manifest(weights)


def _copy(source: Path, target: Path) -> None:
    with whole(target) as beside:
        shutil.copy(source, beside)


def write_manifest(weights: Path) -> None:
    """Write `manifest.json`: the SHA-256 of every file of weights and tokenizer, by its path below `weights`."""
    files = sorted([*weights.glob("*.safetensors"), *weights.glob("tokenizer/*")])
    sums = {path.relative_to(weights).as_posix(): sha256(path) for path in files}
    write_json(weights / "manifest.json", sums)


def main() -> None:
    """Parse the command line and export."""
    parser = argparse.ArgumentParser(description="Write the embedded model from training checkpoints.")
    parser.add_argument("--folder", type=Path, required=True, help="of the training")
    parser.add_argument("--weights", type=Path, default=Path("weights"), help="(%(default)s)")
    parser.add_argument(
        "--guidance-scale",
        type=float,
        default=MINI.defaults.guidance_scale,
        help="s_g that the file names as its default (%(default)s)",
    )
    parser.add_argument(
        "--also",
        type=Path,
        nargs="+",
        default=[],
        help="models of other trainings from the same start: their mean is written",
    )
    options = parser.parse_args()
    export(options.folder, options.weights, options.guidance_scale, options.also)


if __name__ == "__main__":
    main()
