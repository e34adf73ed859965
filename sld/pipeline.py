"""From prompts to pictures: encode, sample, decode. The only file that knows all the parts."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeGuard, TypeVar

import torch
from PIL import Image
from torch import Tensor

from sld import checkpoints, images
from sld.compiled import compiled_blocks, compiled_step
from sld.config import ModelConfig
from sld.guidance import DEFAULT_CONCEPT, Guidance, SLDConfig, guidance_for
from sld.models.layers import on_device
from sld.models.text import TextEncoder, Tokenizer
from sld.models.unet import UNet
from sld.models.vae import VAE
from sld.models.winograd import with_winograd
from sld.reuse import NO_REUSE, Reuse
from sld.rows import Phase, RowNetwork, Rows, Savings, count, plan
from sld.samplers import Level, Sampler, Schedule, make_sampler
from sld.state import SampleState
from sld.testbed.scenes import CONCEPT as EMBEDDED_CONCEPT

Space = Literal["raw", "eps"]
Step = Callable[..., tuple[Tensor, NamedTuple, NamedTuple]]
T = TypeVar("T")


def texts_of(
    guidance: Guidance[Any, Any, Any], prompts: Sequence[str], negative: Sequence[str], concept: Sequence[str]
) -> list[str]:
    """The texts (r * b) that a rule's rows have, condition by condition, for those of b images."""
    texts = {"uncond": negative, "text": prompts, "safety": concept}
    texts |= {condition: [text] * len(prompts) for condition, text in guidance.texts.items()}
    return [text for condition in guidance.conditions for text in texts[condition]]


def advance(
    guidance: Guidance[Any, Any, Any],
    sampler: Sampler,
    schedule: Schedule,
    space: Space,
    params: NamedTuple,
    i: Tensor,
    t: Tensor,
    a: Tensor,
    b: Tensor,
    x: Tensor,
    predictions: Tensor,
    guidance_state: NamedTuple,
    sampler_state: NamedTuple,
    noise: Tensor | None,
) -> tuple[Tensor, NamedTuple, NamedTuple]:
    """From the network's rows to the next latents: all that a step does beside the network, element by element.

    A function of tensors in one piece, so that a compiler makes one kernel of it.

    Args:
        guidance, params: the rule and its hyper-parameters.
        sampler, schedule, space: see `Pipeline.sample`.
        i: index of this evaluation, 0-d int64.
        t: its timestep, 0-d.
        a, b: alpha_bar there and at the next evaluation, 0-d.
        x: latents (b, c, h, w).
        predictions: the network's rows (r * b, c, h, w), condition by condition.
        guidance_state, sampler_state: what rule and sampler remember.
        noise: standard normal (b, c, h, w) for a stochastic sampler.

    Returns:
        The next latents (b, c, h, w) and the next states.
    """
    predicts_eps = schedule.prediction == "eps"
    noises = (
        predictions if predicts_eps else schedule.to_eps(predictions, x.repeat(len(guidance.conditions), 1, 1, 1), t)
    )
    rows = guidance.split(noises if space == "eps" else predictions)
    guided, guidance_state = guidance(rows, guidance_state, i, params)
    eps = guided if space == "eps" else schedule.to_eps(guided, x, t)
    y, sampler_state = sampler.step(i, x, eps, sampler_state, noise)
    guidance_state = guidance.moved(guidance.split(noises), guidance_state, i, x, y, Level.of(a), Level.of(b), params)
    return y, guidance_state, sampler_state


@dataclass(frozen=True)
class Pipeline:
    """A text-to-image model and everything that turns prompts into pictures with it.

    Attributes:
        config: what the parts are.
        unet, vae, text: the networks, in eval mode; they may be in half precision.
        tokenizer: the one the text encoder was trained with.
        schedule: the noise schedule the model was trained on.
        concept: the safety concept used where a call gives none.
        source: the checkpoint that the networks were loaded from, if they were.
        exact_batch: give an image the same bits in any batch. Convolution kernels treat a batch of one in their own
            way, so a single image is then computed as two equal ones, of which one is kept.
        savings: what is computed once instead of often; `NO_SAVINGS` of `sld.rows` computes everything in full.
        step: `advance`, or its compiled form.
        rows_at_once: compute no more rows of an image (conditions) in one call of the network; None for all of them.
        tile: side in pixels of the tiles in which pictures are decoded; None for whole pictures.
        kernels: what the networks are computed with where that is not torch's usual way, for records: "channels last",
            "winograd", "compiled (default)" or another mode.

    Raises:
        ValueError: rows_at_once or tile is too small.
    """

    config: ModelConfig
    unet: UNet = field(repr=False)
    vae: VAE = field(repr=False)
    text: TextEncoder = field(repr=False)
    tokenizer: Tokenizer = field(repr=False)
    schedule: Schedule = field(repr=False)
    concept: str = DEFAULT_CONCEPT
    source: checkpoints.Source | None = field(default=None, repr=False)
    exact_batch: bool = False
    savings: Savings = field(default=Savings(), repr=False)
    step: Step = field(default=advance, repr=False)
    rows_at_once: int | None = None
    tile: int | None = None
    kernels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.rows_at_once is not None and self.rows_at_once < 1:
            raise ValueError(f"rows_at_once must be at least 1, or None for all; got {self.rows_at_once}")
        factor = self.config.vae.factor
        if self.tile is not None and (self.tile % factor or self.tile < 4 * factor):
            raise ValueError(f"tile must be a multiple of {factor} from {4 * factor} on, or None; got {self.tile}")

    @property
    def device(self) -> torch.device:
        """Where the UNet and the latents are. Text encoder and VAE may wait elsewhere, and are copied here to work."""
        return self.unet.conv_in.weight.device

    @property
    def sha256(self) -> dict[str, str]:
        """Of the files the weights came from, by file name; recorded beside every picture."""
        return {} if self.source is None else self.source.sha256

    @property
    def unusual(self) -> dict[str, Any]:
        """Settings that change the last bits of a picture, by name, where they are not the default; for records."""
        settings = {"kernels": list(self.kernels), "rows_at_once": self.rows_at_once, "tile": self.tile}
        return {name: value for name, value in settings.items() if value}

    def __call__(
        self,
        prompts: str | Sequence[str],
        seeds: int | Sequence[int] = 0,
        *,
        safety: str | SLDConfig = "medium",
        guidance_scale: float | None = None,
        sampler: str | None = None,
        steps: int = 50,
        negative: str | Sequence[str] = "",
        concept: str | Sequence[str] | None = None,
        size: int | tuple[int, int] | None = None,
    ) -> list[Image.Image]:
        """Pictures for prompts, with everything by name; see `sample` for the arguments."""
        name = self.config.schedule.sampler if sampler is None else sampler
        *_, last = self.sample(
            prompts,
            seeds,
            sampler=make_sampler(name, self.schedule, steps),
            guidance=guidance_for(safety, guidance_scale),
            negative=negative,
            concept=concept,
            size=size,
        )
        return images.to_pil(self.decode(last.x))

    def sample(
        self,
        prompts: str | Sequence[str],
        seeds: int | Sequence[int] = 0,
        *,
        sampler: Sampler | None = None,
        guidance: Guidance[Any, Any, Any] | None = None,
        negative: str | Sequence[str] = "",
        concept: str | Sequence[str] | None = None,
        size: int | tuple[int, int] | None = None,
        space: Space = "raw",
        reuse: Reuse = NO_REUSE,
        noise: Tensor | None = None,
        state: SampleState | None = None,
    ) -> Iterator[SampleState]:
        """Sample a batch of b images. Every argument that may be given per image may be given once for all.

        Args:
            prompts: one, or one per image.
            seeds: one, or one per image, in [0, 2**64). An image's noise is torch.randn((1, c, h, w)) of a CPU
                generator with its seed, whatever the batch and the device, as in diffusers and the official code.
            sampler: the one that the checkpoint names, with 50 steps, if None: PNDM (51 evaluations) where it names
                none, DDIM for the embedded model.
            guidance: SLD's Medium if None.
            negative: takes the place of the empty text; one, or one per image.
            concept: the unsafe concept in words; one, or one per image; `self.concept` if None.
            size: of the pictures in pixels, one number or (height, width), multiples of the autoencoder's factor (8 in
                Stable Diffusion); the size the model was trained on if None.
            space: for a model that predicts v: guide v itself, as the reference does ("raw"), or the eps it stands for
                ("eps"). SLD's thresholds act on other numbers in the two.
            reuse: approximations that let evaluations take over what earlier ones have computed; none if not given.
            noise: (b, c, h, w) to start from, for parity with references that draw it for a whole batch.
            state: where to go on, from an earlier run with the same arguments.

        Returns:
            An iterator over the states: the one to start from, then one after each network evaluation. Leaving the
            loop early stops the run.

        Raises:
            ValueError: an argument is out of range, or lengths do not match.
        """
        usual = self.config.schedule.sampler
        sampler = (sampler or make_sampler(usual, self.schedule, 50)).to(self.device)
        guidance = guidance or guidance_for("medium")
        if space not in ("raw", "eps"):
            raise ValueError(f"space must be 'raw' (guide what the network predicts) or 'eps'; got {space!r}")
        concept = self.concept if concept is None else concept
        batch = _batch_size(prompts=prompts, seeds=seeds, negative=negative, concept=concept)
        if state is not None and len(state.x) != batch:
            raise ValueError(f"the state to go on from holds {len(state.x)} images, the arguments describe {batch}")
        if state is not None and not reuse.begins(state.i):
            at = max(i for i in range(state.i + 1) if reuse.begins(i))
            raise ValueError(
                f"evaluation {state.i} takes over what an earlier one has computed, which a state does not hold: go on "
                f"from evaluation {at}"
            )
        seeds = _checked_seeds(_spread(seeds, batch))
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        shape = (batch, self.config.unet.latent, *self._latent_size(size))
        rows = texts_of(guidance, _spread(prompts, batch), _spread(negative, batch), _spread(concept, batch))
        if state is None:
            if noise is None:
                noise = torch.cat([torch.randn((1, *shape[1:]), generator=g) for g in generators])
            elif noise.shape != shape:
                raise ValueError(f"noise must have shape {shape}; got {tuple(noise.shape)}")
            x, first = noise.to(self.device, copy=True), noise
            state = SampleState(0, x, guidance.init(x), sampler.init(x), _random(generators, sampler))
        elif state.x.shape != shape:
            raise ValueError(f"the state to go on from holds latents {tuple(state.x.shape)}, the size gives {shape}")
        else:
            first = state.x
            for generator, random in zip(generators, state.random, strict=True):
                if sampler.stochastic:
                    generator.set_state(random.clone())  # it reads from the start of the storage
        starts = [(seed, bytes(x)) for seed, x in zip(seeds, first.cpu().numpy(), strict=True)]
        phases = plan(guidance, rows, starts, len(sampler.timesteps), self.savings, self.rows_at_once, reuse)
        return self._run(state, sampler, guidance, self._encode(rows), phases, generators, space, reuse)

    def compile(self, **options: Any) -> Pipeline:
        """This pipeline with compiled parts: the UNet's repeated blocks, and all of a step beside the network.

        Nothing is compiled before the first picture. Blocks of equal shapes share one compiled form: SD 1.5's 38 blocks
        are 21 graphs. On a CPU their first call still costs what that of the whole network in one graph does (117 and
        118 s of processor time); most of it is the C++ compiler's. The first other batch and the first other size
        compile each form once more, with that dimension free, and the first other number of steps that of a step; after
        that any will do, but a batch of one latent or row, which the compiler sets apart. This pipeline and its
        networks stay as they are; weights are shared.

        Args:
            options: of torch.compile, such as mode="reduce-overhead", with which CUDA graphs are replayed, one for each
                shape: keep to one batch and one size.
        """
        return replace(
            self,
            unet=compiled_blocks(self.unet, **options),
            step=compiled_step(self.step, **options),
            kernels=(*self.kernels, f"compiled ({options.get('mode') or 'default'})"),
        )

    def winograd(self) -> Pipeline:
        """This pipeline with Winograd's form of the UNet's wide 3x3 convolutions, which a CPU computes faster.

        The same sums in another order. At SD 1.5's widths docs/performance.md has a step at 1.3 times the speed for 1.6
        GB more of memory; the embedded model's convolutions are too narrow and stay as they are. Goes with `compile`,
        before it. This pipeline and its networks stay as they are.

        Raises:
            ValueError: the UNet is in half precision.
        """
        return replace(self, unet=with_winograd(self.unet), kernels=(*self.kernels, "winograd"))

    def network_rows(self, guidance: Guidance[Any, Any, Any], evaluations: int, batch: int = 1) -> Rows:
        """Rows of the network in a run of b images that share nothing: what the rule asks for, and what is computed.

        The second is less where rows are idle, and twice as much where `exact_batch` doubles a single image.
        """
        texts = [f"{condition} {k}" for condition in guidance.conditions for k in range(batch)]
        phases = plan(guidance, texts, range(batch), evaluations, self.savings, self.rows_at_once)
        return count(phases, exact_batch=self.exact_batch)

    def _run(
        self,
        state: SampleState,
        sampler: Sampler,
        guidance: Guidance[Any, Any, Any],
        text: Tensor,
        phases: tuple[Phase, ...],
        generators: list[torch.Generator],
        space: Space,
        reuse: Reuse,
    ) -> Iterator[SampleState]:
        n = len(sampler.timesteps)
        timesteps, order = torch.tensor(sampler.timesteps, device=self.device), torch.arange(n, device=self.device)
        alpha_bar = self.schedule.interpolated(timesteps).float()
        params = guidance.params(n, len(state.x), self.device)
        network = RowNetwork(
            unet=self.unet,
            text=text,
            timesteps=timesteps,
            phases=phases,
            savings=self.savings,
            exact_batch=self.exact_batch,
            reuse=reuse,
        )
        yield state
        for i, predict in network.evaluations(state.i):
            with torch.no_grad():
                x, guidance_state, sampler_state = self.step(
                    guidance,
                    sampler,
                    self.schedule,
                    space,
                    params,
                    order[i],
                    timesteps[i],
                    alpha_bar[i],
                    alpha_bar[min(i + 1, n - 1)],
                    state.x,
                    predict(state.x),
                    state.guidance,
                    state.sampler,
                    _noise(state.x, generators) if sampler.stochastic else None,
                )
            state = SampleState(i + 1, x, guidance_state, sampler_state, _random(generators, sampler))
            yield state

    @torch.no_grad()
    def _encode(self, texts: list[str]) -> Tensor:
        """Features (n, l, d) of texts, in their order."""
        distinct = list(dict.fromkeys(texts))
        for text in distinct:
            if cut := self.tokenizer.cut(text):
                warnings.warn(
                    f"the text is longer than {self.config.text.tokens} tokens; its end is left out: {cut!r}",
                    stacklevel=3,
                )
        encoder = on_device(self.text, self.device)
        if not self.savings.text_once:
            return encoder(self.tokenizer(texts).to(self.device))
        features = encoder(self.tokenizer(distinct).to(self.device))
        return features[[distinct.index(text) for text in texts]]

    def _latent_size(self, size: int | tuple[int, int] | None) -> tuple[int, int]:
        size = self.config.size if size is None else size
        height, width = (size, size) if isinstance(size, int) else size
        factor = self.config.vae.factor
        for side in (height, width):
            if not isinstance(side, int) or side <= 0 or side % factor:
                near = max(factor, round(side / factor) * factor) if isinstance(side, int) else self.config.size
                raise ValueError(f"a picture's sides must be positive multiples of {factor}; got {side} (try {near})")
        return height // factor, width // factor

    @torch.no_grad()
    def decode(self, x: Tensor) -> Tensor:
        """Pictures (b, 3, H, W), about [-1, 1], of latents (b, c, h, w).

        One by one: the same bits in any batch, and the memory of one picture, or of one tile.
        """
        vae = on_device(self.vae, self.device)
        if self.tile is None:
            return torch.cat([vae.decode(latent[None]) for latent in x])
        tile = self.tile // self.config.vae.factor
        return torch.cat([vae.decode_tiles(latent[None], tile) for latent in x])


def load(
    path: str | Path | None = None,
    config: ModelConfig | str | None = None,
    *,
    dtype: torch.dtype | None = torch.float32,
    device: torch.device | str = "cpu",
    tokenizer: str | Path | None = None,
    use_ema: bool = False,
    exact_batch: bool = False,
    channels_last: bool | None = None,
    offload: bool = False,
) -> Pipeline:
    """A pipeline from a checkpoint.

    Args:
        path: a CompVis single file or a diffusers folder; None for the embedded model.
        config: what the checkpoint is, or a name in `sld.config.CONFIGS`, where the file does not tell: SD 2's
            weights, for example, do not say whether they predict eps or v.
        dtype: of the networks' weights; None keeps that of the file. Latents are float32 always.
        device: where everything runs.
        tokenizer: a folder with vocab.json and merges.txt; None takes the checkpoint's own, or CLIP's from the hub or
            its cache.
        use_ema: take the averaged weights of a CompVis file that has them.
        exact_batch: see `Pipeline`.
        channels_last: keep convolutions in the layout with channels innermost, which changes last bits. None: on CUDA,
            whose tensor cores ask for it. On CPUs blocks of Stable Diffusion's widths gain and lose by turns (0.90 to
            1.07 of the speed, one AVX2 core, float32).
        offload: leave text encoder and autoencoder in the CPU's memory, and copy them to the device while they work.

    Raises:
        CheckpointError: the file is not what it should be; says all that is wrong.
        ValueError: there is no tokenizer; says how to get one.
    """
    device = torch.device(device)
    parts = checkpoints.load(
        embedded_checkpoint() if path is None else path,
        config,
        dtype=dtype,
        device="cpu" if offload else device,
        use_ema=use_ema,
    )
    parts.unet.to(device)
    channels_last = device.type == "cuda" if channels_last is None else channels_last
    if channels_last:
        for network in (parts.unet, parts.vae):
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Pipeline(
        config=parts.config,
        unet=parts.unet,
        vae=parts.vae,
        text=parts.text,
        tokenizer=Tokenizer.load(tokenizer or parts.tokenizer_folder, parts.config.text),
        schedule=Schedule.from_config(parts.config.schedule).to(device),
        concept=EMBEDDED_CONCEPT if path is None else DEFAULT_CONCEPT,
        source=parts.source,
        exact_batch=exact_batch,
        kernels=("channels last",) if channels_last else (),
    )


def embedded_checkpoint() -> Path:
    """The embedded model's file: inside the package where that was built, beside it in a checkout."""
    package = Path(__file__).parent
    return next(
        (path for folder in (package, package.parent) if (path := folder / "weights" / "mini.safetensors").exists()),
        package.parent / "weights" / "mini.safetensors",
    )


def _batch_size(**arguments: str | int | Sequence[str] | Sequence[int]) -> int:
    """The number of images that arguments given once or per image describe."""
    lengths = {name: len(v) for name, v in arguments.items() if _per_image(v)}
    if len(set(lengths.values())) > 1 or 0 in lengths.values():
        given = ", ".join(f"{n} {name}" for name, n in lengths.items())
        raise ValueError(f"arguments given per image must be as many as there are images; got {given}")
    return next(iter(lengths.values()), 1)


def _per_image(value: T | Sequence[T]) -> TypeGuard[Sequence[T]]:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _spread(value: T | Sequence[T], batch: int) -> list[T]:
    """One value per image, of an argument given once or per image."""
    return list(value) if _per_image(value) else [value] * batch  # type: ignore[list-item]


def _checked_seeds(seeds: list[int]) -> list[int]:
    for seed in seeds:
        if not isinstance(seed, int) or not 0 <= seed < 2**64:
            raise ValueError(f"a seed must be a whole number in [0, 2**64); got {seed!r}")
    return seeds


def _noise(x: Tensor, generators: list[torch.Generator]) -> Tensor:
    return torch.cat([torch.randn((1, *x.shape[1:]), generator=g) for g in generators]).to(x.device)


def _random(generators: list[torch.Generator], sampler: Sampler) -> Tensor:
    if not sampler.stochastic:
        return torch.empty(len(generators), 0, dtype=torch.uint8)
    return torch.stack([g.get_state() for g in generators])
