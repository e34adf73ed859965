"""The names of Stable Diffusion's parameters: ours, CompVis' and diffusers'.

A walk over a config yields the blocks under their three names, and a small table of leaves finishes each. Rows for
modules that a config has none of (the shortcut of a block that keeps its width, the transformers of a level without)
are harmless: key maps are made for the parameters that a model has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Literal, NamedTuple

from sld.checkpoints.remap import KeyMap, Leftover
from sld.checkpoints.shapes import Part, shapes
from sld.config import ModelConfig, TextConfig, UNetConfig, VAEConfig

Format = Literal["compvis", "diffusers"]


class Row(NamedTuple):
    """A module, or a whole parameter, under its three names.

    In their names "|" separates spellings, the first of which is written, and "*" stands for "weight" or "bias" where
    these do not simply follow after a dot. `convolution` lists the formats that store the matrix of a linear layer of
    ours as a 1x1 convolution.
    For the text encoder the column `compvis` is OpenCLIP's naming; SD 1 uses transformers', as diffusers does.
    """

    ours: str
    compvis: str
    diffusers: str
    convolution: tuple[Format, ...] = ()


_UNET = (
    Row("time_in", "time_embed.0", "time_embedding.linear_1"),
    Row("time_out", "time_embed.2", "time_embedding.linear_2"),
    Row("conv_in", "input_blocks.0.0", "conv_in"),
    Row("norm_out", "out.0", "conv_norm_out"),
    Row("conv_out", "out.2", "conv_out"),
)
_UNET_RES = (
    Row("norm_in", "in_layers.0", "norm1"),
    Row("conv_in", "in_layers.2", "conv1"),
    Row("time", "emb_layers.1", "time_emb_proj"),
    Row("norm_out", "out_layers.0", "norm2"),
    Row("conv_out", "out_layers.3", "conv2"),
    Row("shortcut", "skip_connection", "conv_shortcut"),
)
_TRANSFORMER_BLOCK = (
    Row("norm_attn", "norm1", "norm1"),
    Row("attn.q", "attn1.to_q", "attn1.to_q"),
    Row("attn.k", "attn1.to_k", "attn1.to_k"),
    Row("attn.v", "attn1.to_v", "attn1.to_v"),
    Row("attn.out", "attn1.to_out.0", "attn1.to_out.0"),
    Row("norm_cross", "norm2", "norm2"),
    Row("cross.q", "attn2.to_q", "attn2.to_q"),
    Row("cross.k", "attn2.to_k", "attn2.to_k"),
    Row("cross.v", "attn2.to_v", "attn2.to_v"),
    Row("cross.out", "attn2.to_out.0", "attn2.to_out.0"),
    Row("norm_ff", "norm3", "norm3"),
    Row("ff.up", "ff.net.0.proj", "ff.net.0.proj"),
    Row("ff.down", "ff.net.2", "ff.net.2"),
)
_VAE = (
    Row("encoder.conv_in", "encoder.conv_in", "encoder.conv_in"),
    Row("encoder.norm_out", "encoder.norm_out", "encoder.conv_norm_out"),
    Row("encoder.conv_out", "encoder.conv_out", "encoder.conv_out"),
    Row("encoder.moments", "quant_conv", "quant_conv"),
    Row("decoder.latent", "post_quant_conv", "post_quant_conv"),
    Row("decoder.conv_in", "decoder.conv_in", "decoder.conv_in"),
    Row("decoder.norm_out", "decoder.norm_out", "decoder.conv_norm_out"),
    Row("decoder.conv_out", "decoder.conv_out", "decoder.conv_out"),
)
_VAE_RES = (
    Row("norm_in", "norm1", "norm1"),
    Row("conv_in", "conv1", "conv1"),
    Row("norm_out", "norm2", "norm2"),
    Row("conv_out", "conv2", "conv2"),
    Row("shortcut", "nin_shortcut", "conv_shortcut"),
)
_VAE_ATTENTION = (
    Row("norm", "attn_1.norm", "attentions.0.group_norm"),
    Row("attn.q", "attn_1.q", "attentions.0.to_q|attentions.0.query", ("compvis",)),
    Row("attn.k", "attn_1.k", "attentions.0.to_k|attentions.0.key", ("compvis",)),
    Row("attn.v", "attn_1.v", "attentions.0.to_v|attentions.0.value", ("compvis",)),
    Row("attn.out", "attn_1.proj_out", "attentions.0.to_out.0|attentions.0.proj_attn", ("compvis",)),
)
_TEXT = (
    Row("clip.embeddings.token_embedding", "token_embedding", "embeddings.token_embedding"),
    Row("clip.embeddings.position_embedding.weight", "positional_embedding", "embeddings.position_embedding.weight"),
    Row("clip.final_layer_norm", "ln_final", "final_layer_norm"),
)
_TEXT_LAYER = (
    Row("layer_norm1", "ln_1", "layer_norm1"),
    Row("self_attn.q_proj", "attn.in_proj_*", "self_attn.q_proj"),
    Row("self_attn.k_proj", "attn.in_proj_*", "self_attn.k_proj"),
    Row("self_attn.v_proj", "attn.in_proj_*", "self_attn.v_proj"),
    Row("self_attn.out_proj", "attn.out_proj", "self_attn.out_proj"),
    Row("layer_norm2", "ln_2", "layer_norm2"),
    Row("mlp.fc1", "mlp.c_fc", "mlp.fc1"),
    Row("mlp.fc2", "mlp.c_proj", "mlp.fc2"),
)


def _under(ours: str, compvis: str, diffusers: str, rows: Iterable[Row]) -> Iterator[Row]:
    """`rows` inside a block of these names."""
    for row in rows:
        theirs = "|".join(f"{diffusers}.{spelling}" for spelling in row.diffusers.split("|"))
        yield Row(f"{ours}.{row.ours}", f"{compvis}.{row.compvis}", theirs, row.convolution)


def _transformer(ours: str, compvis: str, diffusers: str, depth: int) -> Iterator[Row]:
    yield from _under(ours, compvis, diffusers, (Row(name, name, name) for name in ("norm", "proj_in", "proj_out")))
    for d in range(depth):
        block = f"transformer_blocks.{d}"
        yield from _under(f"{ours}.blocks.{d}", f"{compvis}.{block}", f"{diffusers}.{block}", _TRANSFORMER_BLOCK)


def unet(config: UNetConfig) -> Iterator[Row]:
    """Rows of a UNet. CompVis numbers the blocks of a side through all levels, changes of size included."""
    yield from _UNET
    levels = list(enumerate(config.depth))
    n = 0
    for i, depth in levels:
        for k in range(config.res_blocks):
            n += 1
            block = f"input_blocks.{n}"
            yield from _under(f"down.{i}.res.{k}", f"{block}.0", f"down_blocks.{i}.resnets.{k}", _UNET_RES)
            yield from _transformer(f"down.{i}.attn.{k}", f"{block}.1", f"down_blocks.{i}.attentions.{k}", depth)
        n += 1
        yield Row(f"down.{i}.resample", f"input_blocks.{n}.0.op", f"down_blocks.{i}.downsamplers.0.conv")

    yield from _under("mid.res.0", "middle_block.0", "mid_block.resnets.0", _UNET_RES)
    yield from _transformer("mid.attn", "middle_block.1", "mid_block.attentions.0", config.depth[-1])
    yield from _under("mid.res.1", "middle_block.2", "mid_block.resnets.1", _UNET_RES)

    n = -1
    for i, (level, depth) in enumerate(reversed(levels)):
        for k in range(config.res_blocks + 1):
            n += 1
            block = f"output_blocks.{n}"
            yield from _under(f"up.{i}.res.{k}", f"{block}.0", f"up_blocks.{i}.resnets.{k}", _UNET_RES)
            yield from _transformer(f"up.{i}.attn.{k}", f"{block}.1", f"up_blocks.{i}.attentions.{k}", depth)
        conv = f"output_blocks.{n}.{2 if config.attention[level] else 1}.conv"
        yield Row(f"up.{i}.resample.conv", conv, f"up_blocks.{i}.upsamplers.0.conv")


def vae(config: VAEConfig) -> Iterator[Row]:
    """Rows of an autoencoder. CompVis numbers the decoder's levels from the finest, we and diffusers as they run."""
    yield from _VAE
    for mid in ("encoder.mid", "decoder.mid"):
        for k in range(2):
            yield from _under(f"{mid}.res.{k}", f"{mid}.block_{k + 1}", f"{mid}_block.resnets.{k}", _VAE_RES)
        yield from _under(mid, mid, f"{mid}_block", _VAE_ATTENTION)
    for i in range(len(config.channels)):
        ours, compvis, diffusers = f"encoder.down.{i}", f"encoder.down.{i}", f"encoder.down_blocks.{i}"
        for k in range(config.res_blocks):
            yield from _under(f"{ours}.res.{k}", f"{compvis}.block.{k}", f"{diffusers}.resnets.{k}", _VAE_RES)
        yield Row(f"{ours}.resample", f"{compvis}.downsample.conv", f"{diffusers}.downsamplers.0.conv")

        from_finest = len(config.channels) - 1 - i
        ours, compvis, diffusers = f"decoder.up.{i}", f"decoder.up.{from_finest}", f"decoder.up_blocks.{i}"
        for k in range(config.res_blocks + 1):
            yield from _under(f"{ours}.res.{k}", f"{compvis}.block.{k}", f"{diffusers}.resnets.{k}", _VAE_RES)
        yield Row(f"{ours}.resample.conv", f"{compvis}.upsample.conv", f"{diffusers}.upsamplers.0.conv")


def text(config: TextConfig) -> Iterator[Row]:
    """Rows of a text encoder, whose own names are transformers' behind "clip."."""
    yield from _TEXT
    for i in range(config.layers):
        layer = f"encoder.layers.{i}"
        yield from _under(f"clip.{layer}", f"transformer.resblocks.{i}", layer, _TEXT_LAYER)


def _openclip(config: ModelConfig) -> bool:
    """SD 2's text encoder is OpenCLIP's, the only one with GELU, and its single files keep OpenCLIP's names."""
    return config.text.activation == "gelu"


def _prefixes(part: Part, format: Format, config: ModelConfig) -> tuple[str, ...]:
    """What may stand before a part's keys; the first is what is written."""
    if part == "text":
        if format == "diffusers":
            return "text_model.", ""
        clip = "cond_stage_model.transformer."
        return ("cond_stage_model.model.",) if _openclip(config) else (clip + "text_model.", clip)
    return ({"unet": "model.diffusion_model.", "vae": "first_stage_model."}[part] if format == "compvis" else "",)


def _averaged(key: str) -> str:
    """Where a CompVis file keeps the running average of a UNet's parameter: a name without dots."""
    return "model_ema." + key.removeprefix("model.").replace(".", "")


def key_maps(part: Part, format: Format, config: ModelConfig, use_ema: bool = False) -> list[KeyMap]:
    """One map for every tensor of a part in a file.

    Args:
        use_ema: name the averaged UNet of a CompVis file instead of the last one.
    """
    parameters = shapes(config)[part]
    own_column = format == "compvis" and (part != "text" or _openclip(config))
    stacked: dict[tuple[str, ...], list[str]] = {}
    convolutions: set[tuple[str, ...]] = set()
    for row in _WALKS[part](config):
        for leaf in ("", ".weight", ".bias"):
            if (key := row.ours + leaf) in parameters:
                spellings = [
                    cell.replace("*", leaf[1:]) if "*" in cell else cell + leaf
                    for cell in (row.compvis if own_column else row.diffusers).split("|")
                ]
                theirs = tuple(p + s for p in _prefixes(part, format, config) for s in spellings)
                stacked.setdefault(theirs, []).append(key)
                if format in row.convolution and len(parameters[key]) == 2:
                    convolutions.add(theirs)
    averaged = use_ema and part == "unet"
    return [
        KeyMap(
            ours=tuple(ours),
            theirs=tuple(map(_averaged, theirs)) if averaged else theirs,
            matrix=all(len(parameters[key]) == 2 for key in ours),
            convolution=theirs in convolutions,
        )
        for theirs, ours in stacked.items()
    ]


_WALKS: dict[Part, Callable[[ModelConfig], Iterator[Row]]] = {
    "unet": lambda config: unet(config.unet),
    "vae": lambda config: vae(config.vae),
    "text": lambda config: text(config.text),
}
_DIFFUSION = (
    "betas|alphas_cumprod(_prev)?|(sqrt_|sqrt_one_minus_|log_one_minus_|sqrt_recip_|sqrt_recipm1_)alphas_cumprod"
    "|posterior_(variance|log_variance_clipped|mean_coef1|mean_coef2)|lvlb_weights|logvar"
)


def leftovers(format: Format, config: ModelConfig, use_ema: bool = False) -> tuple[Leftover, ...]:
    """What checkpoints are known to hold beside the model that is read. Everything else unknown is an error."""
    position_ids = Leftover("text positions, a plain range", r"(.+\.)?embeddings\.position_ids")
    if format == "diffusers":
        return position_ids, Leftover("text projection, for CLIP's pooled output", r"text_projection\.weight")
    known = [
        position_ids,
        Leftover("counters of the average (EMA)", r"model_ema\.(decay|num_updates)"),
        Leftover("noise schedule of the training code", _DIFFUSION),
        Leftover("training of the autoencoder", r"first_stage_model\.(loss|model_ema)\..+"),
        Leftover("safety checker", r"safety_checker\..+"),
    ]
    if use_ema:
        known.append(Leftover("last UNet, beside the averaged one", r"model\.diffusion_model\..+"))
    else:
        known.append(Leftover("averaged UNet (EMA)", r"model_ema\.diffusion_model.+"))
    if _openclip(config):
        clip, last = r"cond_stage_model\.model\.", config.text.layers
        known += [
            Leftover(
                "OpenCLIP's last layer, behind the one that is read", rf"{clip}transformer\.resblocks\.{last}\..+"
            ),
            Leftover("OpenCLIP's contrastive head", rf"{clip}(text_projection|logit_scale|attn_mask)"),
        ]
    return tuple(known)
