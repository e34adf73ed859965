"""The training loop of all networks of the embedded world: it can be resumed, and runs on one process or several."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset

from sld.files import whole


class Loss(Protocol):
    """What a training minimises. A step's data and noise are drawn apart from the network, ahead of it on a GPU."""

    def draw(self, generator: torch.Generator, batch: int) -> tuple[Tensor, ...]:
        """Return a step's data and noise on the CPU, drawn with a generator on the CPU."""
        ...

    def __call__(self, network: nn.Module, *drawn: Tensor) -> dict[str, Tensor]:
        """Return scalars for what was drawn, which is on the network's device: "loss", and others for the log."""
        ...


@dataclass(frozen=True)
class Recipe:
    """Settings of a training: its length, batches and learning rate.

    Attributes:
        steps: optimizer steps.
        batch: samples per step and process.
        rate: AdamW's peak learning rate. The rate rises for `warmup` steps, is then constant, and falls linearly to
            zero over the share `decay` of the steps at the end. The constant part does not depend on `steps`, so a
            training can be made longer or shorter while it runs.
        ema: decay of the moving average of the weights, which is kept beside them.
        seed: decides data and noise. Step k of process r draws the same numbers whether or not the training was
            interrupted.
        save_every: steps between checkpoints. A checkpoint replaces the one before.
        clip: largest norm of a gradient.
    """

    steps: int
    batch: int
    rate: float
    ema: float = 0.999
    warmup: int = 200
    decay: float = 0.2
    seed: int = 0
    save_every: int = 100
    clip: float = 1.0

    def rate_at(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        falling = (self.steps - step) / max(1.0, self.decay * self.steps)
        return self.rate * min(1.0, (step + 1) / self.warmup, falling)


def device_of(network: nn.Module) -> torch.device:
    """Return the device of a network's parameters."""
    return next(network.parameters()).device


class _Steps(Dataset[tuple[Tensor, ...]]):
    """The draws of a training, by the number of the step."""

    def __init__(self, loss: Loss, recipe: Recipe, rank: int) -> None:
        self.loss = loss
        self.recipe = recipe
        self.rank = rank

    def __getitem__(self, step: int) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed((self.recipe.seed * 1_000_003 + step) * 64 + self.rank)
        return self.loss.draw(generator, self.recipe.batch)


def average_gradients(gradient: Tensor) -> None:
    """Average a flat gradient over all processes, in place. One process leaves it as it is."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(gradient)
        gradient /= dist.get_world_size()


def save_whole(value: object, path: Path) -> None:
    """Write a value with torch.save, whole or not at all."""
    with whole(path) as beside:
        torch.save(value, beside)


def fingerprint(network: nn.Module) -> str:
    """Return a short name of a network's weights, for files of what it made."""
    sums = hashlib.sha256()
    for weight in network.state_dict().values():
        sums.update(weight.cpu().contiguous().numpy().tobytes())
    return sums.hexdigest()[:12]


def fit(
    name: str,
    network: nn.Module,
    loss: Loss,
    recipe: Recipe,
    folder: Path,
    report: Callable[[str], None],
    bf16: bool = False,
    ahead: int = 0,
) -> nn.Module:
    """Train a network where its parameters are, and return it with its averaged weights.

    Training goes on from `folder/name.pt` if that exists. Data and noise are drawn on the CPU, so that they are the
    same on every device.

    Args:
        name: names the checkpoint `name.pt` and the log `name.jsonl`, which has one object per line.
        network: all that has parameters, as one module; trained in place.
        loss: see `Loss`.
        recipe: settings of the training.
        folder: made if it does not exist.
        report: called with a line of text for each log entry, on the first process only.
        bf16: whether products and convolutions are computed in bfloat16. Weights and their updates stay float32.
        ahead: number of forked processes that draw the next steps' data and noise; 0 to draw them between the steps.
            The numbers are the same.

    Returns:
        `network`, in eval mode.
    """
    rank = dist.get_rank() if dist.is_initialized() else 0
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / f"{name}.pt"
    parameters: list[Tensor] = [p for p in network.parameters() if p.requires_grad]
    device = device_of(network)
    optimizer = torch.optim.AdamW(parameters, lr=recipe.rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    step, seconds, average = 0, 0.0, [p.detach().clone() for p in parameters]
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True, map_location=device)
        network.load_state_dict(saved["network"])
        optimizer.load_state_dict(saved["optimizer"])
        step, seconds, average = saved["step"], saved["seconds"], saved["average"]

    # one buffer holds all gradients, so that processes exchange a single tensor
    flat = torch.zeros(sum(p.numel() for p in parameters), device=device)
    for p, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        p.grad = part.view_as(p)

    network.train()
    totals: dict[str, Tensor] = {}
    since = step
    start = time.perf_counter() - seconds
    forked = "fork" if ahead else None  # processes share the data as it is in memory
    sampler = range(step, recipe.steps)
    draws: Any = DataLoader(
        _Steps(loss, recipe, rank), None, sampler=sampler, num_workers=ahead, multiprocessing_context=forked
    )
    for drawn in draws:
        flat.zero_()
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            losses = loss(network, *(value.to(device, non_blocking=True) for value in drawn))
        losses["loss"].backward()
        average_gradients(flat)
        flat *= (recipe.clip / (flat.norm() + 1e-6)).clamp(max=1.0)
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate_at(step)
        optimizer.step()
        step += 1
        get_ema_multi_avg_fn(min(recipe.ema, (1 + step) / (10 + step)))(average, parameters, step)
        for key, value in losses.items():
            totals[key] = totals.get(key, 0.0) + value.detach().double()

        if rank == 0 and (step % recipe.save_every == 0 or step == recipe.steps):
            seconds = time.perf_counter() - start
            means = {key: round(float(value) / (step - since), 5) for key, value in totals.items()}
            entry = {"step": step, **means, "rate": round(recipe.rate_at(step - 1), 7), "seconds": round(seconds, 1)}
            totals, since = {}, step
            with (folder / f"{name}.jsonl").open("a") as log:
                log.write(json.dumps(entry) + "\n")
            report(f"{name} {json.dumps(entry)}")
            save_whole(
                {
                    "network": network.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "average": average,
                    "step": step,
                    "seconds": seconds,
                },
                checkpoint,
            )

    for p in parameters:
        p.grad = None
    return _with_weights(network, average)


def averaged(name: str, network: nn.Module, folder: Path) -> nn.Module:
    """Load the averaged weights of the checkpoint `folder/name.pt`, finished or not, into `network`; in eval mode."""
    saved = torch.load(folder / f"{name}.pt", weights_only=True, map_location="cpu")
    network.load_state_dict(saved["network"])
    return _with_weights(network, saved["average"])


@torch.no_grad()
def _with_weights(network: nn.Module, weights: list[Tensor]) -> nn.Module:
    trained = [p for p in network.parameters() if p.requires_grad]
    for p, weight in zip(trained, weights, strict=True):
        p.copy_(weight)
    return network.eval()
