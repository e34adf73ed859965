"""Guidance rules inside diffusers: a guider for its modular pipelines, and a UNet for its stock ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from sld.adapters.loop import SPACES, Run, require_usable, texts_of
from sld.guidance import DEFAULT_CONCEPT, Guidance, from_data, to_data
from sld.spelling import named

try:
    from diffusers.configuration_utils import register_to_config
    from diffusers.guiders.guider_utils import BaseGuidance, GuiderOutput
    from diffusers.modular_pipelines.modular_pipeline import BlockState
except ImportError as error:
    raise ImportError("sld.adapters.diffusers needs diffusers 0.42 or newer: pip install 'sld[diffusers]'") from error

_IDENTIFIERS = {"text": "pred_cond", "uncond": "pred_uncond"}
_SIZES = {"time_ids"}  # what SDXL's network is told of sizes, which comes with the picture and not with a text


class _Recorded(BaseException):
    """The end of a recording; no Exception, because diffusers logs each of those as an error."""


def _each(value: Any, like: Any) -> Any:
    """Give every image of `like` what one image was given."""
    if isinstance(value, list):
        return [value[0].to(like[0])] * len(like)
    return value.to(like).expand(len(like), *value.shape[1:]) if isinstance(value, Tensor) else value


class RuleGuider(BaseGuidance):
    """A guider that guides diffusers' modular pipelines by a rule of `sld.guidance`, in float32.

    Give it to a pipeline with `pipe.update_components(guider=guider)`, then call `guider.encode(pipe)`. Every condition
    is a call of the network of its own; those that the rule calls idle are left out.

    Args:
        rule: a rule, or its data as in sweeps and sidecars, which is what the config holds.
        concept: text of the safety concept, for a rule whose conditions have no texts of their own.
        space: what is guided, a key of `sld.adapters.loop.SPACES`: "v" is the prediction that the pipeline hands over,
            whatever it is; "eps" and "x0" follow from the v of a flow model. Classifier-free guidance is the same in
            all of them, SLD is not: its scale and threshold meet other numbers.
        enabled: if False, the text's prediction is followed as it is.

    Raises:
        ValueError: the rule or the space is unknown, or the rule needs more than a guider is told.
    """

    _input_predictions: ClassVar[list[str]] = list(_IDENTIFIERS.values())

    @register_to_config
    def __init__(
        self,
        rule: Guidance[Any, Any, Any] | Mapping[str, Any],
        concept: str = DEFAULT_CONCEPT,
        space: str = "v",
        enabled: bool = True,
    ) -> None:
        super().__init__(enabled=enabled)
        self._factor = named("space", space, SPACES)
        self.rule = rule if isinstance(rule, Guidance) else from_data(rule, "RuleGuider")
        require_usable(self.rule, space)
        # diffusers takes arguments without a name for defaults, which it would not load
        self.register_to_config(rule=to_data(self.rule), _use_default_values=[])
        self.texts = texts_of(self.rule, concept)
        self._asked, self._concepts = [], dict[str, dict[str, Any]]()
        self._recording = self._run = None

    def encode(self, pipe: Any, **inputs: Any) -> Self:
        """Let the pipeline prepare the concepts as it prepares prompts, up to the network, and keep them.

        A config holds no tensors, so a guider that was loaded needs this too.

        Args:
            pipe: a modular pipeline with this guider.
            inputs: what it needs besides a prompt, such as `image`.

        Raises:
            ValueError: the pipeline has another guider, or is no flow model and the space is not "v".
        """
        if not any(component is self for component in pipe.components.values()):
            raise ValueError("the pipeline has another guider: call pipe.update_components(guider=guider) first")
        prediction = pipe.scheduler.config.get("prediction_type", "flow_prediction")
        if self.config["space"] != "v" and prediction != "flow_prediction":
            raise ValueError(f"space={self.config['space']!r} is for flow models, this one has {prediction}: take 'v'")
        own = {"negative_prompt": "", "generator": torch.Generator().manual_seed(0)}
        inputs = {name: value for name, value in own.items() if name in pipe.blocks.input_names} | inputs
        texts = self.texts
        try:
            for self._recording, text in texts.items():
                with suppress(_Recorded):
                    pipe(prompt=text, **inputs)
        finally:
            self._recording = None
        return self

    def set_state(self, step: int, num_inference_steps: int, timestep: Any) -> None:
        if self._step is None or step <= self._step:
            self._run = None
        super().set_state(step, num_inference_steps, timestep)

    def prepare_inputs(self, data: Any) -> list[BlockState]:
        pairs = {key: value if isinstance(value, tuple) else (value, value) for key, value in data.items()}
        told = {key: pair for key, pair in pairs.items() if pair[0] is not pair[1] and key not in _SIZES}
        if self._recording is not None:
            self._concepts[self._recording] = {key: pair[0] for key, pair in told.items()}
            raise _Recorded
        idle = self.rule.idle(self._step, self._num_inference_steps) if self._enabled else self.rule.conditions
        self._asked = ["text", *(name for name in self.rule.conditions if name not in {"text", *idle})]
        if "uncond" in self._asked and (not told or any(pair[1] is None for pair in told.values())):
            raise ValueError('the pipeline has no unconditional text: give negative_prompt, "" for none')
        return [self._batch(name, pairs, told) for name in self._asked]

    def prepare_inputs_from_block_state(self, data: BlockState, input_fields: Mapping[str, Any]) -> list[BlockState]:
        return self.prepare_inputs({k: tree_map(lambda f: getattr(data, f, None), f) for k, f in input_fields.items()})

    def _batch(self, name: str, pairs: Mapping[str, Any], told: Mapping[str, Any]) -> BlockState:
        fields = {key: pair[name == "uncond"] for key, pair in pairs.items()}
        if name in self.texts.keys() - self._concepts.keys():
            raise ValueError(f"the guider does not know its {name} yet: call guider.encode(pipe) first")
        fields |= {key: _each(own, fields[key]) for key, own in self._concepts.get(name, {}).items() if key in told}
        return BlockState(**fields, **{self._identifier_key: _IDENTIFIERS.get(name, f"pred_{name}")})

    def __call__(self, data: Sequence[Any]) -> GuiderOutput:
        predictions = dict(zip(self._asked, (batch.noise_pred for batch in data), strict=True))
        text = pred = predictions["text"]
        if self._enabled:
            self._run = self._run or Run(self.rule, self._num_inference_steps)
            rows: Any = dict.fromkeys(self.rule.conditions, text) | predictions
            pred = self._run(rows, self._step, self._factor(self._timestep / 1000))
        return GuiderOutput(pred=pred, pred_cond=text, pred_uncond=predictions.get("uncond"))

    @property
    def is_conditional(self) -> bool:
        return self._asked[self._count_prepared - 1] != "uncond"

    @property
    def num_conditions(self) -> int:
        return len(self.rule.conditions) if self._enabled else 1


class GuidedUNet(nn.Module):
    """A UNet for diffusers' stock pipelines: it evaluates all conditions in one call and returns the guided prediction.

    Set `pipe.unet = GuidedUNet(pipe, rule)` and run the pipeline with guidance_scale=1, so that it asks for one row per
    image. A run begins where the scheduler has new timesteps.

    Args:
        pipe: StableDiffusionPipeline, StableDiffusionXLPipeline, or one like them.
        rule, concept: as in `RuleGuider`.
        negative: the negative prompt; None for what the pipeline takes without one, which is zeros for SDXL.
    """

    def __init__(
        self, pipe: Any, rule: Guidance[Any, Any, Any], concept: str = DEFAULT_CONCEPT, negative: str | None = None
    ) -> None:
        super().__init__()
        require_usable(rule)
        self.unet, self.pipe, self.rule = pipe.unet, pipe, rule
        options = {"num_images_per_prompt": 1, "do_classifier_free_guidance": True, "negative_prompt": negative}
        with torch.no_grad():  # (text, negative) of SD, (text, negative, pooled, pooled negative) of SDXL
            texts = {"uncond": "", **texts_of(rule, concept)}
            told = {name: pipe.encode_prompt(text, device=pipe.device, **options) for name, text in texts.items()}
        self.told = {name: parts[name == "uncond" :: 2] for name, parts in told.items()}
        self.timesteps = None

    def __getattr__(self, name: str) -> Any:
        with suppress(AttributeError):
            return super().__getattr__(name)
        return getattr(super().__getattr__("unet"), name)

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, **others: Any) -> tuple[Tensor]:
        """Return the guided prediction (b, c, h, w) of latents (b, c, h, w), as diffusers' UNet without a dict does."""
        if getattr(self.pipe, "_guidance_scale", 7.5) > 1:
            raise ValueError("GuidedUNet guides by itself: run the pipeline it was made for, with guidance_scale=1")
        if self.timesteps is not self.pipe.scheduler.timesteps:
            self.timesteps, self.i = self.pipe.scheduler.timesteps, 0
            self.run = Run(self.rule, int((self.timesteps <= timestep).sum()))
        conditions, n = self.rule.conditions, len(self.rule.conditions)

        def rows(text: Tensor, part: int) -> Tensor:
            told = {name: _each(parts[part], text) for name, parts in self.told.items()} | {"text": text}
            return torch.cat([told[name] for name in conditions])

        pooled = (others.get("added_cond_kwargs") or {}).get("text_embeds")
        x, others = tree_map(lambda v: torch.cat([v] * n) if isinstance(v, Tensor) and v.ndim else v, (sample, others))
        if pooled is not None:
            others["added_cond_kwargs"]["text_embeds"] = rows(pooled, 1)
        predicted = self.unet(x, timestep, rows(encoder_hidden_states, 0), **others | {"return_dict": False})[0]
        guided = self.run(dict(zip(conditions, predicted.chunk(n), strict=True)), self.i)
        self.i += 1
        return (guided,)
