"""Names and shapes of the networks' parameters, told from their configs: no network is built, no torch imported.

What a network is stands in `sld.models`; this says again which parameters it has, so that a checkpoint can be looked at
at once. `tests/checkpoints/test_shapes.py` holds it equal to the networks' own, for every published model.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from sld.config import ModelConfig, TextConfig, UNetConfig, VAEConfig

Part = Literal["unet", "vae", "text"]
PARTS: tuple[Part, ...] = ("unet", "vae", "text")

Shape = tuple[int, ...]
Named = Iterator[tuple[str, Shape]]

_POINT: Shape = (1, 1)
"""What follows (out, in) in the weight of a 1x1 convolution."""


def shapes(config: ModelConfig) -> dict[Part, dict[str, Shape]]:
    """Return the shape of every parameter of a model, by part and name."""
    return {"unet": dict(_unet(config.unet)), "vae": dict(_vae(config.vae)), "text": dict(_text(config.text))}


def _layer(name: str, out: int, into: int, *kernel: int, bias: bool = True) -> Named:
    """A linear layer, or a convolution where a kernel is given."""
    yield f"{name}.weight", (out, into, *kernel)
    if bias:
        yield f"{name}.bias", (out,)


def _norm(name: str, width: int) -> Named:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)


def _res_block(name: str, width_in: int, width_out: int, time: int | None) -> Named:
    yield from _norm(f"{name}.norm_in", width_in)
    yield from _layer(f"{name}.conv_in", width_out, width_in, 3, 3)
    if time is not None:
        yield from _layer(f"{name}.time", width_out, time)
    yield from _norm(f"{name}.norm_out", width_out)
    yield from _layer(f"{name}.conv_out", width_out, width_out, 3, 3)
    if width_in != width_out:
        yield from _layer(f"{name}.shortcut", width_out, width_in, *_POINT)


def _attention(name: str, width: int, source: int, bias: bool = False) -> Named:
    yield from _layer(f"{name}.q", width, width, bias=bias)
    yield from _layer(f"{name}.k", width, source, bias=bias)
    yield from _layer(f"{name}.v", width, source, bias=bias)
    yield from _layer(f"{name}.out", width, width)


def _transformer(name: str, width: int, depth: int, config: UNetConfig) -> Named:
    ends = () if config.linear_projection else _POINT
    yield from _norm(f"{name}.norm", width)
    yield from _layer(f"{name}.proj_in", width, width, *ends)
    for d in range(depth):
        block = f"{name}.blocks.{d}"
        yield from _norm(f"{block}.norm_attn", width)
        yield from _attention(f"{block}.attn", width, width)
        yield from _norm(f"{block}.norm_cross", width)
        yield from _attention(f"{block}.cross", width, config.context)
        yield from _norm(f"{block}.norm_ff", width)
        yield from _layer(f"{block}.ff.up", 8 * width, width)
        yield from _layer(f"{block}.ff.down", width, 4 * width)
    yield from _layer(f"{name}.proj_out", width, width, *ends)


def _unet(config: UNetConfig) -> Named:
    widths = config.channels
    time = 4 * widths[0]
    yield from _layer("time_in", time, widths[0])
    yield from _layer("time_out", time, time)
    yield from _layer("conv_in", widths[0], config.latent, 3, 3)
    width, skips = widths[0], [widths[0]]
    for i, out in enumerate(widths):
        for k in range(config.res_blocks):
            yield from _res_block(f"down.{i}.res.{k}", width, out, time)
            if config.attention[i]:
                yield from _transformer(f"down.{i}.attn.{k}", out, config.depth[i], config)
            width = out
            skips.append(out)
        if i < len(widths) - 1:
            yield from _layer(f"down.{i}.resample", out, out, 3, 3)
            skips.append(out)
    yield from _res_block("mid.res.0", width, width, time)
    yield from _transformer("mid.attn", width, config.depth[-1], config)
    yield from _res_block("mid.res.1", width, width, time)
    for i, level in enumerate(reversed(range(len(widths)))):
        out = widths[level]
        for k in range(config.res_blocks + 1):
            yield from _res_block(f"up.{i}.res.{k}", width + skips.pop(), out, time)
            if config.attention[level]:
                yield from _transformer(f"up.{i}.attn.{k}", out, config.depth[level], config)
            width = out
        if level:
            yield from _layer(f"up.{i}.resample.conv", out, out, 3, 3)
    yield from _norm("norm_out", width)
    yield from _layer("conv_out", config.latent, width, 3, 3)


def _vae(config: VAEConfig) -> Named:
    widths, latent = config.channels, config.latent
    yield from _layer("encoder.conv_in", widths[0], 3, 3, 3)
    width = widths[0]
    for i, out in enumerate(widths):
        for k in range(config.res_blocks):
            yield from _res_block(f"encoder.down.{i}.res.{k}", width, out, None)
            width = out
        if i < len(widths) - 1:
            yield from _layer(f"encoder.down.{i}.resample", out, out, 3, 3)
    yield from _vae_mid("encoder.mid", width)
    yield from _norm("encoder.norm_out", width)
    yield from _layer("encoder.conv_out", 2 * latent, width, 3, 3)
    yield from _layer("encoder.moments", 2 * latent, 2 * latent, *_POINT)

    yield from _layer("decoder.latent", latent, latent, *_POINT)
    yield from _layer("decoder.conv_in", width, latent, 3, 3)
    yield from _vae_mid("decoder.mid", width)
    for i, out in enumerate(reversed(widths)):
        for k in range(config.res_blocks + 1):
            yield from _res_block(f"decoder.up.{i}.res.{k}", width, out, None)
            width = out
        if i < len(widths) - 1:
            yield from _layer(f"decoder.up.{i}.resample.conv", out, out, 3, 3)
    yield from _norm("decoder.norm_out", width)
    yield from _layer("decoder.conv_out", 3, width, 3, 3)


def _vae_mid(name: str, width: int) -> Named:
    yield from _res_block(f"{name}.res.0", width, width, None)
    yield from _norm(f"{name}.norm", width)
    yield from _attention(f"{name}.attn", width, width, bias=True)
    yield from _res_block(f"{name}.res.1", width, width, None)


def _text(config: TextConfig) -> Named:
    """CLIP's text transformer, under transformers' names behind "clip."."""
    width = config.width
    yield "clip.embeddings.token_embedding.weight", (config.vocabulary, width)
    yield "clip.embeddings.position_embedding.weight", (config.tokens, width)
    for i in range(config.layers):
        layer = f"clip.encoder.layers.{i}"
        for one in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from _layer(f"{layer}.self_attn.{one}", width, width)
        yield from _norm(f"{layer}.layer_norm1", width)
        yield from _layer(f"{layer}.mlp.fc1", config.hidden, width)
        yield from _layer(f"{layer}.mlp.fc2", width, config.hidden)
        yield from _norm(f"{layer}.layer_norm2", width)
    yield from _norm("clip.final_layer_norm", width)
