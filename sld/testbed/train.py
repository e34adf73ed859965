"""Train the embedded world's model from nothing: `python -m sld.testbed.train --folder runs/testbed`.

Every stage writes a checkpoint and a log of its losses to the folder. The same command goes on where a killed run
stopped. Training needs the emoji sprites (see `sld.testbed.art`).
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from sld.files import sweep
from sld.models.text import Tokenizer
from sld.models.vae import VAE
from sld.published import MINI
from sld.testbed import autoencoder, detector, diffusion
from sld.testbed.data import Scenes
from sld.testbed.diffusion import DiffusionModel
from sld.testbed.fit import Recipe, fit, save_whole
from sld.testbed.vocabulary import write_tokenizer

STAGES = ("autoencoder", "text", "unet", "decoder", "detector")
SCENES = 40_000


def train(folder: Path, stages: tuple[str, ...], unet_recipe: Recipe) -> None:
    """Run `stages` in order on this process, which shares each step with the other processes of the group."""
    rank = dist.get_rank()

    def report(line: str) -> None:
        print(line, flush=True)

    if rank == 0:
        write_tokenizer(folder / "tokenizer")
        _ = Scenes(folder, SCENES, seed=0).pictures
    dist.barrier()
    scenes = Scenes(folder, SCENES, seed=0)
    tokenizer = Tokenizer.load(folder / "tokenizer", MINI.texts[0])

    torch.manual_seed(0)
    vae = VAE(MINI.vae)
    if "autoencoder" in stages:
        fit("autoencoder", vae, autoencoder.AutoencoderLoss(scenes), autoencoder.RECIPE, folder, report)
        if rank == 0 and not (folder / "latents.pt").exists():
            latents = autoencoder.encode(vae, scenes)
            scaling = autoencoder.with_scaling(MINI.vae, latents).scaling
            save_whole({"vae": vae.state_dict(), "scaling": scaling, "latents": latents}, folder / "latents.pt")
        dist.barrier()
    if stages == ("autoencoder",):
        return
    encoded = torch.load(folder / "latents.pt", weights_only=True, mmap=True)
    config = replace(MINI, vae=replace(MINI.vae, scaling=encoded["scaling"]))

    torch.manual_seed(1)
    model = DiffusionModel(config)
    reader = diffusion.Reader(model.text)
    if "text" in stages:
        fit("text", reader, diffusion.ReaderLoss(scenes, tokenizer), diffusion.TEXT_RECIPE, folder, report)
    if "unet" in stages:
        loss = diffusion.DenoisingLoss(scenes, encoded["latents"] * encoded["scaling"], tokenizer, config)
        fit("unet", model, loss, unet_recipe, folder, report)
    if "decoder" in stages:
        vae.load_state_dict(encoded["vae"])
        vae.encoder.requires_grad_(False)
        fit("decoder", vae, autoencoder.DecoderLoss(scenes), autoencoder.DECODER_RECIPE, folder, report)
    if "detector" in stages:
        vae.load_state_dict(encoded["vae"])
        torch.manual_seed(2)
        judge = detector.Detector()
        fit("detector", judge, detector.DetectorLoss(detector.training_examples(vae)), detector.RECIPE, folder, report)
        if rank == 0:
            report(json.dumps(detector.publish(judge, vae, folder)))


def _process(rank: int, processes: int, rendezvous: str, arguments: argparse.Namespace) -> None:
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes))
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=processes)
    train(arguments.folder, arguments.stages, replace(diffusion.RECIPE, steps=arguments.unet_steps))
    dist.destroy_process_group()


def main() -> None:
    """Parse the command line and start the processes."""
    parser = argparse.ArgumentParser(description="Train the embedded world's model from nothing.")
    parser.add_argument("--folder", type=Path, required=True, help="checkpoints, logs and rendered pictures")
    parser.add_argument("--stages", type=lambda s: tuple(s.split(",")), default=STAGES, help=",".join(STAGES))
    parser.add_argument("--unet-steps", type=int, default=diffusion.RECIPE.steps, help="of the diffusion training")
    parser.add_argument("--processes", type=int, default=2, help="each with its share of the cores")
    arguments = parser.parse_args()
    if unknown := set(arguments.stages) - set(STAGES):
        parser.error(f"unknown stage {', '.join(sorted(unknown))}; there are {', '.join(STAGES)}")
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for left_by_a_killed_run in arguments.folder.glob("rendezvous-*"):
        left_by_a_killed_run.unlink()
    sweep(arguments.folder)
    rendezvous = arguments.folder.resolve() / f"rendezvous-{os.getpid()}"
    spawn(_process, (arguments.processes, str(rendezvous), arguments), nprocs=arguments.processes)
    rendezvous.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
