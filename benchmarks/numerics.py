"""The three numerics beside diffusers and beside each other: a call of the UNet, and whole pictures."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import Timing, in_rounds
from benchmarks.setup import Setup
from benchmarks.sides import Work, difference, our_pictures, ours, their_pictures, theirs, write_embedded
from sld.config import NUMERICS
from sld.guidance import STRONG, SafeLatentGuidance
from sld.models.denoiser import Cond
from sld.models.unet import UNet
from sld.speed.keys import KeyedUNet
from sld.speed.rows import RowNetwork, plan

LATENTS = (1, 2)
"""At once in a call of the UNet, with three rows each. "invariant" numerics compute a latent that is alone twice."""

BATCHES = (1, 8)
"""Pictures of the embedded model at once."""

STEPS, EVALUATION, TIMESTEP = 50, 20, 421
"""Of a run under Strong, the evaluation that is timed, and its timestep: all three rows matter there."""


def run(setup: Setup) -> dict[str, Any]:
    """Times of diffusers and of the three numerics, all four in every round.

    Ratios are called "a beside b": how many times as fast a is as b.
    """
    results: dict[str, Any] = {}
    unet = ours(setup.folder, setup.device, setup.dtype).unet
    reference = theirs(setup.folder, setup.device, setup.dtype).unet
    for latents in (1,) if setup.quick else LATENTS:
        calls = _calls(setup, unet, reference, latents)
        results |= _measured(setup, f"unet_{3 * latents}_rows", calls, setup.pairs)
    del unet, reference
    with tempfile.TemporaryDirectory() as folder:
        write_embedded(Path(folder) / "model")
        steps = 2 if setup.device.dry else 3 if setup.quick else STEPS
        for batch in (1, 2) if setup.device.dry else BATCHES:
            work = Work(STRONG, "ddim", steps, 64, batch)
            pictures = _pictures(setup, Path(folder) / "model", work)
            results |= _measured(setup, f"pictures_batch_{batch}", pictures, setup.pairs)
    return results


def _measured(setup: Setup, name: str, sides: Mapping[str, Callable[[], Tensor]], rounds: int) -> dict[str, Any]:
    """Differences from diffusers' result, and every ratio that is asked for."""
    expected = sides["diffusers"]()
    results: dict[str, Any] = {
        f"{name}_difference_{numerics}": difference(sides[numerics](), expected) for numerics in NUMERICS
    }
    times = in_rounds(setup.device, sides, rounds, warm=False)
    pairs = [(numerics, "diffusers") for numerics in NUMERICS]
    for a, b in (*pairs, ("invariant", "reference"), ("invariant", "fast")):
        timing = Timing(times[a], times[b])
        results[f"{name}_{a}_beside_{b}"] = timing.to_dict()
        results[f"ratio_{name}_{a}_beside_{b}"] = timing.ratio
    return results


def _calls(setup: Setup, unet: UNet, reference: Any, latents: int) -> dict[str, Callable[[], Tensor]]:
    """One evaluation of a run of so many latents under Strong, as a pipeline of each numerics computes it."""
    x = torch.randn(latents, 4, setup.latent, setup.latent, device=setup.device.torch)
    cond = Cond(torch.randn(3 * latents, 77, setup.config.unet.context, device=setup.device.torch))
    timesteps = torch.full((STEPS,), TIMESTEP, device=setup.device.torch)
    rule = SafeLatentGuidance(STRONG)
    texts = [f"{condition} {k}" for condition in rule.conditions for k in range(latents)]
    network = RowNetwork(
        unet=KeyedUNet(unet), cond=cond, timesteps=timesteps, phases=plan(rule, texts, range(latents), STEPS)
    )
    _, fast = next(network.evaluations(EVALUATION))
    _, invariant = next(replace(network, invariant=True).evaluations(EVALUATION))
    t, tokens = timesteps[EVALUATION], cond.tokens.to(setup.dtype)
    calls = {
        "diffusers": lambda: reference(x.repeat(3, 1, 1, 1).to(setup.dtype), t, tokens).sample,
        "reference": lambda: unet(x.repeat(3, 1, 1, 1), t, cond),
        "fast": lambda: fast(x),
        "invariant": lambda: invariant(x),
    }
    return {name: torch.no_grad()(call) for name, call in calls.items()}


def _pictures(setup: Setup, folder: Path, work: Work) -> dict[str, Callable[[], Tensor]]:
    """Whole pictures of the embedded model, from text to pixels."""
    pipe, other = ours(folder, setup.device), theirs(folder, setup.device)
    sides: dict[str, Callable[[], Tensor]] = {"diffusers": partial(their_pictures, other, work)}
    for numerics in NUMERICS:
        sides[numerics] = partial(our_pictures, replace(pipe, numerics=numerics), work)
    return sides
