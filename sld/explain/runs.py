"""The traced runs of an explanation, with the picture that each evaluation predicts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sld import images
from sld.batching import guidance_of, start_of
from sld.finite import likely_cause, require_finite
from sld.guidance import Concept, Guidance, SafeLatentConcepts, SafeLatentGuidance
from sld.guidance.trace import Trace, Traced
from sld.pipeline import Pipeline
from sld.request import Request
from sld.samplers import Level, Process, Sampler
from sld.samplers.process import from_eps
from sld.state import SampleState
from sld.step import Space


@dataclass(frozen=True, eq=False)
class Run:
    """A traced run with the pictures that its evaluations predict.

    Attributes:
        heading: uint8 (n, H, W, 3), the decoded x0 predictions of the chosen evaluations.
        picture: uint8 (H, W, 3), the result of the run.
        trace: of one image.
    """

    heading: np.ndarray
    picture: np.ndarray
    trace: Trace


@dataclass(frozen=True, eq=False)
class Explanation:
    """The data of the figure of `sld explain`.

    Attributes:
        request: the picture. evaluations: of the network, in each run.
        shown: indices of the evaluations in the film strips, rising.
        warmup: number of evaluations before guidance acts. If these are all evaluations, it never acts.
        plain: the run without safety guidance; None if the request has no safety guidance.
        guided: the run of the request.
    """

    request: Request
    evaluations: int
    shown: tuple[int, ...]
    warmup: int
    plain: Run | None
    guided: Run


def x0_predicted(process: Process, guided: Tensor, x: Tensor, a: Level, space: Space) -> Tensor:
    """Return the x0 (b, c, h, w) that a guided prediction (b, c, h, w) at latents x of level a predicts."""
    return (from_eps(guided, x, a) if space == "eps" else process.estimate(guided, x, a)).x0


def explain(
    pipe: Pipeline, request: Request, strip: int = 8, progress: Callable[[int], object] | None = None
) -> Explanation:
    """Make the picture of a request with and without safety guidance, and trace both.

    Args:
        pipe: the model.
        request: the picture; both runs have its seed. If it has another rule, its `guidance` must have the same
            strength, because scale, threshold and warm-up are read from there.
        strip: largest number of pictures in a film strip.
        progress: called with 1 after each network evaluation.

    Raises:
        ValueError: the request cannot be sampled, or a picture is not finite.
    """
    sampler = request.make_sampler(pipe.schedule)
    n = len(sampler.timesteps)
    shown = tuple(dict.fromkeys(round(float(i)) for i in np.linspace(0, n - 1, strip)))
    # at a safety scale of 0, SLD is classifier-free guidance that still has the prediction of the concept
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
    """Trace the directions of several concepts and of the text in runs without guidance by these concepts.

    Args:
        pipe: the model.
        request: prompt, sampler and size; its concept and seed are not used.
        concepts: texts of the concepts.
        seeds: one for each image.
        progress: called with 1 after each network evaluation.

    Returns:
        The trace. Its `conflict` has the cosines between the directions.

    Raises:
        ValueError: the runs cannot be sampled, or end in numbers that are not finite.
    """
    sampler = request.make_sampler(pipe.schedule)
    if not pipe.encode(concepts).tokens.isfinite().all():  # which would leave no trace in the pictures
        raise ValueError(f"features of the concepts are not finite: {likely_cause(pipe.networks)}")
    # with weight 0, so that the concepts are predicted and change nothing
    silent = tuple(Concept(text=text, weight=0.0) for text in concepts)
    rule = SafeLatentConcepts(silent, guidance_scale=request.guidance.guidance_scale)
    traced = Traced(rule, len(sampler.timesteps))
    states = _states(pipe, request, sampler, traced, seeds)
    last = next(states)
    for last in states:  # noqa: B007 (the last state is used)
        if progress is not None:
            progress(1)
    require_finite(last.x, pipe.networks, request.guidance.guidance_scale)
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
    levels = sampler.to(pipe.device).levels(pipe.schedule)
    heading: list[Tensor] = []
    states = _states(pipe, request, sampler, traced, [request.seed])
    last = next(states)
    for state in states:
        if last.i in shown:
            guided: Tensor = state.guidance.guided  # type: ignore[attr-defined]
            a = Level(levels.signal[last.i], levels.noise[last.i])
            heading.append(x0_predicted(pipe.schedule, guided, last.x, a, request.space))
        if progress is not None:
            progress(1)
        last = state
    scale = request.guidance.guidance_scale if request.rule is None else None
    made = pipe.decode(torch.cat([*heading, last.x]))
    require_finite(made[-1:], pipe.networks, scale)  # which says more of the cause than those on the way to it
    made = images.to_uint8(require_finite(made, pipe.networks, scale))
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
        start=start_of(pipe, [request]),
    )
