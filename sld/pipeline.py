"""From prompts to pictures: encode, sample, decode. The only file that knows all the parts."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from sld import checkpoints, images
from sld.arguments import batch_size, spread
from sld.config import NUMERICS, ModelConfig, Numerics
from sld.finite import require_finite
from sld.guidance import Guidance, SLDConfig, guidance_for
from sld.image_to_image import Beginning, Pictures, Start, begin, read_start
from sld.models.denoiser import Cond, Denoiser
from sld.models.text import TextEncoder, Tokenizer
from sld.models.vae import VAE
from sld.noise import Noise
from sld.samplers import Level, Sampler, Schedule, make_sampler
from sld.speed.compiled import compiled_blocks, compiled_step
from sld.speed.keys import KeyedUNet, own_unet
from sld.speed.reuse import NO_REUSE, Reuse
from sld.speed.rows import RowNetwork, Rows, plan, rows_of_run
from sld.speed.tiles import decode_tiles
from sld.speed.weights import on_device
from sld.speed.winograd import with_winograd
from sld.spelling import named
from sld.state import SampleState
from sld.step import Space, Step, advance

Evaluations = Iterator[tuple[int, Callable[[Tensor], Tensor]]]
"""Evaluations of a run, each with the function from latents (b, c, h, w) to predictions (r * b, c, h, w)."""

Between = Callable[[SampleState, Level], Tensor]
"""(state after an evaluation, level of its x) -> the x to go on with, (b, c, h, w)."""


@dataclass(frozen=True)
class Pipeline:
    """A text-to-image model and everything that turns prompts into pictures with it.

    To call the network by hand, `pipe.unet(x, t, pipe.encode(texts))` is all there is to it.

    Attributes:
        config: what the parts are.
        unet: the network; ours, or any other `Denoiser`. Networks are in eval mode, and may be in half precision.
        vae: the autoencoder.
        texts: the text encoders, whose features of a token stand side by side.
        tokenizers: the ones the text encoders were trained with.
        schedule: the noise schedule the model was trained on.
        source: the checkpoint that the networks were loaded from, if they were.
        numerics: how numbers are made. "reference": rows and texts are computed as diffusers computes them, for the
            same bits in the same batch. "invariant": an image has the same bits in any batch. "fast": every exact
            saving. The last two take our UNet apart (`sld.speed`), and differ from the first by rounding.
        step: `advance`, or its compiled form.
        rows_at_once: compute no more rows of an image (conditions) in one call of the network; None for all of them.
        tile: side in pixels of the tiles in which pictures are decoded; None for whole pictures.
        kernels: what the networks are computed with where that is not torch's usual way, for records: "channels last",
            "winograd", "compiled (default)" or another mode.
        compiling: options of torch.compile for networks that are made of `unet`, where it is compiled.

    Raises:
        ValueError: numerics are unknown, or need our own UNet and there is another; rows_at_once or tile is too small.
    """

    config: ModelConfig
    unet: Denoiser = field(repr=False)
    vae: VAE = field(repr=False)
    texts: tuple[TextEncoder, ...] = field(repr=False)
    tokenizers: tuple[Tokenizer, ...] = field(repr=False)
    schedule: Schedule = field(repr=False)
    source: checkpoints.Source | None = field(default=None, repr=False)
    numerics: Numerics = "reference"
    step: Step = field(default=advance, repr=False)
    rows_at_once: int | None = None
    tile: int | None = None
    kernels: tuple[str, ...] = ()
    compiling: Mapping[str, Any] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        named("numerics", self.numerics, NUMERICS)
        if self.numerics != "reference":
            own_unet(self.unet, f"numerics {self.numerics!r}")
        if self.rows_at_once is not None and self.rows_at_once < 1:
            raise ValueError(f"rows_at_once must be at least 1, or None for all; got {self.rows_at_once}")
        factor = self.config.vae.factor
        if self.tile is not None and (self.tile % factor or self.tile < 4 * factor):
            raise ValueError(f"tile must be a multiple of {factor} from {4 * factor} on, or None; got {self.tile}")

    @property
    def device(self) -> torch.device:
        """Device of UNet and latents. Text encoder and VAE may be elsewhere, and are copied here while they work."""
        return self.unet.device

    @property
    def networks(self) -> tuple[object, ...]:
        """All networks: UNet, autoencoder, text encoders."""
        return self.unet, self.vae, *self.texts

    @property
    def sha256(self) -> dict[str, str]:
        """SHA-256 of the files of the weights, by file name; recorded beside every picture."""
        return {} if self.source is None else self.source.sha256

    @property
    def unusual(self) -> dict[str, Any]:
        """Settings that change a picture, if only by its last bits, where they are not the default; for records."""
        settings = {"kernels": list(self.kernels), "rows_at_once": self.rows_at_once, "tile": self.tile}
        if (tokenization := self.tokenizers[0].tokenization) != "original":
            settings["tokenization"] = tokenization
        if self.source is not None:
            settings["ignored_keys"] = list(self.source.ignored)
            settings["changes"] = self.source.changes.records
        return {name: value for name, value in settings.items() if value}

    def __call__(
        self,
        prompts: str | Sequence[str],
        seeds: int | Sequence[int] = 0,
        *,
        safety: str | SLDConfig = "medium",
        guidance_scale: float | None = None,
        sampler: str | None = None,
        steps: int | None = None,
        negative: str | Sequence[str] = "",
        concept: str | Sequence[str] | None = None,
        size: int | tuple[int, int] | None = None,
        image: Pictures | None = None,
        strength: float | None = None,
        mask: Pictures | None = None,
    ) -> list[Image.Image]:
        """Pictures for prompts, with everything by name. What is not given is what the checkpoint wants by default.

        Args:
            safety: a preset's name or "off", under the checkpoint's guidance scale; or a configuration with its own.
            guidance_scale: takes the place of either scale.
            sampler: a name in `sld.config.SAMPLERS`.
            steps: of the sampler.
            prompts, seeds, negative, concept, size: see `sample`.
            image: pictures to start from, files or PIL images; one, or one per image.
            strength: the part of the steps that is taken from them; 0.8, and with a mask 1, if not given.
            mask: white where a picture is made anew; one, or one per image. The rest stays, but for the autoencoder.

        Raises:
            ValueError: an argument is out of range, or a picture is not finite; says why that may be.
        """
        if image is None and not (mask is None and strength is None):
            raise ValueError("strength and mask are for a picture to start from: give image too")
        start = None if image is None else read_start(image, self.config, strength, mask, size)
        *_, last = self.sample(
            prompts,
            seeds,
            sampler=self.sampler(sampler, steps, 1.0 if start is None else start.strength),
            guidance=self.guidance(safety, guidance_scale),
            negative=negative,
            concept=concept,
            size=size,
            start=start,
        )
        scale = safety.guidance_scale if isinstance(safety, SLDConfig) else guidance_scale
        return images.to_pil(require_finite(self.decode(last.x), self.networks, scale))

    def sampler(self, name: str | None = None, steps: int | None = None, strength: float = 1.0) -> Sampler[Any, Any]:
        """The sampler of a name, and of the part `strength` of a number of steps; the checkpoint's if not given."""
        usual = self.config.defaults
        spacing = usual.spacing if name in (None, usual.sampler) else None
        steps = usual.steps if steps is None else steps
        return make_sampler(name or usual.sampler, self.schedule, steps, spacing, strength=strength)

    def guidance(self, safety: str | SLDConfig = "medium", guidance_scale: float | None = None) -> Guidance:
        """The rule for a preset's name, "off" or a configuration; a name comes with the checkpoint's guidance scale."""
        if guidance_scale is None and isinstance(safety, str):
            guidance_scale = self.config.defaults.guidance_scale
        return guidance_for(safety, guidance_scale)

    def encode(self, texts: Sequence[str], size: int | tuple[int, int] | None = None) -> Cond:
        """Return the condition of texts, a row for each, encoded as one batch.

        A text that is longer than the encoder takes loses its end, with a warning.

        Args:
            texts: prompts, concepts, or "".
            size: of the pictures, see `sample`; models such as SDXL are told it.
        """
        return self._encode([texts], self.config.latent_size(size))

    def sample(
        self,
        prompts: str | Sequence[str],
        seeds: int | Sequence[int] = 0,
        *,
        sampler: Sampler[Any, Any] | None = None,
        guidance: Guidance[Any, Any, Any] | None = None,
        negative: str | Sequence[str] = "",
        concept: str | Sequence[str] | None = None,
        size: int | tuple[int, int] | None = None,
        space: Space = "raw",
        reuse: Reuse = NO_REUSE,
        noise: Tensor | None = None,
        start: Tensor | Start | None = None,
        state: SampleState | None = None,
        between: Between | None = None,
    ) -> Iterator[SampleState]:
        """Sample a batch of b images. Every argument that may be given per image may be given once for all.

        Args:
            prompts: one, or one per image.
            seeds: one, or one per image, in [0, 2**64). An image's noise is torch.randn((1, c, h, w)) of a CPU
                generator with its seed, whatever the batch and the device, as in diffusers and the official code.
            sampler: the one that the checkpoint wants by default if None.
            guidance: SLD's Medium with the checkpoint's guidance scale if None.
            negative: takes the place of the empty text; one, or one per image.
            concept: the unsafe concept in words; one, or one per image; the checkpoint's if None.
            size: of the pictures in pixels, one number or (height, width), multiples of the autoencoder's factor (8 in
                Stable Diffusion); the size the model was trained on if None, or that of the pictures to start from.
            space: for a model that predicts v: guide v itself, as the reference does ("raw"), or the eps it stands for
                ("eps"). SLD's thresholds act on other numbers in the two.
            reuse: approximations that let evaluations take over what earlier ones have computed; none if not given.
            noise: (b, c, h, w), in place of what the seeds give, for parity with references that draw it otherwise.
            start: pictures to start from, with or without a mask, or clean latents (b, c, h, w), as `vae.encode` makes
                them. They are given as much noise as x has at the sampler's first timestep, so that a sampler on the
                later part of a grid (`pipe.sampler(strength=0.6)`) keeps more of them.
            state: where to go on, from an earlier run with the same arguments.
            between: called after every evaluation with its state and the level of its x, which past the last is free of
                noise; the run goes on with the x that it returns.

        Returns:
            An iterator over the states: the one to start from, then one after each network evaluation. Leaving the
            loop early stops the run.

        Raises:
            ValueError: an argument is out of range, or lengths do not match.
        """
        strength = start.strength if isinstance(start, Start) else 1.0
        sampler = (sampler or self.sampler(strength=strength)).to(self.device)
        guidance = guidance or self.guidance()
        if space not in ("raw", "eps"):
            raise ValueError(f"space must be 'raw' (guide what the network predicts) or 'eps'; got {space!r}")
        concept = self.config.defaults.concept if concept is None else concept
        batch = batch_size(prompts=prompts, seeds=seeds, negative=negative, concept=concept)
        if state is not None and len(state.x) != batch:
            raise ValueError(f"the state to go on from holds {len(state.x)} images, the arguments describe {batch}")
        reuse.require(self.numerics, 0 if state is None else state.i)
        seeds = spread(seeds, batch)
        size = start.size if size is None and isinstance(start, Start) else size
        shape = (batch, self.config.vae.latent, *self.config.latent_size(size))
        drawn, inpaints = Noise(seeds, shape[1:]), self.config.unet.inpaints
        begun = begin(start, shape, drawn, noise, sampler, self.schedule, self.vae, inpaints)
        told = state is noise is start is None  # the seed alone tells how an image begins
        if state is None:
            x = begun.x
            state = SampleState(0, x, guidance.init(x), sampler.init(x), _random(drawn, sampler, batch))
        elif state.x.shape != shape:
            raise ValueError(f"the state to go on from holds latents {tuple(state.x.shape)}, the size gives {shape}")
        elif sampler.stochastic:
            drawn.restore(state.random)
        texts = texts_of(guidance, spread(prompts, batch), spread(negative, batch), spread(concept, batch))
        timesteps = torch.tensor(sampler.timesteps, device=self.device)
        if self.numerics == "reference":
            cond = self._encode_as_reference(guidance, texts, shape[2:])
            evaluations = self._plain(guidance, cond, timesteps, state.i)
        else:
            starts: Sequence[Hashable] = range(batch)  # a hook may part images that begin alike
            if between is None:
                starts = seeds if told else list(zip(seeds, begun.keys(state.x), strict=True))
            phases = plan(guidance, texts, starts, len(timesteps), self.rows_at_once, reuse)
            invariant, cond = self.numerics == "invariant", self._encode_distinct(texts, shape[2:])
            evaluations = RowNetwork(self._keyed, cond, timesteps, phases, invariant, reuse).evaluations(state.i)
        return self._run(state, sampler, guidance, timesteps, evaluations, drawn, space, begun, between)

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

        Raises:
            ValueError: the network is not our UNet.
        """
        return replace(
            self,
            unet=compiled_blocks(own_unet(self.unet, "compile"), **options),
            step=compiled_step(self.step, **options),
            kernels=(*self.kernels, f"compiled ({options.get('mode') or 'default'})"),
            compiling=options,
        )

    def winograd(self) -> Pipeline:
        """This pipeline with Winograd's form of the UNet's wide 3x3 convolutions, which a CPU computes faster.

        The same sums in another order. At SD 1.5's widths docs/performance.md has a step at 1.3 times the speed for 1.6
        GB more of memory; the embedded model's convolutions are too narrow and stay as they are. Goes with `compile`,
        before it. This pipeline and its networks stay as they are.

        Raises:
            ValueError: the network is not our UNet, or in half precision.
        """
        return replace(self, unet=with_winograd(own_unet(self.unet, "winograd")), kernels=(*self.kernels, "winograd"))

    def network_rows(self, guidance: Guidance[Any, Any, Any], evaluations: int, batch: int = 1) -> Rows:
        """Rows of the network in a run of b images that share nothing: what the rule asks for, and what is computed.

        The second is less where rows are idle, and twice as much where "invariant" numerics double a single image.
        """
        return rows_of_run(guidance, evaluations, batch, self.numerics, self.rows_at_once)

    @torch.no_grad()
    def decode(self, x: Tensor) -> Tensor:
        """Pictures (b, 3, H, W), about [-1, 1], of latents (b, c, h, w).

        One by one: the same bits in any batch, and the memory of one picture, or of one tile.
        """
        vae = on_device(self.vae, self.device)
        if self.tile is None:
            return torch.cat([vae.decode(latent[None]) for latent in x])
        tile = self.tile // self.config.vae.factor
        return torch.cat([decode_tiles(vae, latent[None], tile) for latent in x])

    def _run(
        self,
        state: SampleState,
        sampler: Sampler[Any, Any],
        guidance: Guidance[Any, Any, Any],
        timesteps: Tensor,
        evaluations: Evaluations,
        drawn: Noise,
        space: Space,
        begun: Beginning,
        between: Between | None,
    ) -> Iterator[SampleState]:
        n = len(timesteps)
        order, levels = torch.arange(n, device=self.device), sampler.levels(self.schedule)
        at = [Level(levels.signal[i], levels.noise[i]) for i in range(n)]
        clean = Level(torch.ones_like(at[0].signal), torch.zeros_like(at[0].noise))
        params = guidance.params(n, len(state.x), self.device)
        yield state
        for i, predict in evaluations:
            with torch.no_grad():
                x, guidance_state, sampler_state = self.step(
                    guidance,
                    sampler,
                    self.schedule,
                    space,
                    params,
                    order[i],
                    at[i],
                    at[min(i + 1, n - 1)],
                    state.x,
                    predict(begun.shown(state.x)),
                    state.guidance,
                    state.sampler,
                    drawn.draw().to(self.device) if sampler.stochastic else None,
                )
                level = at[i + 1] if i + 1 < n else clean
                x, random = begun.blended(x, level), _random(drawn, sampler, len(x))
                state = SampleState(i + 1, x, guidance_state, sampler_state, random)
                if between is not None:
                    state = replace(state, x=between(state, level))
            yield state

    def _plain(self, guidance: Guidance[Any, Any, Any], cond: Cond, timesteps: Tensor, start: int) -> Evaluations:
        """Compute all rows in full at every evaluation, as diffusers does."""
        conditions = len(guidance.conditions)
        b, most = len(cond) // conditions, self.rows_at_once or conditions
        parts = [cond[k * b : min(k + most, conditions) * b] for k in range(0, conditions, most)]

        def predict(x: Tensor, t: Tensor) -> Tensor:
            # joined as in the reference, which keeps the layout that latents of a picture have in memory
            rows = [self.unet(torch.cat([x] * (len(part) // b)), t, part) for part in parts]
            return rows[0] if len(rows) == 1 else torch.cat(rows)

        for i in range(start, len(timesteps)):
            yield i, lambda x, t=timesteps[i]: predict(x, t)

    @torch.no_grad()
    def _encode(self, batches: Sequence[Sequence[str]], size: tuple[int, int]) -> Cond:
        """Encode batches of texts, one after another. Encoders that wait elsewhere are copied once for all of them."""
        rows = [text for texts in batches for text in texts]
        for text in dict.fromkeys(rows):
            if cut := self.tokenizers[0].cut(text):
                tokens = self.config.texts[0].tokens
                warnings.warn(f"the text is longer than {tokens} tokens; its end is left out: {cut!r}", stacklevel=4)
        features, pooled = [], []
        for waiting, tokenizer in zip(self.texts, self.tokenizers, strict=True):
            encoder = on_device(waiting, self.device)
            made = [encoder.encode(tokenizer(texts).to(self.device)) for texts in batches]
            features.append(torch.cat([tokens for tokens, _ in made]))
            pooled += [one for _, one in made if one is not None]
        cond = Cond(torch.cat(features, dim=-1))
        if pooled:
            side = self.config.vae.factor
            height, width = size[0] * side, size[1] * side
            sizes = torch.tensor([height, width, 0, 0, height, width], device=self.device).expand(len(rows), 6)
            cond = replace(cond, pooled=torch.cat(pooled), sizes=sizes)
        if self.config.zeros_for_empty:
            kept = torch.tensor([text != "" for text in rows], device=self.device)[:, None]
            zeroed = None if cond.pooled is None else torch.where(kept, cond.pooled, 0)
            cond = replace(cond, tokens=torch.where(kept[..., None], cond.tokens, 0), pooled=zeroed)
        return cond

    def _encode_as_reference(self, guidance: Guidance[Any, Any, Any], texts: list[str], size: tuple[int, int]) -> Cond:
        """Encode texts in the reference's batches: all prompts, all negative prompts, each concept once."""
        b = len(texts) // len(guidance.conditions)
        batches, rows = [], []
        for k, condition in enumerate(guidance.conditions):
            own, first = texts[k * b : (k + 1) * b], sum(map(len, batches))
            concept = condition not in ("uncond", "text")
            batches.append(list(dict.fromkeys(own)) if concept else own)
            rows += [first + (batches[-1].index(text) if concept else n) for n, text in enumerate(own)]
        return self._encode(batches, size)[rows]

    def _encode_distinct(self, texts: list[str], size: tuple[int, int]) -> Cond:
        """Encode every distinct text once and by itself, so that it has the same features in every batch."""
        distinct = list(dict.fromkeys(texts))
        return self._encode([[text] for text in distinct], size)[[distinct.index(text) for text in texts]]

    @cached_property
    def _keyed(self) -> KeyedUNet:
        keyed = KeyedUNet(own_unet(self.unet, f"numerics {self.numerics!r}"))
        return keyed if self.compiling is None else compiled_blocks(keyed, **self.compiling)


def texts_of(
    guidance: Guidance[Any, Any, Any], prompts: Sequence[str], negative: Sequence[str], concept: Sequence[str]
) -> list[str]:
    """The texts (r * b) that a rule's rows have, condition by condition, for those of b images."""
    texts = {"uncond": negative, "text": prompts, "safety": concept}
    texts |= {condition: [text] * len(prompts) for condition, text in guidance.texts.items()}
    return [text for condition in guidance.conditions for text in texts[condition]]


def _random(drawn: Noise, sampler: Sampler[Any, Any], batch: int) -> Tensor:
    return drawn.states() if sampler.stochastic else torch.empty(batch, 0, dtype=torch.uint8)
