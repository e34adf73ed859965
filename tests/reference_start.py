"""diffusers' image-to-image and inpainting pipelines from tiny random parts, and their latents."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from reference import SCHEDULERS
from torch import Tensor

PIPELINES: dict[str, Any] = {"img2img": StableDiffusionImg2ImgPipeline, "inpaint": StableDiffusionInpaintPipeline}
XL_PIPELINES: dict[str, Any] = {
    "img2img": StableDiffusionXLImg2ImgPipeline,
    "inpaint": StableDiffusionXLInpaintPipeline,
}


def pipeline(kind: str, base: Any, unet: UNet2DConditionModel | None = None) -> Any:
    """The pipeline of a kind with the parts of another one, or with a UNet of its own."""
    parts = {**base.components, "unet": unet or base.unet, "scheduler": SCHEDULERS["ddim"]()}
    if "text_encoder_2" in parts:
        made = XL_PIPELINES[kind](**parts, add_watermarker=False)
    else:
        made = PIPELINES[kind](**parts, requires_safety_checker=False)
    made.unet.eval()
    made.vae.eval()  # as loaded from a folder; in training it keeps another layout in memory, and so other last bits
    made.set_progress_bar_config(disable=True)
    return made


def started_run(
    pipe: Any,
    prompts: list[str],
    seeds: list[int],
    sampler: str,
    steps: int,
    strength: float,
    images: list[Image.Image],
    masks: list[Image.Image] | None = None,
    scheduler: Callable[[], Any] | None = None,
    **options: Any,
) -> list[Tensor]:
    """Latents after every network evaluation and what follows it, under classifier-free guidance at 5."""
    latents: list[Tensor] = []
    pipe.scheduler = (scheduler or SCHEDULERS[sampler.removesuffix("-diffusers")])()

    def watched(_: Any, i: int, t: Any, values: dict[str, Tensor]) -> dict[str, Tensor]:
        latents.append(values["latents"].clone())
        return values

    sized = {} if masks is None else {"mask_image": masks, "height": images[0].height, "width": images[0].width}
    pipe(
        prompts,
        image=images,
        strength=strength,
        num_inference_steps=steps,
        guidance_scale=5.0,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        output_type="latent",
        callback_on_step_end=watched,
        **sized,
        **options,
    )
    return latents
