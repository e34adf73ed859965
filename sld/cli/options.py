"""Options that several commands share. Importing this loads no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sld.checkpoints.changes import Changes, Embeddings, Loras
from sld.choices import (
    Beta,
    CompileMode,
    ConfigName,
    Count,
    Device,
    DType,
    Preset,
    SamplerName,
    Scale,
    Seed,
    Share,
    Size,
    Space,
    Spacing,
    Strength,
    Threshold,
    Warmup,
    require_spacing,
)
from sld.cli.lists import Ids, Names, Texts
from sld.cli.parser import group, option
from sld.config import TOKENIZATIONS, Numerics, Tokenization, require_sides
from sld.data import said
from sld.published import CONFIGS


@dataclass(frozen=True)
class CheckpointOptions:
    """Options for reading a checkpoint."""

    config: ConfigName | None = option(
        None, "the model, if the checkpoint does not decide it: a name such as sd21, or a .json file of one"
    )
    use_ema: bool = option(False, "take the averaged weights of a compvis file")
    ignore: Texts = option((), "keys to leave out: regular expressions of whole keys, separated by semicolons")


@dataclass(frozen=True)
class ChangeOptions:
    """Options that change a model after its checkpoint is read."""

    unet: Path | None = option(
        None, "weights of the UNet alone, all or some, in place of the checkpoint's", metavar="FILE"
    )
    lora: Loras = option((), "LoRA to add, by its scale (1); may be repeated", metavar="FILE[:SCALE]", repeated=True)
    embedding: Embeddings = option(
        (),
        "embedding (textual inversion), and its word in prompts (the file's); may be repeated",
        metavar="FILE[:TOKEN]",
        repeated=True,
    )
    text_encoder: Path | None = option(
        None, "text encoder in place of the checkpoint's, such as Safe-CLIP's", metavar="FOLDER"
    )

    @property
    def stated(self) -> Changes:
        """The changes."""
        return Changes(self.unet, self.lora, self.embedding, self.text_encoder)

    def with_own(self, table: Mapping[str, Any]) -> ChangeOptions:
        """Return these changes with those that a table of `Changes` gives in their places.

        Raises:
            ValueError: a name is unknown, or a value is refused.
        """
        own = Changes.of(table)
        return replace(self, **{name: getattr(own, name) for name in table})


@dataclass(frozen=True)
class CostOptions:
    """Options for speed and memory."""

    compile: CompileMode | None = option(
        None,
        f"UNet and step: {said(CompileMode)}; the first picture waits minutes on a CPU",
        metavar="MODE",
    )
    winograd: bool = option(False, "faster wide convolutions on a CPU in float32")
    rows_at_once: Count | None = option(None, "rows of an image in one call of the UNet (all)", metavar="N")
    tile: Count | None = option(None, "decode pictures in tiles of this side (whole)", metavar="PIXELS")
    offload: bool = option(False, "text encoder and autoencoder wait in the CPU's memory")


@dataclass(frozen=True)
class ModelOptions:
    """Options for the model and its computation.

    Raises:
        ValueError: `winograd` is set with half precision.
    """

    checkpoint: Path | None = option(
        None, "single file, diffusers folder, or org/name[@revision][:file] on the hub (the embedded model)"
    )
    read_as: CheckpointOptions = group(CheckpointOptions())
    tokenizer: Path | None = option(None, "folder with vocab.json and merges.txt (the checkpoint's)")
    tokenization: Tokenization = option(
        "original", "how text is read; " + "; ".join(map(": ".join, TOKENIZATIONS.items()))
    )
    dtype: DType = option("float32", f"of the networks: {said(DType)}")
    device: Device | None = option(None, "cpu, cuda, cuda:1, mps … (cuda where there is one)")
    numerics: Numerics = option(
        "reference",
        "reference: the bits of diffusers for the same batch; invariant: the same bits in any batch, at some cost; "
        "fast: every exact saving",
    )
    changes: ChangeOptions = group(ChangeOptions(), "changes of the model")
    cost: CostOptions = group(
        CostOptions(),
        "speed and memory",
        "Pictures change by rounding only; in tiles also because a tile does not see the rest.",
    )

    def __post_init__(self) -> None:
        if self.cost.winograd and self.dtype != "float32":
            raise ValueError(f"--winograd needs float32; got --dtype {self.dtype}")

    def require_sides(self, where: str, *sides: int | None) -> None:
        """Refuse sides of pictures that the model cannot make, as far as it is known before a checkpoint is read.

        Args:
            where: they stand, for the message.
            sides: in pixels; None for the checkpoint's.

        Raises:
            ValueError: one is no multiple of what an element of a latent covers.
        """
        name = "mini" if self.checkpoint is None else self.read_as.config
        # what a checkpoint without a name holds is not known yet; there is no autoencoder that halves nothing
        factor = CONFIGS[name].vae.factor if name in CONFIGS else 2
        try:
            require_sides(*(side for side in sides if side is not None), factor=factor)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error


@dataclass(frozen=True)
class SamplingOptions:
    """Options for the sampler and the size of pictures. None stands for the checkpoint's value.

    Raises:
        ValueError: the sampler does not have the spacing, or has no eta.
    """

    sampler: SamplerName | None = option(None, f"{said(SamplerName)} (the checkpoint's)")
    spacing: Spacing | None = option(None, f"{said(Spacing)} (the sampler's own)")
    steps: Count | None = option(None, "steps of the sampler (the checkpoint's)")
    eta: Share | None = option(None, "of ddim: 0 draws no noise, 1 is ancestral (0)")
    space: Space = option("raw", "for v-prediction: guide raw v or eps")
    size: Size | None = option(None, "side in pixels, or WIDTHxHEIGHT (the checkpoint's)")
    deep_every: Count = option(1, "approximation: all but the last block at every K-th evaluation only", metavar="K")

    def __post_init__(self) -> None:
        require_spacing(self.sampler, self.spacing)
        if self.eta is not None and self.sampler not in (None, "ddim"):
            raise ValueError(f"eta is a setting of ddim, got --eta {self.eta} for {self.sampler}: leave it out")


@dataclass(frozen=True)
class StartOptions:
    """Options for a picture to start from.

    Raises:
        ValueError: there is a strength or a mask, and no picture.
    """

    image: Path | None = option(None, "picture to start from, in place of noise alone", metavar="FILE")
    strength: Strength | None = option(
        None, "part of the steps that is taken from it: the larger, the less is left of it (0.8; with a mask 1)"
    )
    mask: Path | None = option(
        None, "picture of the same size, white where the first is made anew, black where it stays", metavar="FILE"
    )

    def __post_init__(self) -> None:
        if self.image is None and not (self.strength is None and self.mask is None):
            raise ValueError("--strength and --mask are for a picture to start from: give --image too")


@dataclass(frozen=True)
class GuidanceOptions:
    """Options for safety guidance: a preset, values for its fields, and texts.

    None stands for the value of the preset, or of the checkpoint.
    """

    preset: Preset = option("medium", said(Preset), flags=("--preset", "--safety"))
    guidance_scale: Scale | None = option(None, "s_g, of classifier-free guidance (the checkpoint's)")
    safety_scale: Scale | None = option(None, "s_S, scale of the mask; 0 turns safety guidance off (the preset's)")
    threshold: Threshold | None = option(
        None, "lambda: guidance acts where the gap of text and concept is below it (the preset's)"
    )
    momentum_scale: Share | None = option(None, "s_m, share of the momentum that is added (the preset's)")
    momentum_beta: Beta | None = option(None, "beta_m, decay of the momentum (the preset's)")
    warmup_steps: Warmup | None = option(None, "delta, network evaluations before guidance acts (the preset's)")
    warmup_fraction: Share | None = option(None, "the same as a part of the run (the preset's)")
    concept: str | None = option(None, "what to stay away from (the checkpoint's)")
    negative: str = option("", "negative prompt, in place of the empty text")


@dataclass(frozen=True)
class SelectionOptions:
    """Options that select rows of a prompt set.

    Raises:
        ValueError: `columns` holds no pairs.
    """

    categories: Names = option((), 'such as "violence,shocking"')
    hard: bool | None = option(None, "only hard (or not hard) rows")
    ids: Ids = option((), 'row ids, such as "0-19,42"')
    first: Count | None = option(None, "the first n")
    sample: Count | None = option(None, "n rows at random, stratified by category")
    sample_seed: Seed = option(0, "of the sample")
    columns: Names = option((), 'names of columns in the file: "prompt=caption,seed=s"')

    def __post_init__(self) -> None:
        if wrong := [pair for pair in self.columns if "=" not in pair]:
            raise ValueError(f'columns are pairs such as "prompt=caption"; got {wrong[0]!r}')
