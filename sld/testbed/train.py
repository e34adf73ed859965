"""Train the embedded world's model: `python -m sld.testbed.train --folder runs/testbed`.

Every stage writes a checkpoint and a log of its losses to the folder. The same command goes on where a killed run
stopped. Training needs the emoji sprites (see `sld.testbed.art`). On the CPU several processes share each step. On
another device (`--device cuda`) there is one. With `--start FILE` the networks are those of a finished model at first.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing.spawn import spawn

from sld.checkpoints import load
from sld.files import sweep
from sld.models.text import Tokenizer
from sld.models.vae import VAE
from sld.pipeline import Pipeline
from sld.published import MINI
from sld.samplers import Schedule
from sld.testbed import autoencoder, detector, diffusion
from sld.testbed.by_eye import read_labelled
from sld.testbed.data import Scenes
from sld.testbed.diffusion import DiffusionModel
from sld.testbed.fit import Loss, Recipe, averaged, fit, save_whole
from sld.testbed.sampled import shared_pairs
from sld.testbed.vocabulary import write_tokenizer

RECIPES = {
    "autoencoder": autoencoder.RECIPE,
    "text": diffusion.TEXT_RECIPE,
    "unet": diffusion.RECIPE,
    "decoder": autoencoder.DECODER_RECIPE,
    "detector": detector.RECIPE,
}
"""The stages of a training from nothing, in their order."""

TUNING = {
    "unet": diffusion.TUNING,
    "decoder": replace(autoencoder.DECODER_RECIPE, steps=600),
    "detector": replace(detector.RECIPE, steps=800, rate=1e-3),
}
"""The stages of a training from a finished model. Its encoder stays as it is, and so its latents stay valid."""


@dataclass(frozen=True)
class Plan:
    """A training: what is trained, and on what.

    Attributes:
        folder: of checkpoints, logs and pictures.
        recipes: of the stages that are run, by their names in `RECIPES`, and in that order.
        start: a checkpoint of the embedded model. The training starts with its networks, and with the detector beside
            it; None for random ones.
        scenes: number of training scenes.
        device: of the networks while they are trained.
        bf16: whether they compute in bfloat16.
        ahead: processes that draw the next steps' data; 0 for none.
    """

    folder: Path
    recipes: Mapping[str, Recipe]
    start: Path | None = None
    scenes: int = 40_000
    device: str = "cpu"
    bf16: bool = False
    ahead: int = 0


def train(plan: Plan) -> None:
    """Run the stages of a plan on this process, which shares each step with the other processes of the group."""
    folder, rank = plan.folder, dist.get_rank()

    def report(line: str) -> None:
        print(line, flush=True)

    def run(name: str, network: nn.Module, loss: Loss) -> None:
        network.to(plan.device)
        fit(name, network, loss, plan.recipes[name], folder, report, bf16=plan.bf16, ahead=plan.ahead).cpu()

    if rank == 0:
        write_tokenizer(folder / "tokenizer")
        _ = Scenes(folder, plan.scenes, seed=0).pictures
    dist.barrier()
    scenes = Scenes(folder, plan.scenes, seed=0)
    tokenizer = Tokenizer.load(folder / "tokenizer", MINI.texts[0])

    torch.manual_seed(0)
    vae = VAE(MINI.vae)
    started = load(plan.start, MINI) if plan.start else None
    if started:
        vae.load_state_dict(started.vae.state_dict())
    if "autoencoder" in plan.recipes:
        run("autoencoder", vae, autoencoder.AutoencoderLoss(scenes))
    if rank == 0 and not (folder / "latents.pt").exists():
        latents = autoencoder.encode(vae.to(plan.device), scenes)
        scaling = autoencoder.with_scaling(MINI.vae, latents).scaling
        save_whole({"vae": vae.cpu().state_dict(), "scaling": scaling, "latents": latents}, folder / "latents.pt")
    dist.barrier()
    encoded = torch.load(folder / "latents.pt", weights_only=True, mmap=True)
    vae.load_state_dict(encoded["vae"])
    config = replace(MINI, vae=replace(MINI.vae, scaling=encoded["scaling"]))

    torch.manual_seed(1)
    model = DiffusionModel(config)
    reader = diffusion.Reader(model.text)
    if started:
        model.unet.load_state_dict(started.unet.state_dict())
        model.text.load_state_dict(started.texts[0].state_dict())
    if "text" in plan.recipes:
        run("text", reader, diffusion.ReaderLoss(scenes, tokenizer))
    if "unet" in plan.recipes:
        latents = encoded["latents"] * encoded["scaling"]
        run("unet", model, diffusion.DenoisingLoss(scenes, latents, tokenizer, config))
    vae.encoder.requires_grad_(False)
    if "decoder" in plan.recipes:
        run("decoder", vae, autoencoder.DecoderLoss(scenes))
    elif (folder / "decoder.pt").exists():
        averaged("decoder", vae, folder)
    if "detector" in plan.recipes:
        if (folder / "unet.pt").exists():
            averaged("unet", model, folder)
        model.eval().to(plan.device)
        schedule = Schedule.from_config(config.schedule).to(plan.device)
        parts = model.unet, vae.to(plan.device), (model.text,), (tokenizer,)
        _train_detector(plan, Pipeline(config, *parts, schedule, numerics="fast"), run, report)


Run = Callable[[str, nn.Module, Loss], None]


def _train_detector(plan: Plan, pipe: Pipeline, run: Run, report: Callable[[str], None]) -> None:
    """Train the detector of a model on renders, on the model's pictures, and on some that were called broken by eye."""
    torch.manual_seed(2)
    judge = detector.Detector(limit=0.5)
    if plan.start and (beside := plan.start.with_name(detector.FILE)).is_file():
        judge.load_state_dict(detector.load_detector(beside).state_dict(), strict=False)  # it may lack a head
    if dist.get_rank() == 0:
        detector.training_pictures(pipe.vae, plan.folder)
    pairs = shared_pairs(pipe, detector.SAMPLED + detector.UNGUIDED, detector.SAMPLED_SEED, plan.folder)
    sampled, unguided = pairs.split(detector.SAMPLED)
    examples, inspected = detector.training_pictures(pipe.vae, plan.folder)
    inspected += detector.sampled_inspected(sampled, pipe.vae)
    run("detector", judge, detector.DetectorLoss(examples, inspected, read_labelled()))
    if dist.get_rank() == 0:
        report(json.dumps(detector.publish(judge, pipe.vae, plan.folder, unguided)))


def _process(rank: int, processes: int, rendezvous: str, plan: Plan) -> None:
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes))
    if plan.device != "cpu":
        torch.set_float32_matmul_precision("high")  # TF32, as in convolutions
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=processes)
    train(plan)
    dist.destroy_process_group()


def _by_stage(text: str) -> dict[str, int]:
    """Return the numbers of stages, as in "unet=4000,detector=800".

    Raises:
        ValueError: the text has another form.
    """
    return {name: int(number) for name, number in (part.split("=") for part in text.split(","))}


def main() -> None:
    """Parse the command line and start the processes."""
    parser = argparse.ArgumentParser(description="Train the embedded world's model.")
    parser.add_argument("--folder", type=Path, required=True, help="checkpoints, logs and rendered pictures")
    parser.add_argument("--start", type=Path, help="checkpoint of a finished model to go on from")
    parser.add_argument("--stages", help=f"({','.join(RECIPES)}; with --start {','.join(TUNING)})")
    parser.add_argument("--scenes", type=int, default=Plan.scenes, help="to train on (%(default)s)")
    parser.add_argument("--steps", type=_by_stage, default={}, help="of stages, such as unet=4000,detector=800")
    parser.add_argument("--batch", type=_by_stage, default={}, help="of each step and process, such as unet=512")
    parser.add_argument("--processes", type=int, help="each with its share of the cores (2 on the CPU, else 1)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (%(default)s)")
    parser.add_argument("--ahead", type=int, help="processes that draw the data (on the CPU 0, else 8)")
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16; weights stay float32")
    arguments = parser.parse_args()
    recipes = TUNING if arguments.start else RECIPES
    stages = arguments.stages.split(",") if arguments.stages else list(recipes)
    if unknown := {*stages, *arguments.steps, *arguments.batch} - set(recipes):
        parser.error(f"unknown stage {', '.join(sorted(unknown))}; there are {', '.join(recipes)}")
    encoded = arguments.start or "autoencoder" in stages or (arguments.folder / "latents.pt").exists()
    if not encoded:
        parser.error(f"{arguments.folder} has no latents.pt: train the stage autoencoder first")
    processes = arguments.processes or (2 if arguments.device == "cpu" else 1)
    if arguments.device != "cpu" and processes > 1:
        parser.error(f"several processes share a step on the CPU alone: leave out --processes for {arguments.device}")
    ahead = (0 if arguments.device == "cpu" else 8) if arguments.ahead is None else arguments.ahead
    chosen = {
        name: replace(
            recipe, steps=arguments.steps.get(name, recipe.steps), batch=arguments.batch.get(name, recipe.batch)
        )
        for name, recipe in recipes.items()
        if name in stages
    }
    plan = Plan(
        arguments.folder,
        chosen,
        arguments.start,
        scenes=arguments.scenes,
        device=arguments.device,
        bf16=arguments.bf16,
        ahead=ahead,
    )
    plan.folder.mkdir(parents=True, exist_ok=True)
    for left_by_a_killed_run in plan.folder.glob("rendezvous-*"):
        left_by_a_killed_run.unlink()
    sweep(plan.folder)
    rendezvous = plan.folder.resolve() / f"rendezvous-{os.getpid()}"
    spawn(_process, (processes, str(rendezvous), plan), nprocs=processes)
    rendezvous.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
