"""What a guidance rule does during a run: how much, where, when, and against which concept.

A trace is taken from the rule's own predictions, so that it serves any rule with the rows uncond and text. With
e0, eP and ek the predictions without text, of the text and of concept k:

    d = eP - e0, the text's direction
    g_k = ek - e0, the concept's direction
    gamma = (e0 + s_g d - eps_hat) / s_g, what the rule takes off plain classifier-free guidance

For SLD this is the paper's gamma. In a warm-up a rule works it out and does not use it, so there are two: what the rule
`would` take off if there were no warm-up, and what it does take off, which is `applied`.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils._pytree import tree_map

from sld.guidance.base import Guidance, flat
from sld.guidance.cfg import CFGPredictions
from sld.guidance.concepts import TINY

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Of the gap eP - ek over the elements of a region."""

EVERYWHERE = "everywhere"
"""The region that every trace has, its first."""

NOBODY = -1
"""In `Measures.driver`: no concept has a part in gamma."""


class Measures(NamedTuple):
    """What is measured, of images b, regions n, concepts k; in a trace with evaluations s before all.

    Norms are over the channels of a place, root mean square over the places of a region, each by its weight.

    Attributes:
        active: share of elements with mu_k > 0, (b, n, k). NaN for a rule without masks.
        saturated: share of elements with mu_k >= 1, (b, n, k). NaN for a rule without masks.
        gap: quantiles QUANTILES of eP - ek over elements, (b, n, k, 5): the least value that this share of the
            region's weight does not exceed.
        would: |gamma| / |d| without a warm-up, (b, n).
        applied: |gamma| / |d| as it acts, (b, n).
        cosine: of gamma without a warm-up with d, (b, n); 0 where either is zero.
        nu: norm of the momentum, (b, n); 0 for a rule without.
        conflict: cosines of d, g_1, ..., g_K with one another, over the whole image, (b, 1 + k, 1 + k).
        would_map: |gamma| of every place without a warm-up, (b, h, w).
        applied_map: |gamma| of every place as it acts, (b, h, w).
        driver: index of the concept whose mu_k g_k gamma is most aligned with, for every place, without a warm-up,
            (b, h, w), int8; NOBODY where gamma or all terms are zero. Of terms that are parallel there, the first.
    """

    active: Tensor
    saturated: Tensor
    gap: Tensor
    would: Tensor
    applied: Tensor
    cosine: Tensor
    nu: Tensor
    conflict: Tensor
    would_map: Tensor
    applied_map: Tensor
    driver: Tensor


class TracedRows(NamedTuple):
    """Predictions (b, c, h, w), and the same as the rule has them."""

    uncond: Tensor
    text: Tensor
    concepts: tuple[Tensor, ...]
    own: Any


class TracedParams(NamedTuple):
    """The rule's hyper-parameters, and the weights of every region but the first, (n - 1, b or 1, h, w)."""

    rule: Any
    regions: Tensor | None


class TracedState(NamedTuple):
    """What a traced run remembers.

    Attributes:
        rule: the rule's own state.
        guided: the last guided prediction (b, c, h, w), which tells with x where the run is heading.
        trace: everything measured so far, evaluations first; NaN, and NOBODY, where a run has not been yet.
    """

    rule: Any
    guided: Tensor
    trace: Measures


@final
@dataclass(frozen=True, eq=False)
class Traced(Guidance[TracedRows, TracedState, TracedParams]):
    """Any rule with a trace of what it does. The latents are those of the rule alone, to the bit.

    No row is idle, because what a rule would do in its warm-up is measured too. Where the rule alone leaves idle rows
    out, "to the bit" therefore asks for kernels whose bits do not depend on the batch (see `Pipeline.exact_batch`).

    Attributes:
        rule: to be traced.
        evaluations: of the run, `len(sampler.timesteps)`.
        regions: name -> weights >= 0, (h, w) of the latents, or (b, h, w) where each image has its own; a mask of 0 and
            1, for example. EVERYWHERE is always there besides.

    Raises:
        ValueError: the rule has no guidance to trace, or a region is no region.
    """

    rule: Guidance[Any, Any, Any]
    evaluations: int
    regions: Mapping[str, Tensor] = field(default_factory=dict)

    rows_type: ClassVar[type[NamedTuple]] = TracedRows

    def __post_init__(self) -> None:
        if not set(CFGPredictions._fields) <= set(self.rule.conditions):
            raise ValueError(f"{type(self.rule).__name__} has no guidance to trace: it needs the rows uncond and text")
        for name, weights in self.regions.items():
            if name == EVERYWHERE:
                raise ValueError(f"the region {EVERYWHERE!r} is there already: take another name")
            if weights.ndim not in (2, 3) or not (weights >= 0).all() or not (weights.sum((-2, -1)) > 0).all():
                raise ValueError(f"region {name!r} must be (h, w) or (b, h, w), weights >= 0 that are not all 0")

    @property
    def conditions(self) -> tuple[str, ...]:
        return self.rule.conditions

    @property
    def texts(self) -> Mapping[str, str]:
        return self.rule.texts

    @property
    def concepts(self) -> tuple[str, ...]:
        """The conditions that are concepts, in the order of the trace."""
        return tuple(condition for condition in self.conditions if condition not in CFGPredictions._fields)

    def named(self, predictions: Sequence[Tensor]) -> TracedRows:
        by_name = dict(zip(self.conditions, predictions, strict=True))
        concepts = tuple(by_name[condition] for condition in self.concepts)
        return TracedRows(by_name["uncond"], by_name["text"], concepts, self.rule.named(predictions))

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
        eps_hat, after = self.rule(rows.own, state.rule, i, params.rule)
        would, _ = self.rule(rows.own, state.rule, i, self.rule.opened(params.rule))
        plain = rows.uncond + (rows.text - rows.uncond) * self.rule.s_g(params.rule)  # Eq. 3, as the rules round it
        now = measure(
            rows,
            would=(plain - would) / self.rule.s_g(params.rule),
            applied=(plain - eps_hat) / self.rule.s_g(params.rule),
            mu=self.rule.masks(rows.own, params.rule),
            nu=momentum(after, eps_hat),
            weights=_weights(eps_hat, params.regions),
        )
        at = torch.as_tensor(i, device=eps_hat.device).reshape(1)
        trace = tree_map(lambda old, new: old.index_copy(0, at, new[None]), state.trace, now)
        return eps_hat, TracedState(after, eps_hat, trace)

    def moved(
        self,
        rows: TracedRows,
        state: TracedState,
        i: Tensor | int,
        x: Tensor,
        y: Tensor,
        a: Tensor,
        b: Tensor,
        params: TracedParams,
    ) -> TracedState:
        return state._replace(rule=self.rule.moved(rows.own, state.rule, i, x, y, a, b, params.rule))

    def taken(self, state: TracedState, concepts: Mapping[str, str] | None = None) -> Trace:
        """The trace that a state holds.

        Args:
            state: of a run with this rule, finished or not.
            concepts: condition -> its text, for those that the rule does not word itself.
        """
        texts = {**(concepts or {}), **self.texts}
        return Trace(
            measures=tree_map(torch.Tensor.cpu, state.trace),
            regions=(EVERYWHERE, *self.regions),
            concepts=tuple(texts.get(condition, condition) for condition in self.concepts),
        )


def measure(
    rows: TracedRows, would: Tensor, applied: Tensor, mu: tuple[Tensor, ...], nu: Tensor, weights: Tensor
) -> Measures:
    """All measures of one evaluation, one slice of a trace.

    Args:
        rows: predictions.
        would, applied: gamma (b, c, h, w) without the warm-up and with it.
        mu: mask (b, c, h, w) of every concept, or none at all.
        nu: momentum (b, c, h, w).
        weights: of the regions, (n, b, h, w).
    """
    d = rows.text - rows.uncond
    g = [e - rows.uncond for e in rows.concepts]
    elements = weights[:, :, None].expand(-1, -1, d.shape[1], -1, -1)
    masks = mu or tuple(torch.full_like(d, torch.nan) for _ in g)
    # a NaN is neither active nor inactive
    active = [torch.where(m.isnan(), m, (m > 0).to(m.dtype)) for m in masks]
    saturated = [torch.where(m.isnan(), m, (m >= 1).to(m.dtype)) for m in masks]
    length = _norm(d, weights)
    return Measures(
        active=_columns([_mean(share, elements) for share in active], d, weights),
        saturated=_columns([_mean(share, elements) for share in saturated], d, weights),
        gap=_gaps([rows.text - e for e in rows.concepts], elements, d),
        would=_norm(would, weights) / length,
        applied=_norm(applied, weights) / length,
        cosine=_dot(would, d, weights) / (_norm(would, weights) * length).clamp(min=TINY),
        nu=_norm(nu, weights),
        conflict=cosines([d, *g]),
        would_map=would.square().sum(1).sqrt(),
        applied_map=applied.square().sum(1).sqrt(),
        driver=driver(would, [x * m for x, m in zip(g, mu, strict=True)] if mu else g),
    )


def momentum(state: NamedTuple, like: Tensor) -> Tensor:
    """The momentum (b, c, h, w) in a state, however deep it lies; zeros where there is none. Rules call it nu."""
    return next((tensor for name, tensor in flat(state).items() if name.endswith("nu")), torch.zeros_like(like))


def cosines(directions: list[Tensor]) -> Tensor:
    """Cosines (b, k, k) of k directions (b, c, h, w) with one another, image by image; 0 with a direction of zero."""
    lines = torch.stack([direction.flatten(1) for direction in directions], dim=1)
    unit = lines / lines.norm(dim=2, keepdim=True).clamp(min=TINY)
    return unit @ unit.mT


def driver(gamma: Tensor, terms: list[Tensor]) -> Tensor:
    """Which of the terms gamma is most aligned with at every place, whatever the sign and the length; see `Measures`.

    Args:
        gamma: (b, c, h, w).
        terms: as many as there are concepts, each (b, c, h, w).

    Returns:
        Indices (b, h, w), int8; of equal ones the first.
    """
    best, score = torch.full_like(gamma[:, 0], NOBODY, dtype=torch.int8), torch.zeros_like(gamma[:, 0])
    for k, term in enumerate(terms):
        aligned = (gamma * term).sum(1).abs() / term.square().sum(1).sqrt().clamp(min=TINY)
        best, score = torch.where(aligned > score, k, best).to(torch.int8), torch.maximum(aligned, score)
    return best


def quantiles(x: Tensor, weights: Tensor) -> Tensor:
    """QUANTILES of x by weight, each a value of x: the least that so much of the weight does not exceed.

    Args:
        x: (b, m).
        weights: (n, b, m).

    Returns:
        (n, b, 5).
    """
    ordered, order = x.sort(dim=1)
    below = weights.gather(2, order.expand_as(weights)).cumsum(2)
    q = torch.tensor(QUANTILES, dtype=x.dtype, device=x.device)
    at = torch.searchsorted(below, below[..., -1:] * q).clamp(max=x.shape[1] - 1)
    return ordered.expand_as(weights).gather(2, at)


def _weights(x: Tensor, regions: Tensor | None) -> Tensor:
    everywhere = torch.ones_like(x[None, :, 0])
    return everywhere if regions is None else torch.cat([everywhere, regions])


def _dot(a: Tensor, b: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean over places of the product over channels, (b, n)."""
    return _mean((a * b).sum(1), weights)


def _norm(a: Tensor, weights: Tensor) -> Tensor:
    return _dot(a, a, weights).sqrt()


def _mean(x: Tensor, weights: Tensor) -> Tensor:
    """Means (b, n) of x (b, ...) by weights (n, b, ...)."""
    return ((x * weights).flatten(2).sum(2) / weights.flatten(2).sum(2)).T


def _columns(columns: list[Tensor], x: Tensor, weights: Tensor) -> Tensor:
    """(b, n, k) from k columns (b, n), which may be none."""
    return torch.stack(columns, dim=2) if columns else x.new_empty(len(x), len(weights), 0)


def _gaps(gaps: list[Tensor], elements: Tensor, x: Tensor) -> Tensor:
    if not gaps:
        return x.new_empty(len(x), len(elements), 0, len(QUANTILES))
    return torch.stack([quantiles(gap.flatten(1), elements.flatten(2)) for gap in gaps], dim=2).transpose(0, 1)


@dataclass(frozen=True, eq=False)
class Trace:
    """What was measured in a run, by itself.

    Attributes:
        measures: evaluations s before all, on the CPU.
        regions: names, EVERYWHERE first.
        concepts: their texts, or their conditions where there was no text.
    """

    measures: Measures
    regions: tuple[str, ...]
    concepts: tuple[str, ...]

    def save(self, path: str | Path, about: Mapping[str, Any] | None = None) -> None:
        """Write one safetensors file, whole or not at all.

        Args:
            path: the file; replaced if it exists.
            about: anything JSON can hold, kept in the header for whoever loads the file.
        """
        names = {"regions": self.regions, "concepts": self.concepts, "quantiles": QUANTILES, "about": about or {}}
        header = {name: json.dumps(value, ensure_ascii=False) for name, value in names.items()}
        path = Path(path)
        beside = path.with_name(path.name + ".partial")
        tensors = {name: tensor.contiguous() for name, tensor in self.measures._asdict().items()}
        save_file(tensors, beside, metadata=header)
        os.replace(beside, path)

    @classmethod
    def load(cls, path: str | Path) -> tuple[Trace, dict[str, Any]]:
        """Read a saved trace and what was said about it.

        Raises:
            ValueError: the file is unreadable or holds something else.
        """
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
                header = {name: json.loads(text) for name, text in (file.metadata() or {}).items()}
        except (OSError, SafetensorError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is not a saved trace: {error}") from error
        if set(tensors) != set(Measures._fields) or not {"regions", "concepts"} <= set(header):
            raise ValueError(f"{path} is a safetensors file, but not one that Trace.save wrote")
        return cls(Measures(**tensors), tuple(header["regions"]), tuple(header["concepts"])), header.get("about", {})

    def rows(self) -> Iterator[dict[str, Any]]:
        """Tidy rows of all numbers but the maps, evaluation by evaluation; those that were not measured are left out.

        Yields:
            evaluation, image, region, concept, measure and value. Where a measure has no region or no concept, the
            field is empty; gap quantiles are named as "gap q0.05", cosines of directions as "cosine with d" and
            "cosine with" another concept.
        """
        m = self.measures
        columns: list[tuple[str, str, str, Tensor]] = []
        for n, region in enumerate(self.regions):
            for name in ("would", "applied", "cosine", "nu"):
                columns.append((region, "", name, getattr(m, name)[:, :, n]))
            for k, concept in enumerate(self.concepts):
                columns.append((region, concept, "active", m.active[:, :, n, k]))
                columns.append((region, concept, "saturated", m.saturated[:, :, n, k]))
                for j, q in enumerate(QUANTILES):
                    columns.append((region, concept, f"gap q{q}", m.gap[:, :, n, k, j]))
        for k, concept in enumerate(self.concepts, start=1):
            for j, other in enumerate(("d", *self.concepts[: k - 1])):
                columns.append(("", concept, f"cosine with {other}", m.conflict[:, :, k, j]))
        for i in range(len(m.would)):
            for image in range(m.would.shape[1]):
                for region, concept, name, values in columns:
                    value = float(values[i, image])
                    if value == value:
                        yield {
                            "evaluation": i,
                            "image": image,
                            "region": region,
                            "concept": concept,
                            "measure": name,
                            "value": value,
                        }

    def write_csv(self, path: str | Path) -> None:
        """Write `rows` as a table, whole or not at all."""
        path = Path(path)
        beside = path.with_name(path.name + ".partial")
        with beside.open("w", newline="", encoding="utf-8") as file:
            columns: list[str] = ["evaluation", "image", "region", "concept", "measure", "value"]
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(self.rows())
        os.replace(beside, path)
