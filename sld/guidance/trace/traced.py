"""The rule that traces another one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, final

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from sld.guidance.cfg import CFGPredictions, classifier_free
from sld.guidance.concepts import ConceptPredictions
from sld.guidance.trace.measures import NOBODY, QUANTILES, Measures, measure, momentum
from sld.guidance.trace.result import EVERYWHERE, Trace
from sld.guidance.traceable import traceable
from sld.guidance.wrapping import Wrapping


class TracedRows(NamedTuple):
    """Predictions (b, c, h, w) in two forms: as `ConceptPredictions`, and in the inner rule's NamedTuple."""

    eps: ConceptPredictions
    inner: Any


class TracedParams(NamedTuple):
    """The inner rule's hyper-parameters, and the weights (n - 1, b, h, w) of all regions but the first."""

    rule: Any
    regions: Tensor | None


class TracedState(NamedTuple):
    """The state of a traced run.

    Attributes:
        rule: the inner rule's state.
        guided: the last guided prediction (b, c, h, w), from which x0 can be predicted.
        trace: all measures so far, with a first axis of evaluations; NaN and NOBODY for evaluations still to come.
    """

    rule: Any
    guided: Tensor
    trace: Measures


@final
@dataclass(frozen=True, eq=False)
class Traced(Wrapping[TracedRows, TracedState, TracedParams]):
    """A rule together with a trace of what it does. The latents are those of the rule alone, bit for bit.

    The rule alone may leave idle rows out, a traced rule never does. For equal bits, the network must then give a row
    the same bits in any batch (see `numerics` of `Pipeline`).

    Attributes:
        rule: the rule to trace, a `Traceable`.
        evaluations: number of evaluations of the run, `len(sampler.timesteps)`.
        regions: weights >= 0 of every place, by the region's name: (h, w) of the latents, or (b, h, w) where each image
            has its own; for example a mask of 0 and 1. The region EVERYWHERE is always there and needs no weights.

    Raises:
        ValueError: the rule cannot be traced, or the weights of a region have another shape, are negative or all 0.
    """

    evaluations: int
    regions: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        traceable(self.rule)
        for name, weights in self.regions.items():
            if name == EVERYWHERE:
                raise ValueError(f"the region {EVERYWHERE!r} is there already: take another name")
            if weights.ndim not in (2, 3) or not (weights >= 0).all() or not (weights.sum((-2, -1)) > 0).all():
                raise ValueError(f"region {name!r} must be (h, w) or (b, h, w), weights >= 0 that are not all 0")

    @property
    def concepts(self) -> tuple[str, ...]:
        """Conditions that are concepts, in the order of the trace."""
        return tuple(condition for condition in self.conditions if condition not in CFGPredictions._fields)

    def idle(self, i: int, steps: int) -> frozenset[str]:
        """Return nothing, because also what a rule would do without its warm-up is measured."""
        return frozenset()

    def named(self, predictions: Sequence[Tensor]) -> TracedRows:
        by_name = dict(zip(self.conditions, predictions, strict=True))
        concepts = tuple(by_name[condition] for condition in self.concepts)
        eps = ConceptPredictions(by_name["uncond"], by_name["text"], concepts)
        return TracedRows(eps, self.rule.named(predictions))

    def inner_rows(self, rows: TracedRows) -> Any:
        return rows.inner

    def params(
        self, steps: int, batch: int, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
    ) -> TracedParams:
        if steps != self.evaluations:
            raise ValueError(f"the trace was made for {self.evaluations} evaluations, the run has {steps}")
        for name, weights in self.regions.items():
            if weights.ndim == 3 and len(weights) != batch:
                raise ValueError(f"region {name!r} is given for {len(weights)} images, the batch has {batch}")
        weights = [w.to(device=device, dtype=dtype).expand(batch, *w.shape[-2:]) for w in self.regions.values()]
        return TracedParams(self.rule.params(steps, batch, device, dtype), torch.stack(weights) if weights else None)

    def init(self, x: Tensor) -> TracedState:
        b, _, h, w = x.shape
        for name, weights in self.regions.items():
            if weights.shape[-2:] != (h, w):
                raise ValueError(f"region {name!r} is {tuple(weights.shape[-2:])}, the latents are {(h, w)}")
        s, n, k = self.evaluations, 1 + len(self.regions), len(self.concepts)

        def unknown(*shape: int) -> Tensor:
            return x.new_full((s, b, *shape), torch.nan)

        trace = Measures(
            active=unknown(n, k),
            saturated=unknown(n, k),
            gap=unknown(n, k, len(QUANTILES)),
            would=unknown(n),
            applied=unknown(n),
            cosine=unknown(n),
            nu=unknown(n),
            conflict=unknown(1 + k, 1 + k),
            would_map=unknown(h, w),
            applied_map=unknown(h, w),
            driver=torch.full((s, b, h, w), NOBODY, dtype=torch.int8, device=x.device),
        )
        return TracedState(self.rule.init(x), torch.zeros_like(x), trace)

    def __call__(
        self, rows: TracedRows, state: TracedState, i: Tensor | int, params: TracedParams
    ) -> tuple[Tensor, TracedState]:
        eps_hat, after = self.rule(rows.inner, state.rule, i, params.rule)
        would, _ = self.rule(rows.inner, state.rule, i, self.opened(params).rule)
        s_g = self.s_g(params)
        plain = classifier_free(rows.eps.uncond, rows.eps.text, s_g)
        now = measure(
            rows.eps,
            would=(plain - would) / s_g,
            applied=(plain - eps_hat) / s_g,
            mu=self.masks(rows, params),
            nu=momentum(after, eps_hat),
            weights=_weights(eps_hat, params.regions),
        )
        at = torch.as_tensor(i, device=eps_hat.device).reshape(1)
        trace = tree_map(lambda old, new: old.index_copy(0, at, new[None]), state.trace, now)
        return eps_hat, TracedState(after, eps_hat, trace)

    def taken(self, state: TracedState, concepts: Mapping[str, str] | None = None) -> Trace:
        """Return the trace that a state holds.

        Args:
            state: of a run with this rule, finished or not.
            concepts: texts of conditions that do not have theirs from the rule, by condition.
        """
        texts = {**(concepts or {}), **self.texts}
        return Trace(
            measures=tree_map(torch.Tensor.cpu, state.trace),
            regions=(EVERYWHERE, *self.regions),
            concepts=tuple(texts.get(condition, condition) for condition in self.concepts),
        )


def _weights(x: Tensor, regions: Tensor | None) -> Tensor:
    everywhere = torch.ones_like(x[None, :, 0])
    return everywhere if regions is None else torch.cat([everywhere, regions])
