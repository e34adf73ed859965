"""The guider in modular pipelines with packed tokens, masks, frames or lists: each row's text reaches the network.

Their denoising blocks run with tiny random networks and texts that were encoded before.

Mutants that failed here: the concept's mask left as the prompt's, tokens read as images, frames not put back.
"""

import warnings

import pytest
import torch
from diffusers import (
    ClassifierFreeGuidance as TheirGuidance,
    FlowMatchEulerDiscreteScheduler,
    Flux2Transformer2DModel,
    QwenImageTransformer2DModel,
    UniPCMultistepScheduler,
    WanTransformer3DModel,
    ZImageTransformer2DModel,
)
from diffusers.modular_pipelines import Flux2KleinBaseAutoBlocks, QwenImageAutoBlocks, WanBlocks, ZImageAutoBlocks

from sld.adapters.diffusers import RuleGuider
from sld.guidance import MEDIUM, ClassifierFreeGuidance, SafeLatentGuidance

CONDITIONS = ("text", "uncond", "safety")


def flux2():
    transformer = Flux2Transformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        timestep_guidance_channels=32,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )
    return Flux2KleinBaseAutoBlocks, transformer, FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)


def qwen():
    transformer = QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(8, 4, 4),
    )
    return QwenImageAutoBlocks, transformer, FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)


def wan():
    transformer = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        text_dim=16,
        freq_dim=32,
        ffn_dim=32,
        num_layers=1,
        rope_max_seq_len=32,
    )
    flow = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    return WanBlocks, transformer, flow


def zimage():
    transformer = ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[8, 4, 4],
        axes_lens=[256, 32, 32],
    )
    return ZImageAutoBlocks, transformer, FlowMatchEulerDiscreteScheduler(shift=3.0)


OWN = {"FLUX.2 klein": (flux2, {}), "Qwen-Image": (qwen, {}), "Wan": (wan, {"num_frames": 9}), "Z-Image": (zimage, {})}


@pytest.mark.parametrize("name", list(OWN))
def test_every_row_has_its_text(name):
    make, inputs = OWN[name]
    torch.manual_seed(0)
    blocks, transformer, scheduler = make()
    blocks = blocks()
    for step in [step for step in blocks.sub_blocks if step != "denoise"]:
        blocks.sub_blocks.pop(step)
    pipe = blocks.init_pipeline()
    pipe.set_progress_bar_config(disable=True)
    pipe.update_components(transformer=transformer, scheduler=scheduler)

    def length(condition):
        return 9 if condition == "safety" and name != "Wan" else 7  # Wan takes texts of one length only

    def embeds(condition):
        generator = torch.Generator().manual_seed(CONDITIONS.index(condition))
        return torch.randn(1, length(condition), 16, generator=generator)

    def text(condition):
        value = embeds(condition)
        told = {"prompt_embeds": list(value) if name == "Z-Image" else value}
        mask = {"prompt_embeds_mask": torch.ones(1, length(condition), dtype=torch.long)}
        return told | (mask if name == "Qwen-Image" else {})

    negative = {f"negative_{key}": value for key, value in text("uncond").items()}
    inputs = {"height": 32, "width": 32, "num_inference_steps": 2, **inputs, **text("text"), **negative}

    def run(guider):
        pipe.update_components(guider=guider)
        return pipe(**inputs, generator=torch.Generator().manual_seed(1), output="latents")

    assert torch.equal(run(RuleGuider(ClassifierFreeGuidance(5.0))), run(TheirGuidance(guidance_scale=5.0)))

    seen = []
    guider = RuleGuider(SafeLatentGuidance(MEDIUM))
    pipe.update_components(guider=guider)
    with warnings.catch_warnings(action="ignore"):  # prompt is no input here
        guider.encode(pipe, **inputs | text("safety"))

    def watch(module, args, told):
        tokens = told["cap_feats" if name == "Z-Image" else "encoder_hidden_states"]
        (found,) = [c for c in CONDITIONS if torch.equal(tokens[0], embeds(c)[0])]
        seen.append((found, *(value.shape[1] for key, value in told.items() if key.endswith("mask"))))

    hook = transformer.register_forward_pre_hook(watch, with_kwargs=True)
    assert run(guider).isfinite().all()
    hook.remove()

    row = [(c, length(c)) if name == "Qwen-Image" else (c,) for c in CONDITIONS]
    assert seen == row * 2
