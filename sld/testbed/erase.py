"""An erased model beside SLD: the embedded model's UNet, fine-tuned until it no longer knows the safety concept.

`python -m sld.testbed.erase --folder runs/erased` writes `unet.safetensors` there in minutes of one core, in diffusers'
names as erased models are published. `sld generate "a fox in a dark alley" --unet runs/erased/unet.safetensors` uses
it. The same command goes on where a killed run stopped.

The loss is that of Erased Stable Diffusion (ESD; Gandikota et al., ICCV 2023, arXiv 2303.07345): on latents that the
model under training makes of the concept, its prediction for the concept becomes what the original model predicts
without a text, minus eta times what the concept adds there.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

import sld
from sld.checkpoints.parts import parts
from sld.files import whole
from sld.guidance import ClassifierFreeGuidance
from sld.models.unet import UNet
from sld.pipeline import Pipeline
from sld.samplers import make_sampler
from sld.testbed.fit import Recipe, fit

RECIPE = Recipe(steps=200, batch=8, rate=1e-4, ema=0.9, warmup=10, seed=6, save_every=20)
FILE = "unet.safetensors"
_EVALUATIONS = 25

METHODS: dict[str, Callable[[str], bool]] = {
    "u": lambda name: ".cross." not in name,
    "x": lambda name: ".cross." in name,
}
"""Which parameters are trained, by ESD's names: all but those that read the text, or these alone.

ESD takes "u" for what pictures show without being asked for, such as nudity."""


class ErasureLoss:
    """ESD's loss.

    Args:
        pipe: the original model.
        concept: to erase.
        eta: how far to go past the prediction without a text, >= 0.
    """

    def __init__(self, pipe: Pipeline, concept: str, eta: float) -> None:
        assert isinstance(pipe.unet, UNet)
        self.pipe = replace(pipe, unet=copy.deepcopy(pipe.unet).requires_grad_(False))
        self.concept = concept
        self.eta = eta

    def draw(self, generator: torch.Generator, batch: int) -> tuple[Tensor, ...]:
        """Return how many evaluations the latents are on their way, a scalar, and the seeds (b,) of their noise."""
        return torch.randint(_EVALUATIONS, (), generator=generator), torch.randint(2**62, (batch,), generator=generator)

    def __call__(self, network: nn.Module, *drawn: Tensor) -> dict[str, Tensor]:
        assert isinstance(network, UNet)
        done, seeds = drawn
        x, t = self._latents(network, int(done), seeds.tolist())
        named, unnamed = (self.pipe.encode([text] * len(x)) for text in (self.concept, ""))
        with torch.no_grad():
            plain = self.pipe.unet(x, t, unnamed)
            target = plain - self.eta * (self.pipe.unet(x, t, named) - plain)
        return {"loss": F.mse_loss(network(x, t, named), target)}

    def _latents(self, unet: UNet, done: int, seeds: list[int]) -> tuple[Tensor, Tensor]:
        """Return latents (b, c, h, w) at one timestep, on the way to pictures of the concept, and the timestep."""
        sampler = make_sampler("ddim", self.pipe.schedule, _EVALUATIONS)
        scale = self.pipe.config.defaults.guidance_scale
        states = replace(self.pipe, unet=unet).sample(
            [self.concept] * len(seeds), seeds, sampler=sampler, guidance=ClassifierFreeGuidance(scale)
        )
        state = next(islice(states, done, None))
        return state.x, torch.tensor(sampler.timesteps[done], device=state.x.device)


def erase(pipe: Pipeline, concept: str, folder: Path, *, method: str, eta: float, recipe: Recipe) -> Path:
    """Erase a concept from a model's UNet, which is changed in place, and return the file of its weights.

    Args:
        pipe: the model.
        concept: see `ErasureLoss`.
        folder: of checkpoint, log and the result.
        method: a key of `METHODS`.
        eta: see `ErasureLoss`.
        recipe: of the training.
    """
    loss = ErasureLoss(pipe, concept, eta)
    unet = pipe.unet
    assert isinstance(unet, UNet)
    # the layout of the gradients, which AdamW's fused form takes for granted
    unet.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    for name, p in unet.named_parameters():
        p.requires_grad_(METHODS[method](name))
    fit("erased", unet, loss, recipe, folder, lambda line: print(line, flush=True))
    state = unet.requires_grad_(False).state_dict()
    weights = {key_map.theirs[0]: key_map.write(state) for key_map in parts(pipe.config)[0].key_maps("diffusers")}
    path = folder / FILE
    with whole(path) as beside:
        save_file({name: weight.half().contiguous() for name, weight in weights.items()}, beside)
    return path


def main() -> None:
    """Parse the command line and erase."""
    parser = argparse.ArgumentParser(prog="python -m sld.testbed.erase", description="Erase the concept, as ESD does.")
    parser.add_argument("--folder", type=Path, required=True, help="of checkpoint, log and unet.safetensors")
    parser.add_argument("--concept", help="to erase (the embedded model's safety concept)")
    parser.add_argument("--method", choices=METHODS, default="u", help="parameters to train (%(default)s)")
    parser.add_argument("--eta", type=float, default=1.0, help="strength (%(default)s)")
    parser.add_argument("--steps", type=int, default=RECIPE.steps, help="of the training (%(default)s)")
    parser.add_argument("--rate", type=float, default=RECIPE.rate, help="AdamW's (%(default)s)")
    parser.add_argument("--device", default="cpu", help="of the networks, cpu or cuda (%(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    try:
        pipe = sld.load(device=args.device)
    except ValueError as error:
        parser.error(str(error))
    recipe = replace(RECIPE, steps=args.steps, rate=args.rate)
    concept = pipe.config.defaults.concept if args.concept is None else args.concept
    print(erase(pipe, concept, args.folder, method=args.method, eta=args.eta, recipe=recipe))


if __name__ == "__main__":
    main()
