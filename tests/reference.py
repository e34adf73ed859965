"""diffusers' StableDiffusionPipelineSafe from tiny random parts, and its latents and pictures."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, PNDMScheduler, UNet2DConditionModel
from diffusers.pipelines.deprecated.stable_diffusion_safe import StableDiffusionPipelineSafe
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from sld.guidance import SLDConfig
from sld.models.denoiser import Cond

SCHEDULE: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "set_alpha_to_one": False,
}
SCHEDULERS: dict[str, Callable[..., Any]] = {
    "pndm": lambda **options: PNDMScheduler(**SCHEDULE, skip_prk_steps=True, **options),
    "ddim": lambda **options: DDIMScheduler(**SCHEDULE, clip_sample=False, **options),
}
KINDS: dict[str, dict[str, Any]] = {
    "SD 1": {"attention_head_dim": 4, "use_linear_projection": False},
    "SD 2": {"attention_head_dim": (2, 4), "use_linear_projection": True},
}


@torch.no_grad()
def attentive(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """The network with cross-attention that looks at the text, as random one hardly does; so prompts matter."""
    for name, weight in unet.named_parameters():
        if "attn2" in name and "weight" in name:
            weight *= 8
    return unet


def tiny_unet(kind: str = "SD 1", levels: int = 2, inputs: int = 4) -> UNet2DConditionModel:
    """A random UNet whose attention looks at the text: latents of 8 x 8, 32 features of context, two levels or one."""
    own = {name: value if isinstance(value, int) else value[:levels] for name, value in KINDS[kind].items()}
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=inputs,
        block_out_channels=(32, 64)[:levels],
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D")[:levels],
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D")[-levels:],
        cross_attention_dim=32,
        norm_num_groups=8,
        **own,
    )
    return attentive(unet)


def tiny_vae() -> AutoencoderKL:
    """A random autoencoder: pictures of 16 pixels to latents of 8."""
    return AutoencoderKL(
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=8,
        latent_channels=4,
        sample_size=16,
    )


def safe_pipeline(
    tokenizer: Path, kind: str = "SD 1", prediction: str = "epsilon", levels: int = 2
) -> StableDiffusionPipelineSafe:
    """diffusers' pipeline with random weights; pictures of 16 pixels, latents of 8."""
    torch.manual_seed(0)
    clip = CLIPTokenizer.from_pretrained(str(tokenizer))
    unet, vae = tiny_unet(kind, levels), tiny_vae()
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(clip),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=clip.model_max_length,
            bos_token_id=clip.bos_token_id,
            eos_token_id=clip.eos_token_id,
            pad_token_id=clip.eos_token_id,
        )
    )
    scheduler = SCHEDULERS["pndm"](prediction_type=prediction)
    pipe = StableDiffusionPipelineSafe(vae, text, clip, unet, scheduler, None, None, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def reference_run(
    pipe: StableDiffusionPipelineSafe,
    prompts: list[str],
    seeds: list[int],
    config: SLDConfig,
    sampler: str,
    steps: int,
    negative: str | None = None,
    concept: str | None = None,
    output: str = "latent",
    size: int = 16,
) -> tuple[list[Tensor], Any]:
    """Latents after every network evaluation, and the pictures: latents, floats ("np") or PIL images ("pil").

    The pipeline's own callback leaves out the steps that the reference calls its warm-up, so that the scheduler is
    asked instead, which is called at every evaluation.
    """
    latents: list[Tensor] = []
    pipe.scheduler = SCHEDULERS[sampler](prediction_type=pipe.scheduler.config.prediction_type)
    if concept is not None:
        pipe.safety_concept = concept
    step = pipe.scheduler.step

    def watched(*args: Any, **options: Any) -> Any:
        result = step(*args, **options)
        latents.append(result.prev_sample.clone())
        return result

    pipe.scheduler.step = watched
    made = pipe(
        prompts,
        height=size,
        width=size,
        num_inference_steps=steps,
        guidance_scale=config.guidance_scale,
        negative_prompt=None if negative is None else [negative] * len(prompts),
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        output_type=output,
        sld_guidance_scale=config.safety_scale,
        sld_warmup_steps=config.warmup_steps,
        sld_threshold=config.threshold,
        sld_momentum_scale=config.momentum_scale,
        sld_mom_beta=config.momentum_beta,
    )
    return latents, made.images


class Wide:
    """A library in which float32 is float64."""

    def __init__(self, library: Any) -> None:
        self._library = library

    def __getattr__(self, name: str) -> Any:
        return getattr(self._library, "float64" if name == "float32" else name)


@contextmanager
def in_float64(scheduler: type[Any]) -> Iterator[type[Any]]:
    """Have a scheduler of diffusers, whose code names float32, compute in float64. It still draws noise in float32."""
    module = sys.modules[scheduler.__module__]
    with pytest.MonkeyPatch.context() as patch:
        for name, library in {"np": np, "torch": torch}.items():
            patch.setattr(module, name, Wide(library))
        if draw := getattr(module, "randn_tensor", None):
            patch.setattr(module, "randn_tensor", lambda *a, **how: draw(*a, **how | {"dtype": torch.float32}).double())
        yield scheduler


class ReferenceUNet:
    """diffusers' UNet as a denoiser of ours."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        self.unet = unet

    @property
    def device(self) -> torch.device:
        return self.unet.device

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.dtype

    def __call__(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        return self.unet(x, t, cond.tokens).sample
