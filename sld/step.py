"""The step of a run, as one function of tensors: guidance and sampler, without the network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from torch import Tensor

from sld.guidance import Guidance
from sld.samplers import Level, Process, Sampler
from sld.samplers.process import from_eps

Space = Literal["raw", "eps"]
"""The prediction that is guided if a model predicts v: v itself ("raw"), or eps computed from it ("eps")."""

Step = Callable[..., tuple[Tensor, NamedTuple, NamedTuple]]
"""Type of `advance` and of its compiled form."""


def advance(
    guidance: Guidance[Any, Any, Any],
    sampler: Sampler[Any, Any],
    process: Process,
    space: Space,
    params: NamedTuple,
    i: Tensor,
    a: Level,
    b: Level,
    x: Tensor,
    predictions: Tensor,
    guidance_state: NamedTuple,
    sampler_state: NamedTuple,
    noise: Tensor | None,
) -> tuple[Tensor, NamedTuple, NamedTuple]:
    """Compute the next latents from the network's rows, element by element.

    It is a single function of tensors, so that a compiler can make one kernel of it.

    Args:
        guidance, params: the rule and its hyper-parameters.
        sampler, process, space: see `Pipeline.sample`.
        i: index of this evaluation, 0-d int64.
        a, b: levels of x at this and at the next evaluation, 0-d.
        x: latents (b, c, h, w).
        predictions: the network's rows (r * b, c, h, w), condition by condition.
        guidance_state, sampler_state: states of rule and sampler.
        noise: standard normal noise (b, c, h, w) for a stochastic sampler, else None.

    Returns:
        The next latents (b, c, h, w) and the next states.
    """
    noises = predictions
    if process.prediction != "eps":
        noises = process.estimate(predictions, x.repeat(len(guidance.conditions), 1, 1, 1), a).eps
    rows = guidance.split(noises if space == "eps" else predictions, len(x))
    guided, guidance_state = guidance(rows, guidance_state, i, params)
    estimate = from_eps(guided, x, a) if space == "eps" else process.estimate(guided, x, a)
    y, sampler_state = sampler.step(i, x, estimate, sampler_state, noise)
    guidance_state = guidance.moved(guidance.split(noises, len(x)), guidance_state, i, x, y, a, b, params)
    return y, guidance_state, sampler_state
