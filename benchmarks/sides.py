"""One model of random weights on both sides: a folder in diffusers' format, read by them and by us.

diffusers is imported by what needs it, so that processes of ours are measured without it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import sld
from benchmarks.measure import Device
from sld import checkpoints
from sld.config import ModelConfig
from sld.embedded import embedded_checkpoint
from sld.guidance import SLDConfig, guidance_for
from sld.models.text import TextEncoder
from sld.models.unet import UNet
from sld.models.vae import VAE
from sld.pipeline import Pipeline
from sld.published import SD15
from sld.samplers import make_sampler
from sld.speed.reuse import NO_REUSE, Reuse

FULL = replace(SD15, texts=(replace(SD15.texts[0], vocabulary=833),))
"""SD 1.5, but for the vocabulary, which is the embedded model's: CLIP's tokenizer is not at hand everywhere."""

SMALL = replace(
    FULL,
    name="small",
    unet=replace(
        SD15.unet,
        channels=(64, 128, 256),
        attention=(True, True, False),
        heads=(8, 8, 8),
        depth=(1, 1, 1),
        res_blocks=1,
    ),
    vae=replace(SD15.vae, channels=(32, 64, 64, 64), res_blocks=1),
    texts=(replace(FULL.texts[0], layers=2),),
)
"""SD 1.5's shape with a fifth of its width and about half its depth."""

TINY = replace(
    SMALL,
    name="tiny",
    unet=replace(SMALL.unet, channels=(32, 64), attention=(True, False), heads=(2, 2), depth=(1, 1), res_blocks=1),
    vae=replace(SMALL.vae, channels=(32, 32, 32, 32), res_blocks=1),
)
"""To pass through every line."""

PROMPT, CONCEPT = "a fox in a dark alley", "unsafe, death"

SCHEDULE: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "set_alpha_to_one": False,
}


def write_model(config: ModelConfig, folder: Path) -> None:
    """A model of random weights in `folder`, with the embedded model's tokenizer."""
    torch.manual_seed(0)
    _write(folder, config, UNet(config.unet), VAE(config.vae), TextEncoder(config.texts[0]))


def write_embedded(folder: Path) -> None:
    """The embedded model in `folder`."""
    parts = checkpoints.load(embedded_checkpoint())
    _write(folder, parts.config, parts.unet, parts.vae, *parts.texts)


def _write(folder: Path, config: ModelConfig, *networks: Any) -> None:
    tokenizer = embedded_checkpoint().parent / "tokenizer"
    checkpoints.save_diffusers(folder, config, *networks, dtype=torch.float32, tokenizer=tokenizer)
    settings = folder / "tokenizer" / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"model_max_length": config.texts[0].tokens}))


@dataclass(frozen=True)
class Work:
    """What both sides are to make.

    Attributes:
        config: SLD's hyper-parameters; a safety scale of 0 is plain classifier-free guidance on our side.
        sampler: "pndm" or "ddim".
        steps: of the sampler.
        side: of the picture in pixels.
        batch: pictures of the same prompt at once.
    """

    config: SLDConfig
    sampler: str
    steps: int
    side: int
    batch: int = 1


def ours(folder: Path, device: Device, dtype: torch.dtype = torch.float32, **options: Any) -> Pipeline:
    return sld.load(folder, dtype=dtype, device=device.torch, **options)


def our_pictures(pipe: Pipeline, work: Work, guidance: Any = None, reuse: Reuse = NO_REUSE) -> Tensor:
    """(b, 3, H, W), about [-1, 1]."""
    *_, state = pipe.sample(
        [PROMPT] * work.batch,
        list(range(work.batch)),
        sampler=make_sampler(work.sampler, pipe.schedule, work.steps),
        guidance=guidance or guidance_for(work.config),
        concept=CONCEPT,
        size=work.side,
        reuse=reuse,
    )
    return pipe.decode(state.x)


def theirs(folder: Path, device: Device, dtype: torch.dtype = torch.float32, *, safe: bool = True) -> Any:
    """diffusers' StableDiffusionPipelineSafe, or its plain StableDiffusionPipeline."""
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from diffusers.pipelines.deprecated.stable_diffusion_safe import StableDiffusionPipelineSafe
    from transformers import CLIPTextModel, CLIPTokenizer

    pipeline = StableDiffusionPipelineSafe if safe else StableDiffusionPipeline
    read: dict[str, Any] = {"torch_dtype": dtype}
    pipe = pipeline(
        vae=AutoencoderKL.from_pretrained(folder / "vae", **read),
        text_encoder=CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=dtype),
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        unet=UNet2DConditionModel.from_pretrained(folder / "unet", **read),
        scheduler=PNDMScheduler(**SCHEDULE, skip_prk_steps=True),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    if safe:
        pipe.safety_concept = CONCEPT
    return pipe.to(device.torch)


def their_pictures(pipe: Any, work: Work) -> Tensor:
    """(b, 3, H, W), [-1, 1]."""
    from diffusers import DDIMScheduler, PNDMScheduler

    safety = {
        "sld_guidance_scale": work.config.safety_scale,
        "sld_warmup_steps": work.config.warmup_steps,
        "sld_threshold": work.config.threshold,
        "sld_momentum_scale": work.config.momentum_scale,
        "sld_mom_beta": work.config.momentum_beta,
    }
    if work.sampler == "ddim":
        pipe.scheduler = DDIMScheduler(**SCHEDULE, clip_sample=False)
    else:
        pipe.scheduler = PNDMScheduler(**SCHEDULE, skip_prk_steps=True)
    made = pipe(
        [PROMPT] * work.batch,
        height=work.side,
        width=work.side,
        num_inference_steps=work.steps,
        guidance_scale=work.config.guidance_scale,
        generator=[torch.Generator().manual_seed(seed) for seed in range(work.batch)],
        output_type="np",
        **(safety if hasattr(pipe, "safety_concept") else {}),
    ).images
    return torch.from_numpy(made).permute(0, 3, 1, 2) * 2 - 1


def difference(a: Tensor, b: Tensor) -> float:
    """Mean distance of pictures in [-1, 1].

    Raises:
        RuntimeError: they are not of the same thing, so that their times say nothing.
    """
    apart = (a.float().clamp(-1, 1).cpu() - b.float().clamp(-1, 1).cpu()).abs().mean().item()
    if not apart < LIMIT:
        raise RuntimeError(
            f"the two sides' pictures differ by {apart:.3g} in the mean; at most {LIMIT} can be rounding"
        )
    return apart


LIMIT = 0.05
"""Rounding that SLD's mask has amplified over a run stays below it; another picture does not.

The most that was seen is 0.019, of a picture of the embedded model after 50 steps with "invariant" numerics.
"""
