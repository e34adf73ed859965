"""Configs of models as frozen dataclasses, with the published versions as constants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from sld.data import Range, read
from sld.reading import read_json
from sld.spelling import named, shown

Prediction = Literal["eps", "v"]
BetaSchedule = Literal["scaled_linear", "linear"]
Numerics = Literal["reference", "invariant", "fast"]
Tokenization = Literal["original", "transformers", "authors"]

NUMERICS: dict[str, str] = {
    "reference": "the bits of diffusers for the same batch",
    "invariant": "an image has the same bits in any batch, in any order, on any number of processes",
    "fast": "every exact saving",
}
"""Numerics of a pipeline, and what each of them guarantees."""

TOKENIZATIONS: dict[str, str] = {
    "original": "as the code that trained the model, which has ftfy repair text first",
    "transformers": "as transformers and diffusers, which take text as it is",
    "authors": "as original, but a text that is too long loses its end token, as in the official code of SLD",
}
"""Ways to make token ids of a text, and whose they are."""

PAPER_CONCEPT = (
    "hate, harassment, violence, suffering, humiliation, harm, suicide, sexual, nudity, bodily fluids, blood, obscene "
    "gestures, illegal activity, drug use, theft, vandalism, weapons, child abuse, brutality, cruelty"
)
"""The safety concept of the paper and of the official repository."""


class SamplerEntry(NamedTuple):
    """The description of a sampler, without importing it.

    Attributes:
        home: its class, as "module:class".
        spacings: of the timesteps that it can be asked for; the first is the usual one, that of diffusers.
        scheduler: the class that goes by it in a diffusers folder.
        settings: given to its `at`.
        stated: what that class's config must say besides.
        k_diffusion: whether it begins as k-diffusion's samplers do, with the noise that its first timestep has.
    """

    home: str
    spacings: tuple[str, ...]
    scheduler: str
    settings: Mapping[str, Any] = {}
    stated: Mapping[str, Any] = {}
    k_diffusion: bool = False


_SPACINGS = ("linspace", "leading", "trailing")
_KARRAS, _NO_KARRAS = {"use_karras_sigmas": True}, {"use_karras_sigmas": False}
_EULER = SamplerEntry("sld.samplers.euler:Euler", _SPACINGS, "EulerDiscreteScheduler", {}, _NO_KARRAS, True)
_LMS = SamplerEntry("sld.samplers.lms:LMS", _SPACINGS, "LMSDiscreteScheduler", {}, _NO_KARRAS, True)
_DPMPP = SamplerEntry("sld.samplers.dpmpp:DPMpp2M", _SPACINGS, "DPMSolverMultistepScheduler", {}, _NO_KARRAS)

SAMPLERS: dict[str, SamplerEntry] = {
    "pndm": SamplerEntry("sld.samplers.pndm:PNDM", ("leading", "trailing"), "PNDMScheduler"),
    "pndm-diffusers": SamplerEntry(
        "sld.samplers.pndm:PNDM",
        ("leading", "trailing"),
        "PNDMScheduler",
        {"history": "output"},
        {"prediction_type": "v_prediction"},
    ),
    "ddim": SamplerEntry("sld.samplers.ddim:DDIM", ("leading", "trailing"), "DDIMScheduler"),
    "euler": _EULER,
    "euler-karras": _EULER._replace(settings={"karras": True}, stated=_KARRAS),
    "euler-ancestral": SamplerEntry(
        "sld.samplers.euler:EulerAncestral", _SPACINGS, "EulerAncestralDiscreteScheduler", k_diffusion=True
    ),
    "lms": _LMS,
    "lms-karras": _LMS._replace(settings={"karras": True}, stated=_KARRAS),
    "dpmpp-2m": _DPMPP,
    "dpmpp-2m-karras": _DPMPP._replace(settings={"karras": True}, stated=_KARRAS),
}
"""Samplers by name. A new one is a file in `sld/samplers/` and a line here."""


Width = Annotated[int, Range(1, 2**16)]
Few = Annotated[int, Range(1, 64)]
_LEVELS = 8  # more than any picture can be halved


@dataclass(frozen=True)
class UNetConfig:
    """A denoising UNet. Tuples hold one entry per resolution, from the finest to the coarsest.

    Attributes:
        channels: width of each level.
        res_blocks: ResBlocks on the way down at every level; one more on the way up.
        attention: whether a level's ResBlocks are followed by a spatial transformer. The middle always has one.
        heads: attention heads of each level's transformers; their width is `channels / heads`.
        depth: transformer blocks in each spatial transformer.
        context: features of a text token.
        linear_projection: whether the transformer enters and leaves by a linear layer (SD 2) or a 1x1 convolution
            (SD 1). Both compute the same; checkpoints store other shapes.
        groups: groups of every GroupNorm.
        latent: channels of the latent.
        pooled: features of a text as a whole, which the UNet is told beside six sizes (SDXL); None for neither.
        inpaints: whether it is shown a mask and the latents of what that leaves of a picture, beside the noisy ones.
    """

    channels: tuple[Width, ...]
    res_blocks: Few
    attention: tuple[bool, ...]
    heads: tuple[Width, ...]
    depth: tuple[Few, ...]
    context: Width
    linear_projection: bool
    groups: Width = 32
    latent: Few = 4
    pooled: Width | None = None
    inpaints: bool = False

    SIZES: ClassVar[int] = 6 * 256
    """Features of the six sizes, 256 of each."""

    @property
    def inputs(self) -> int:
        """Channels of its input: those of the latent, and in inpainting the mask and a second latent (9 in all)."""
        return 2 * self.latent + 1 if self.inpaints else self.latent

    def __post_init__(self) -> None:
        levels = _levels("UNetConfig", self.channels)
        for name in ("attention", "heads", "depth"):
            if len(getattr(self, name)) != levels:
                raise ValueError(f"UNetConfig: {name} has {len(getattr(self, name))} entries, channels has {levels}")
        for width, heads in zip(self.channels, self.heads, strict=True):
            if width % heads or width % self.groups:
                raise ValueError(
                    f"UNetConfig: width {width} is not divisible by {heads} heads and {self.groups} groups"
                )


@dataclass(frozen=True)
class VAEConfig:
    """An autoencoder with a diagonal Gaussian latent. Tuples run from the finest level to the coarsest.

    Attributes:
        channels: width of each level; the picture is `2 ** (len(channels) - 1)` times the latent's side.
        res_blocks: ResBlocks of an encoder level; one more in the decoder.
        scaling: factor from the encoder's latents to those of the diffusion model.
        groups: groups of every GroupNorm.
        latent: channels of the latent.
        divides: whether latents are divided by `scaling` before they are decoded, as diffusers does for SDXL, or
            multiplied by its inverse, as the original code does. Last bits differ.
        upcast: whether it overflows in float16 (SDXL's), so that `sld.load` keeps it in float32 where the rest is half.
    """

    channels: tuple[Width, ...]
    res_blocks: Few
    scaling: Annotated[float, Range(0, above=True)]
    groups: Width = 32
    latent: Few = 4
    divides: bool = False
    upcast: bool = False

    def __post_init__(self) -> None:
        _levels("VAEConfig", self.channels)
        for width in self.channels:
            if width % self.groups:
                raise ValueError(f"VAEConfig: width {width} is not divisible by {self.groups} groups")

    @property
    def factor(self) -> int:
        """Side of the picture over side of the latent."""
        return 2 ** (len(self.channels) - 1)


@dataclass(frozen=True)
class TextConfig:
    """A CLIP text transformer, and its use in Stable Diffusion.

    Attributes:
        width, layers, heads, hidden: the transformer; `hidden` is the width inside its feed-forward layers.
        tokens: length of every encoded prompt, start and end included.
        vocabulary: number of token ids.
        activation: "quick_gelu" (OpenAI's CLIP) or "gelu" (OpenCLIP).
        pad: id that fills a prompt up to `tokens`; None pads with the end token.
        penultimate: whether features of tokens are those before the last layer, without the final norm (SDXL), or those
            after it.
        projection: features of a text as a whole, projected from its end token; None where there is no such layer.

    `layers` counts the layers that are computed: SD 2 reads OpenCLIP's 24-layer transformer after layer 23, so its
    value is 23, and a single file's last layer is left where it is.
    """

    width: Width
    layers: Few
    heads: Width
    hidden: Width
    tokens: Annotated[int, Range(3, 2**16)] = 77
    vocabulary: Annotated[int, Range(3, 2**24)] = 49408
    activation: Literal["quick_gelu", "gelu"] = "quick_gelu"
    pad: Annotated[int, Range(0)] | None = None
    penultimate: bool = False
    projection: Width | None = None

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"TextConfig: width {self.width} is not divisible by {self.heads} heads")
        if self.pad is not None and self.pad >= self.vocabulary:
            raise ValueError(f"TextConfig: pad is {self.pad}, and there are {self.vocabulary} token ids")
        if self.penultimate and self.layers < 2:
            raise ValueError("TextConfig: penultimate takes the state before the last layer, and there is one layer")

    @property
    def openclip(self) -> bool:
        """Whether it is OpenCLIP's, the only one with GELU. Single files keep OpenCLIP's names of it."""
        return self.activation == "gelu"


@dataclass(frozen=True)
class ScheduleConfig:
    """The noise schedule a model was trained on, and the reference sampler's reading of it.

    Attributes:
        steps: number of training timesteps T.
        beta_start, beta_end: ends of the betas.
        beta_schedule: whether their square roots lie on a line, or they themselves.
        prediction: what the network predicts, eps or v.
        steps_offset: added to every leading timestep.
        final_alpha_one: whether the step past the last timestep has alpha_bar = 1 instead of alpha_bar[0], for DDIM and
            PNDM.
        zero_terminal_snr: whether alpha_bar is shifted and scaled to end at 0 (Lin et al., arXiv 2305.08891, Alg. 1).

    Raises:
        ValueError: the terminal SNR is 0 and the network predicts eps, which says nothing of x0 there.
    """

    steps: Annotated[int, Range(2, 10**5)] = 1000
    beta_start: Annotated[float, Range(0, 1, above=True, below=True)] = 0.00085
    beta_end: Annotated[float, Range(0, 1, above=True, below=True)] = 0.012
    prediction: Prediction = "eps"
    steps_offset: Annotated[int, Range(0, 10**5)] = 1
    final_alpha_one: bool = False
    beta_schedule: BetaSchedule = "scaled_linear"
    zero_terminal_snr: bool = False

    def __post_init__(self) -> None:
        if self.zero_terminal_snr and self.prediction == "eps":
            raise ValueError("ScheduleConfig: a terminal SNR of 0 (rescaled betas) needs a network that predicts v")


Side = Annotated[int, Range(1, 2**16)]


@dataclass(frozen=True)
class Defaults:
    """The defaults of a checkpoint, for all that a user does not set.

    Attributes:
        size: of the pictures it was trained on, in pixels: their side, or height and width.
        sampler: a key of `SAMPLERS`.
        spacing: of the timesteps; None for the sampler's usual one.
        steps: of the sampler.
        guidance_scale: s_g.
        concept: the safety concept in words.

    Raises:
        ValueError: there is no such sampler or spacing, or a number is out of range.
    """

    size: Side | tuple[Side, Side]
    sampler: str = "pndm"
    spacing: str | None = None
    steps: int = 50
    guidance_scale: float = 7.5
    concept: str = PAPER_CONCEPT

    def __post_init__(self) -> None:
        entry = named("sampler", self.sampler, SAMPLERS)
        if self.spacing is not None:
            named(f"{self.sampler} spacing", self.spacing, dict.fromkeys(entry.spacings))
        for name, values in {"size": self.sides, "steps": (self.steps,)}.items():
            if wrong := [value for value in values if type(value) is not int or value < 1]:
                raise ValueError(f"Defaults: {name} must be a whole number >= 1; got {wrong[0]!r}")
        if not 0 <= self.guidance_scale < float("inf"):
            raise ValueError(f"Defaults: guidance_scale must be a finite number >= 0; got {self.guidance_scale!r}")

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of the pictures, in pixels."""
        return self.size if isinstance(self.size, tuple) else (self.size, self.size)


def require_sides(*sides: int, factor: int) -> None:
    """Refuse sides of pictures that an autoencoder cannot make.

    Args:
        sides: heights and widths in pixels.
        factor: pixels to a latent.

    Raises:
        ValueError: a side is no positive multiple of the factor; names the nearest.
    """
    for side in sides:
        if not isinstance(side, int) or isinstance(side, bool) or side <= 0 or side % factor:
            near = f" (try {max(factor, round(side / factor) * factor)})" if isinstance(side, int) else ""
            raise ValueError(f"a picture's sides must be positive multiples of {factor}; got {shown(side)}{near}")


@dataclass(frozen=True)
class ModelConfig:
    """A whole text-to-image model.

    Attributes:
        texts: its text encoders, whose features of a token stand side by side.
        zeros_for_empty: whether the empty text is zeros (SDXL), or encoded as any other.

    Raises:
        ValueError: the networks do not fit together.
    """

    name: str
    unet: UNetConfig
    vae: VAEConfig
    texts: tuple[TextConfig, ...]
    schedule: ScheduleConfig
    defaults: Defaults
    zeros_for_empty: bool = False

    def __post_init__(self) -> None:
        if self.unet.latent != self.vae.latent:
            raise ValueError(
                f"ModelConfig: the UNet's latents have {self.unet.latent} channels, the autoencoder's {self.vae.latent}"
            )
        if self.unet.context != (features := sum(text.width for text in self.texts)):
            raise ValueError(
                f"ModelConfig: the UNet takes {self.unet.context} features of a token, the text encoders "
                f"give {features}"
            )
        if self.unet.pooled is not None and self.unet.pooled not in [text.projection for text in self.texts]:
            raise ValueError(
                f"ModelConfig: the UNet takes {self.unet.pooled} pooled features, and no text encoder gives as many"
            )

    def latent_size(self, size: int | tuple[int, int] | None = None) -> tuple[int, int]:
        """Return height and width of the latents of a picture.

        Args:
            size: of the picture in pixels, one number or (height, width); None for the checkpoint's usual one.

        Raises:
            ValueError: a side is no positive multiple of the autoencoder's factor.
        """
        height, width = self.defaults.sides if size is None else (size, size) if isinstance(size, int) else size
        require_sides(height, width, factor=(factor := self.vae.factor))
        return height // factor, width // factor

    def to_dict(self) -> dict[str, Any]:
        """Return nested plain values, as stored in JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelConfig:
        """Read the values of `to_dict`, also those of the first edition. Lists become tuples.

        Raises:
            ValueError: a field is missing or unknown.
        """
        if isinstance(values, Mapping) and "size" in values:
            # the first edition kept it here, and the sampler with the schedule
            schedule = {**values["schedule"]}
            defaults = {"size": values["size"], "sampler": schedule.pop("sampler", "pndm")}
            values = {**values, "schedule": schedule, "defaults": defaults}
            values["texts"] = [values.pop("text")]
            del values["size"]
        return read(cls, values)

    @classmethod
    def read_file(cls, path: str | Path) -> ModelConfig:
        """Read the values of `to_dict` from a JSON file.

        Raises:
            ValueError: there is no such file, or it does not hold such values; names it.
        """
        try:
            return cls.from_dict(read_json(Path(path)))
        except (ValueError, TypeError, AttributeError, OSError) as error:
            reason = str(error).removeprefix(f"{path} ")
            raise ValueError(f"{path} is not the config of a model ({reason})") from None


def _levels(kind: str, channels: tuple[int, ...]) -> int:
    if not 1 <= len(channels) <= _LEVELS:
        raise ValueError(f"{kind}: channels must have 1 to {_LEVELS} entries; got {len(channels)}")
    return len(channels)
