"""The modules of Stable Diffusion's networks: names here, in CompVis' files and in diffusers', and shapes of weights.

A walk over a config yields the modules of a network. It builds no network and imports no torch, so that a checkpoint
can be looked at at once; `tests/checkpoints/test_tables.py` holds it equal to the networks' own parameters.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from sld.config import TextConfig, UNetConfig, VAEConfig

Shape = tuple[int, ...]


class Row(NamedTuple):
    """A module with a weight, under its three names.

    In their names "|" separates spellings, the first of which is written, and "*" stands for "weight" or "bias" where
    these do not follow after a dot. A name of theirs that ends in "!" is that of the weight itself, and one that begins
    with "/" takes no prefix. For the text encoder the column `compvis` is OpenCLIP's naming; SD 1 uses transformers',
    as diffusers does.

    Attributes:
        weight: its shape; the bias has as many elements as the first axis.
        bias: whether there is one.
        convolution: whether CompVis' files store the matrix as a 1x1 convolution.
        transposed: whether OpenCLIP stores the matrix the other way round.
    """

    ours: str
    compvis: str
    diffusers: str
    weight: Shape
    bias: bool = True
    convolution: bool = False
    transposed: bool = False


def _under(ours: str, compvis: str, diffusers: str, rows: Iterable[Row]) -> Iterator[Row]:
    """`rows` inside a block of these names."""
    for row in rows:
        theirs = "|".join(f"{diffusers}.{spelling}" for spelling in row.diffusers.split("|"))
        yield row._replace(ours=f"{ours}.{row.ours}", compvis=f"{compvis}.{row.compvis}", diffusers=theirs)


def _unet_res(a: int, b: int, time: int) -> Iterator[Row]:
    yield Row("norm_in", "in_layers.0", "norm1", (a,))
    yield Row("conv_in", "in_layers.2", "conv1", (b, a, 3, 3))
    yield Row("time", "emb_layers.1", "time_emb_proj", (b, time))
    yield Row("norm_out", "out_layers.0", "norm2", (b,))
    yield Row("conv_out", "out_layers.3", "conv2", (b, b, 3, 3))
    if a != b:
        yield Row("shortcut", "skip_connection", "conv_shortcut", (b, a, 1, 1))


def _transformer(width: int, depth: int, config: UNetConfig) -> Iterator[Row]:
    point = () if config.linear_projection else (1, 1)
    yield Row("norm", "norm", "norm", (width,))
    for ends in ("proj_in", "proj_out"):
        yield Row(ends, ends, ends, (width, width, *point))
    for d in range(depth):
        block = f"transformer_blocks.{d}"
        yield from _under(f"blocks.{d}", block, block, _transformer_block(width, config.context))


def _transformer_block(width: int, context: int) -> Iterator[Row]:
    for k, (ours, source) in enumerate((("attn", width), ("cross", context)), start=1):
        yield Row(f"norm_{ours}", f"norm{k}", f"norm{k}", (width,))
        for one, into in (("q", width), ("k", source), ("v", source)):
            yield Row(f"{ours}.{one}", f"attn{k}.to_{one}", f"attn{k}.to_{one}", (width, into), bias=False)
        yield Row(f"{ours}.out", f"attn{k}.to_out.0", f"attn{k}.to_out.0", (width, width))
    yield Row("norm_ff", "norm3", "norm3", (width,))
    yield Row("ff.up", "ff.net.0.proj", "ff.net.0.proj", (8 * width, width))
    yield Row("ff.down", "ff.net.2", "ff.net.2", (width, 4 * width))


def unet(config: UNetConfig) -> Iterator[Row]:
    """Rows of a UNet. CompVis numbers the blocks of a side through all levels, changes of size included."""
    widths, depth = config.channels, config.depth
    time = 4 * widths[0]
    yield Row("time_in", "time_embed.0", "time_embedding.linear_1", (time, widths[0]))
    yield Row("time_out", "time_embed.2", "time_embedding.linear_2", (time, time))
    if config.pooled is not None:
        joined = config.pooled + config.SIZES
        yield Row("added_in", "label_emb.0.0", "add_embedding.linear_1", (time, joined))
        yield Row("added_out", "label_emb.0.2", "add_embedding.linear_2", (time, time))
    yield Row("conv_in", "input_blocks.0.0", "conv_in", (widths[0], config.inputs, 3, 3))

    n, width, skips = 0, widths[0], [widths[0]]
    for i, out in enumerate(widths):
        ours, theirs = f"down.{i}", f"down_blocks.{i}"
        for k in range(config.res_blocks):
            n, block = n + 1, f"input_blocks.{n + 1}"
            yield from _under(f"{ours}.res.{k}", f"{block}.0", f"{theirs}.resnets.{k}", _unet_res(width, out, time))
            if config.attention[i]:
                rows = _transformer(out, depth[i], config)
                yield from _under(f"{ours}.attn.{k}", f"{block}.1", f"{theirs}.attentions.{k}", rows)
            width = out
            skips.append(out)
        if i < len(widths) - 1:
            n += 1
            yield Row(f"{ours}.resample", f"input_blocks.{n}.0.op", f"{theirs}.downsamplers.0.conv", (out, out, 3, 3))
            skips.append(out)

    for k in range(2):
        rows = _unet_res(width, width, time)
        yield from _under(f"mid.res.{k}", f"middle_block.{2 * k}", f"mid_block.resnets.{k}", rows)
    rows = _transformer(width, depth[-1], config)
    yield from _under("mid.attn", "middle_block.1", "mid_block.attentions.0", rows)

    n = -1
    for i, level in enumerate(reversed(range(len(widths)))):
        ours, theirs, out = f"up.{i}", f"up_blocks.{i}", widths[level]
        for k in range(config.res_blocks + 1):
            n, block = n + 1, f"output_blocks.{n + 1}"
            rows = _unet_res(width + skips.pop(), out, time)
            yield from _under(f"{ours}.res.{k}", f"{block}.0", f"{theirs}.resnets.{k}", rows)
            if config.attention[level]:
                rows = _transformer(out, depth[level], config)
                yield from _under(f"{ours}.attn.{k}", f"{block}.1", f"{theirs}.attentions.{k}", rows)
            width = out
        if level:
            conv = f"output_blocks.{n}.{2 if config.attention[level] else 1}.conv"
            yield Row(f"{ours}.resample.conv", conv, f"{theirs}.upsamplers.0.conv", (out, out, 3, 3))

    yield Row("norm_out", "out.0", "conv_norm_out", (width,))
    yield Row("conv_out", "out.2", "conv_out", (config.latent, width, 3, 3))


def _vae_res(a: int, b: int) -> Iterator[Row]:
    yield Row("norm_in", "norm1", "norm1", (a,))
    yield Row("conv_in", "conv1", "conv1", (b, a, 3, 3))
    yield Row("norm_out", "norm2", "norm2", (b,))
    yield Row("conv_out", "conv2", "conv2", (b, b, 3, 3))
    if a != b:
        yield Row("shortcut", "nin_shortcut", "conv_shortcut", (b, a, 1, 1))


def _vae_mid(side: str, width: int) -> Iterator[Row]:
    mid, theirs = f"{side}.mid", f"{side}.mid_block"
    for k in range(2):
        yield from _under(f"{mid}.res.{k}", f"{mid}.block_{k + 1}", f"{theirs}.resnets.{k}", _vae_res(width, width))
    yield Row(f"{mid}.norm", f"{mid}.attn_1.norm", f"{theirs}.attentions.0.group_norm", (width,))
    for ours, compvis, new, old in (
        ("q", "q", "to_q", "query"),
        ("k", "k", "to_k", "key"),
        ("v", "v", "to_v", "value"),
        ("out", "proj_out", "to_out.0", "proj_attn"),
    ):
        spellings = f"{theirs}.attentions.0.{new}|{theirs}.attentions.0.{old}"
        yield Row(f"{mid}.attn.{ours}", f"{mid}.attn_1.{compvis}", spellings, (width, width), convolution=True)


def vae(config: VAEConfig) -> Iterator[Row]:
    """Rows of an autoencoder. CompVis numbers the decoder's levels from the finest, we and diffusers as they run."""
    widths, latent, blocks = config.channels, config.latent, config.res_blocks
    last = len(widths) - 1
    yield from _under("encoder", "encoder", "encoder", _vae_ends(widths[0], 3, widths[-1], 2 * latent))
    yield Row("encoder.moments", "quant_conv", "quant_conv", (2 * latent, 2 * latent, 1, 1))
    yield from _vae_mid("encoder", widths[-1])
    for i, (before, width) in enumerate(zip((widths[0], *widths), widths, strict=False)):
        names = f"encoder.down.{i}", f"encoder.down.{i}", f"encoder.down_blocks.{i}"
        yield from _under(*names, _vae_level(before, width, blocks, None if i == last else "downsample"))

    yield from _under("decoder", "decoder", "decoder", _vae_ends(widths[-1], latent, widths[0], 3))
    yield Row("decoder.latent", "post_quant_conv", "post_quant_conv", (latent, latent, 1, 1))
    yield from _vae_mid("decoder", widths[-1])
    for i, (before, width) in enumerate(zip((widths[-1], *widths[::-1]), widths[::-1], strict=False)):
        names = f"decoder.up.{i}", f"decoder.up.{last - i}", f"decoder.up_blocks.{i}"
        yield from _under(*names, _vae_level(before, width, blocks + 1, None if i == last else "upsample"))


def _vae_ends(first: int, into: int, last: int, out: int) -> Iterator[Row]:
    yield Row("conv_in", "conv_in", "conv_in", (first, into, 3, 3))
    yield Row("norm_out", "norm_out", "conv_norm_out", (last,))
    yield Row("conv_out", "conv_out", "conv_out", (out, last, 3, 3))


def _vae_level(before: int, width: int, blocks: int, change: str | None) -> Iterator[Row]:
    for k in range(blocks):
        yield from _under(f"res.{k}", f"block.{k}", f"resnets.{k}", _vae_res(width if k else before, width))
    if change is not None:
        ours = "resample" if change == "downsample" else "resample.conv"
        yield Row(ours, f"{change}.conv", f"{change}rs.0.conv", (width, width, 3, 3))


def text(config: TextConfig) -> Iterator[Row]:
    """Rows of a text encoder, whose own names are transformers' behind "clip."."""
    width, hidden = config.width, config.hidden
    tokens, positions = "embeddings.token_embedding", "embeddings.position_embedding"
    yield Row(f"clip.{tokens}", "token_embedding", tokens, (config.vocabulary, width), bias=False)
    yield Row(f"clip.{positions}", "positional_embedding!", positions, (config.tokens, width), bias=False)
    for i in range(config.layers):
        layer = f"encoder.layers.{i}"
        yield from _under(f"clip.{layer}", f"transformer.resblocks.{i}", layer, _text_layer(width, hidden))
    yield Row("clip.final_layer_norm", "ln_final", "final_layer_norm", (width,))
    if config.projection is not None:
        weight, name = (config.projection, width), "text_projection"
        yield Row("projection", f"{name}!", f"/{name}", weight, bias=False, transposed=True)


def _text_layer(width: int, hidden: int) -> Iterator[Row]:
    yield Row("layer_norm1", "ln_1", "layer_norm1", (width,))
    for one in ("q_proj", "k_proj", "v_proj"):
        yield Row(f"self_attn.{one}", "attn.in_proj_*", f"self_attn.{one}", (width, width))
    yield Row("self_attn.out_proj", "attn.out_proj", "self_attn.out_proj", (width, width))
    yield Row("layer_norm2", "ln_2", "layer_norm2", (width,))
    yield Row("mlp.fc1", "mlp.c_fc", "mlp.fc1", (hidden, width))
    yield Row("mlp.fc2", "mlp.c_proj", "mlp.fc2", (width, hidden))
