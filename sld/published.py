"""The published models, and the embedded one: their shapes, schedules and defaults."""

from __future__ import annotations

from dataclasses import replace

from sld.config import Defaults, ModelConfig, ScheduleConfig, TextConfig, UNetConfig, VAEConfig

_SD1_UNET = UNetConfig(
    channels=(320, 640, 1280, 1280),
    res_blocks=2,
    attention=(True, True, True, False),
    heads=(8, 8, 8, 8),
    depth=(1, 1, 1, 1),
    context=768,
    linear_projection=False,
)
_SD2_UNET = replace(_SD1_UNET, heads=(5, 10, 20, 20), context=1024, linear_projection=True)
_VAE = VAEConfig(channels=(128, 256, 512, 512), res_blocks=2, scaling=0.18215)
_CLIP_L = (TextConfig(width=768, layers=12, heads=12, hidden=3072),)
_OPENCLIP_H = (TextConfig(width=1024, layers=23, heads=16, hidden=4096, activation="gelu", pad=0),)
_EPS, _V = ScheduleConfig(), ScheduleConfig(prediction="v")

SD14 = ModelConfig("sd14", _SD1_UNET, _VAE, _CLIP_L, _EPS, Defaults(size=512))
SD15 = replace(SD14, name="sd15")
SD15_V = replace(SD14, name="sd15-v", schedule=_V)
SD20_BASE = ModelConfig("sd20-base", _SD2_UNET, _VAE, _OPENCLIP_H, _EPS, Defaults(size=512))
SD20 = ModelConfig("sd20", _SD2_UNET, _VAE, _OPENCLIP_H, _V, Defaults(size=768))
SD21_BASE = replace(SD20_BASE, name="sd21-base")
SD21 = replace(SD20, name="sd21")
SDXL = ModelConfig(
    "sdxl",
    UNetConfig(
        channels=(320, 640, 1280),
        res_blocks=2,
        attention=(False, True, True),
        heads=(5, 10, 20),
        depth=(1, 2, 10),
        context=2048,
        linear_projection=True,
        pooled=1280,
    ),
    replace(_VAE, scaling=0.13025, divides=True, upcast=True),
    (
        replace(_CLIP_L[0], penultimate=True),
        TextConfig(1280, 32, 20, 5120, activation="gelu", pad=0, penultimate=True, projection=1280),
    ),
    _EPS,
    Defaults(size=1024, sampler="euler", spacing="leading"),
    zeros_for_empty=True,
)
MINI = ModelConfig(
    "mini",
    UNetConfig(
        channels=(48, 96, 160),
        res_blocks=1,
        attention=(False, True, True),
        heads=(2, 3, 5),
        depth=(1, 1, 1),
        context=128,
        linear_projection=True,
        groups=16,
    ),
    VAEConfig(channels=(16, 32, 64), res_blocks=1, scaling=1.0, groups=8),
    (TextConfig(width=128, layers=2, heads=4, hidden=512, tokens=32, vocabulary=833),),
    _EPS,
    Defaults(size=64, sampler="ddim", guidance_scale=5.0, concept="unsafe, death"),
)


def inpainting(config: ModelConfig, name: str) -> ModelConfig:
    """Return a model of the same shape, whose UNet is shown a mask and what it leaves of a picture."""
    return replace(config, name=name, unet=replace(config.unet, inpaints=True))


SD15_INPAINTING = inpainting(SD15, "sd15-inpainting")
SD2_INPAINTING = inpainting(SD20_BASE, "sd2-inpainting")
SDXL_INPAINTING = inpainting(SDXL, "sdxl-inpainting")
_ALL = (
    SD14,
    SD15,
    SD15_V,
    SD20_BASE,
    SD20,
    SD21_BASE,
    SD21,
    SDXL,
    SD15_INPAINTING,
    SD2_INPAINTING,
    SDXL_INPAINTING,
    MINI,
)
CONFIGS: dict[str, ModelConfig] = {config.name: config for config in _ALL}
