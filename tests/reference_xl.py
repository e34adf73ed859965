"""diffusers' StableDiffusionXLPipeline from tiny random parts, and its latents and pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from reference import SCHEDULE, SCHEDULERS, attentive, tiny_vae
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer


def euler() -> EulerDiscreteScheduler:
    """The scheduler of SDXL."""
    own = {name: value for name, value in SCHEDULE.items() if name != "set_alpha_to_one"}
    return EulerDiscreteScheduler(**own, timestep_spacing="leading")


def text_config(clip: CLIPTokenizer, **own: Any) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(clip),
        intermediate_size=64,
        num_attention_heads=4,
        max_position_embeddings=clip.model_max_length,
        bos_token_id=clip.bos_token_id,
        eos_token_id=clip.eos_token_id,
        **own,
    )


def xl_unet(inputs: int = 4) -> UNet2DConditionModel:
    """A random UNet whose attention looks at the text, and which is told pooled texts of 24 features."""
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=inputs,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2),
        attention_head_dim=(2, 4),
        cross_attention_dim=64,
        norm_num_groups=8,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=24 + 6 * 256,
    )
    return attentive(unet)


def xl_pipeline(words: Path) -> StableDiffusionXLPipeline:
    """The pipeline with random weights: latents of 8 x 8, tokens of 32 + 32 features, 24 pooled ones."""
    torch.manual_seed(0)
    first = CLIPTokenizer.from_pretrained(str(words))
    second = CLIPTokenizer.from_pretrained(str(words), pad_token="!")
    unet = xl_unet()
    vae = tiny_vae()
    vae.register_to_config(scaling_factor=0.13025)
    pipe = StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text_config(first, hidden_size=32, num_hidden_layers=3)),
        text_encoder_2=CLIPTextModelWithProjection(
            text_config(first, hidden_size=32, num_hidden_layers=2, hidden_act="gelu", projection_dim=24)
        ),
        tokenizer=first,
        tokenizer_2=second,
        unet=unet,
        scheduler=euler(),
        add_watermarker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def xl_run(
    pipe: StableDiffusionXLPipeline,
    prompts: list[str],
    seeds: list[int],
    sampler: str,
    steps: int,
    negative: str | None = None,
    output: str = "latent",
    size: tuple[int, int] = (16, 16),
) -> tuple[list[Tensor], Any]:
    """Latents after every network evaluation under classifier-free guidance at 5, and the pictures."""
    latents: list[Tensor] = []
    if sampler == "euler":
        pipe.scheduler = euler()
    else:
        pipe.scheduler = SCHEDULERS[sampler]()
    step = pipe.scheduler.step

    def watched(*args: Any, **options: Any) -> Any:
        result = step(*args, **options)
        latents.append(result[0].clone())
        return result

    pipe.scheduler.step = watched
    made = pipe(
        prompts,
        height=size[0],
        width=size[1],
        num_inference_steps=steps,
        guidance_scale=5.0,
        negative_prompt=None if negative is None else [negative] * len(prompts),
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        output_type=output,
    )
    return latents, made.images
