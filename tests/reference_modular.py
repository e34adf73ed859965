"""diffusers' modular pipelines from tiny random parts, and the same runs by one call of the network per row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
)
from diffusers.modular_pipelines import StableDiffusion3AutoBlocks, StableDiffusionXLAutoBlocks
from diffusers.modular_pipelines.modular_pipeline import ModularPipeline
from reference import tiny_vae
from reference_xl import text_config, xl_pipeline
from torch import Tensor
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from sld.guidance import Guidance

PROMPTS = ["a fox in a dark alley", "the beach"]
NEGATIVE = "a ball"
STEPS = 12


def sd3_pipeline(words: Path) -> StableDiffusion3Pipeline:
    """The stock pipeline with random weights: latents of 8 x 8, a flow from sigma 1; no third text encoder."""
    torch.manual_seed(0)
    clip = CLIPTokenizer.from_pretrained(str(words))
    first, second = (
        CLIPTextModelWithProjection(text_config(clip, hidden_size=32, num_hidden_layers=2, projection_dim=16))
        for _ in range(2)
    )
    transformer = SD3Transformer2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=64,
        caption_projection_dim=32,
        pooled_projection_dim=32,
        pos_embed_max_size=16,
    )
    with torch.no_grad():
        for name, weight in transformer.named_parameters():
            if "text" in name or "context" in name or "add_" in name:
                weight *= 4  # so that prompts matter
    vae = tiny_vae()
    vae.register_to_config(shift_factor=0.06)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipe = StableDiffusion3Pipeline(transformer, scheduler, vae, first, clip, second, clip, None, None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def modular(stock: StableDiffusionXLPipeline | StableDiffusion3Pipeline, blocks: type[Any]) -> ModularPipeline:
    """The modular pipeline with the parts of a stock one."""
    pipe = blocks().init_pipeline()
    pipe.update_components(**{name: part for name, part in stock.components.items() if name in pipe.components})
    pipe.set_progress_bar_config(disable=True)
    return pipe


@torch.no_grad()
def xl_rows(
    stock: StableDiffusionXLPipeline, texts: Sequence[str], size: tuple[int, int] = (16, 16)
) -> list[Callable[..., Tensor]]:
    """For each text the prediction of latents and timestep under it."""

    def row(text: str) -> Callable[..., Tensor]:
        tokens, _, pooled, _ = stock.encode_prompt(text, do_classifier_free_guidance=False)

        def predict(x: Tensor, t: Tensor) -> Tensor:
            told = {
                "text_embeds": pooled.expand(len(x), -1),
                "time_ids": torch.tensor([[*size, 0, 0, *size]] * len(x)).float(),
            }
            scaled = stock.scheduler.scale_model_input(x, t)
            return stock.unet(scaled, t, tokens.expand(len(x), -1, -1), added_cond_kwargs=told).sample

        return predict

    return [row(text) for text in texts]


@torch.no_grad()
def sd3_rows(stock: StableDiffusion3Pipeline, texts: Sequence[str]) -> list[Callable[..., Tensor]]:
    """For each text the prediction of latents and timestep under it."""

    def row(text: str) -> Callable[..., Tensor]:
        tokens, _, pooled, _ = stock.encode_prompt(
            text, None, None, do_classifier_free_guidance=False, max_sequence_length=8
        )

        def predict(x: Tensor, t: Tensor) -> Tensor:
            return stock.transformer(
                x, tokens.expand(len(x), -1, -1), pooled.expand(len(x), -1), t.expand(len(x))
            ).sample

        return predict

    return [row(text) for text in texts]


KINDS: dict[str, tuple[Any, Any, Any, dict[str, Any]]] = {
    "SDXL": (xl_pipeline, StableDiffusionXLAutoBlocks, xl_rows, {}),
    "SD 3": (sd3_pipeline, StableDiffusion3AutoBlocks, sd3_rows, {"max_sequence_length": 8}),
}
"""Stock pipeline, modular blocks, rows by single calls, and inputs of the modular pipeline."""


@torch.no_grad()
def separate_run(
    stock: Any, rows: Sequence[Callable[..., Tensor]], rule: Guidance[Any, Any, Any], x: Tensor, steps: int = STEPS
) -> Tensor:
    """Latents after a run whose every row is a call of its own, guided by the rule."""
    scheduler = stock.scheduler
    scheduler.set_timesteps(steps)
    x = x * getattr(scheduler, "init_noise_sigma", 1)
    params, state = rule.params(steps, len(x)), rule.init(x)
    for i, t in enumerate(scheduler.timesteps):
        guided, state = rule(rule.named([row(x, t) for row in rows]), state, i, params)
        x = scheduler.step(guided, t, x, return_dict=False)[0]
    return x
