"""The runs behind an explanation: traced, with the picture that each evaluation was heading for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sld import images
from sld.batching import guidance_of
from sld.guidance import Concept, Guidance, SafeLatentConcepts, SafeLatentGuidance
from sld.guidance.trace import Trace, Traced
from sld.pipeline import Pipeline
from sld.request import Request
from sld.samplers import Process, Sampler
from sld.samplers.process import from_eps
from sld.state import SampleState
from sld.step import Space


@dataclass(frozen=True, eq=False)
class Run:
    """A traced run and what it was heading for.

    Attributes:
        heading: uint8 (n, H, W, 3), the x0 predictions of the evaluations that were asked for, decoded.
        picture: uint8 (H, W, 3), what it made.
        trace: of one image.
    """

    heading: np.ndarray
    picture: np.ndarray
    trace: Trace


@dataclass(frozen=True, eq=False)
class Explanation:
    """All that the figure shows.

    Attributes:
        request: the picture.
        evaluations: of the network, in each run.
        shown: the evaluations of the film strips, rising.
        warmup: evaluations before guidance acts; it never does where these are all.
        plain: the run without safety guidance; None where the other one has none either.
        guided: the run as asked for.
    """

    request: Request
    evaluations: int
    shown: tuple[int, ...]
    warmup: int
    plain: Run | None
    guided: Run


def x0_predicted(process: Process, guided: Tensor, x: Tensor, t: Tensor, space: Space) -> Tensor:
    """The clean latents (b, c, h, w) that a guided prediction (b, c, h, w) at latents x and timestep t stands for."""
    a = process.level(t)
    return (from_eps(guided, x, a) if space == "eps" else process.estimate(guided, x, a)).x0


def explain(
    pipe: Pipeline, request: Request, strip: int = 8, progress: Callable[[int], object] | None = None
) -> Explanation:
    """Make the picture of a request with and without safety guidance, and trace both.

    Args:
        pipe: the model.
        request: the picture; its seed is that of both runs. Where it has a rule of its own, its `guidance` has to be of
            the same strength: scale, threshold and warm-up are taken from there.
        strip: pictures in a film strip, at most.
        progress: called with 1 after each network evaluation.

    Raises:
        ValueError: the request cannot be met.
    """
    sampler = request.make_sampler(pipe.schedule)
    n = len(sampler.timesteps)
    shown = tuple(dict.fromkeys(round(float(i)) for i in np.linspace(0, n - 1, strip)))
    # with a scale of 0 SLD is plain guidance that still sees the concept
    rule = guidance_of([request]) if request.guarded else SafeLatentGuidance(request.guidance)
    plain = guidance_of([request.without_safety()])
    return Explanation(
        request=request,
        evaluations=n,
        shown=shown,
        warmup=min(request.guidance.warmup(n), n),
        plain=_run(pipe, request, sampler, plain, shown, progress) if request.guarded else None,
        guided=_run(pipe, request, sampler, rule, shown, progress),
    )


def conflicts(
    pipe: Pipeline,
    request: Request,
    concepts: Sequence[str],
    seeds: Sequence[int],
    progress: Callable[[int], object] | None = None,
) -> Trace:
    """How the directions of several concepts lie to one another and to the text's, along runs without guidance by them.

    Args:
        pipe: the model.
        request: prompt, sampler and size; its concept and seed are not used.
        concepts: their texts.
        seeds: one image for each.
        progress: called with 1 after each network evaluation.

    Returns:
        The trace; what was asked for is its `conflict`.
    """
    sampler = request.make_sampler(pipe.schedule)
    # of weight 0, so that they are predicted and change nothing
    silent = tuple(Concept(text=text, weight=0.0) for text in concepts)
    rule = SafeLatentConcepts(silent, guidance_scale=request.guidance.guidance_scale)
    traced = Traced(rule, len(sampler.timesteps))
    states = _states(pipe, request, sampler, traced, seeds)
    last = next(states)
    for last in states:  # noqa: B007 (the last one is wanted)
        if progress is not None:
            progress(1)
    return traced.taken(last.guidance)  # type: ignore[arg-type]


def _run(
    pipe: Pipeline,
    request: Request,
    sampler: Sampler,
    rule: Guidance[Any, Any, Any],
    shown: Sequence[int],
    progress: Callable[[int], object] | None,
) -> Run:
    traced = Traced(rule, len(sampler.timesteps))
    timesteps = torch.tensor(sampler.timesteps, device=pipe.device)
    heading: list[Tensor] = []
    states = _states(pipe, request, sampler, traced, [request.seed])
    last = next(states)
    for state in states:
        if last.i in shown:
            guided: Tensor = state.guidance.guided  # type: ignore[attr-defined]
            heading.append(x0_predicted(pipe.schedule, guided, last.x, timesteps[last.i], request.space))
        if progress is not None:
            progress(1)
        last = state
    made = images.to_uint8(pipe.decode(torch.cat([*heading, last.x])))
    return Run(made[:-1], made[-1], traced.taken(last.guidance, {"safety": request.concept}))  # type: ignore[arg-type]


def _states(
    pipe: Pipeline, request: Request, sampler: Sampler, guidance: Guidance[Any, Any, Any], seeds: Sequence[int]
) -> Iterator[SampleState]:
    return pipe.sample(
        request.prompt,
        seeds,
        sampler=sampler,
        guidance=guidance,
        negative=request.negative,
        concept=request.concept,
        size=(request.height, request.width),
        space=request.space,
        reuse=request.reuse,
    )
