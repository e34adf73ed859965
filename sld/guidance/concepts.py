"""Safe Latent Diffusion with several concepts, each with its own text, weight, strength and warm-up.

Equations 3 and 5 to 8 are those of `sld.guidance.sld`; with one concept, every combination is bit-equal to it. How
several concepts combine is our choice, except for "select". That is CASG, conflict-aware adaptive safety guidance
(Xiang et al., CVPR 2026, arXiv 2602.20880), whose equations are numbered C1 and C2 here.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import ClassVar, NamedTuple, Self, final

import torch
from torch import Tensor

from sld.guidance.base import Params, Start, State
from sld.guidance.cfg import guided
from sld.guidance.checks import require
from sld.guidance.sld import (
    MEDIUM,
    Momentum,
    Predictions,
    SLDConfig,
    SLDParams,
    next_momentum,
    no_warmup,
    safety_mask,
    with_momentum,
)
from sld.guidance.traceable import Traceable
from sld.guidance.vectors import TINY, dot, perpendicular
from sld.spelling import named


class ConceptPredictions(NamedTuple):
    """Predictions (b, c, h, w): unconditional or of the negative prompt, of the text, and one of every concept."""

    uncond: Tensor
    text: Tensor
    concepts: tuple[Tensor, ...]


class ConceptGuidance(Traceable[ConceptPredictions, State, Params]):
    """A rule with concepts of its own. Its conditions are uncond, text, concept 0, concept 1, ..."""

    rows_type: ClassVar[type[NamedTuple]] = ConceptPredictions

    @property
    @abstractmethod
    def concept_texts(self) -> tuple[str, ...]:
        """Texts of the concepts, in the order of the rows."""

    @property
    def texts(self) -> Mapping[str, str]:
        return {f"concept {k}": text for k, text in enumerate(self.concept_texts)}

    @property
    def conditions(self) -> tuple[str, ...]:
        return ("uncond", "text", *self.texts)

    def named(self, predictions: Sequence[Tensor]) -> ConceptPredictions:
        uncond, text, *concepts = predictions
        return ConceptPredictions(uncond, text, tuple(concepts))


class Terms(NamedTuple):
    """Masks and directions that a combination works with, all (b, c, h, w).

    Attributes:
        mu: w_k mu_k, the weighted mask of every concept.
        g: g_k = e_k - e0, the direction of every concept.
        d: e_P - e0, the direction of the text.
    """

    mu: tuple[Tensor, ...]
    g: tuple[Tensor, ...]
    d: Tensor


Combination = Callable[[Terms, Sequence[Tensor]], Tensor]
"""Function (terms, on) -> the safety term (b, c, h, w) without momentum. on[k], a bool tensor, is true where concept k
acts; it broadcasts over (b, c, h, w)."""


def total(terms: Terms, on: Sequence[Tensor]) -> Tensor:
    """Sum of all w_k mu_k g_k."""
    return reduce(torch.add, _present(terms.mu, terms.g, on))


def strongest(terms: Terms, on: Sequence[Tensor]) -> Tensor:
    """Return for every element the w_k mu_k g_k of largest magnitude; the first of equal ones, NaN if one is NaN."""

    def stronger(a: Tensor, b: Tensor) -> Tensor:
        return torch.where((b.abs() > a.abs()) | b.isnan(), b, a)

    return reduce(stronger, _present(terms.mu, terms.g, on))


def selected(terms: Terms, on: Sequence[Tensor]) -> Tensor:
    """Return for every image the term of the one concept whose direction is most aligned with that of the text.

    Of equally aligned concepts it is the first. The authors' code picks one concept for the whole batch, and fails for
    a batch of more than one image. Here one is picked for every image.
    """

    def score(g: Tensor, present: Tensor) -> Tensor:
        aligned = dot(g, terms.d) / dot(g, g).sqrt().clamp(min=TINY)  # C1: <g_k, d> / |g_k|
        return torch.where(present, aligned, -torch.inf)

    first, *others = zip(map(score, terms.g, on), _present(terms.mu, terms.g, on), strict=True)
    best, gamma = first
    for rival, term in others:
        gamma = torch.where(rival > best, term, gamma)  # C2: k* = argmax_k
        best = torch.maximum(rival, best)
    return gamma


def orthogonalised(terms: Terms, on: Sequence[Tensor]) -> Tensor:
    """Sum of all w_k mu_k g_k', where g_k' is g_k without its components along g_1', ..., g_(k-1)'.

    The order is that of the concepts. The first keeps its whole direction. A component that two concepts share acts
    once, with the strength of the earlier concept; the later one lacks it even where the earlier does not act. The
    masks are computed from the whole e_k.
    """
    free: list[Tensor] = []
    for g in terms.g:
        free.append(reduce(perpendicular, free, g))  # modified Gram-Schmidt, the numerically stable form
    return reduce(torch.add, _present(terms.mu, free, on))


def _present(mu: Sequence[Tensor], g: Sequence[Tensor], on: Sequence[Tensor]) -> list[Tensor]:
    return [torch.where(present, x * m, 0) for m, x, present in zip(mu, g, on, strict=True)]


COMBINATIONS: dict[str, Combination] = {
    "sum": total,
    "maximum": strongest,
    "select": selected,
    "orthogonalised": orthogonalised,
}
"""Ways to combine concepts, by name."""


class SeveralParams(NamedTuple):
    """The hyper-parameters of SLD with several concepts as tensors, each 0-d or (b, 1, 1, 1).

    Attributes:
        weights: w_k of every concept.
        concepts: SLD's hyper-parameters of every concept; guidance scale and momentum are the same in all.
    """

    weights: tuple[Tensor, ...]
    concepts: tuple[SLDParams, ...]


def concept_masks(eps: ConceptPredictions, p: SeveralParams) -> tuple[Tensor, ...]:
    """Return mu_k (b, c, h, w) in [0, 1] of every concept, from its own safety scale and threshold."""
    return tuple(
        safety_mask(Predictions(eps.uncond, eps.text, e), sld) for e, sld in zip(eps.concepts, p.concepts, strict=True)
    )


def safe_latent_concepts(
    eps: ConceptPredictions, momentum: Tensor, i: Tensor | int, p: SeveralParams, combine: Combination
) -> tuple[Tensor, Tensor]:
    """Return the guided prediction of one step of SLD with several concepts, and the next momentum.

    There is one momentum, which gathers all concepts from the first evaluation on. As long as any concept is in its
    warm-up, the others act without momentum, because the momentum contains the concept that should not act yet.

    Args:
        eps: predictions (b, c, h, w).
        momentum: nu (b, c, h, w); zeros at i = 0.
        i: index of this network evaluation, from 0.
        p: hyper-parameters.
        combine: one of COMBINATIONS.

    Returns:
        The guided prediction and the next momentum, both (b, c, h, w).
    """
    shared = p.concepts[0]
    terms = Terms(
        mu=tuple(mu * w for mu, w in zip(concept_masks(eps, p), p.weights, strict=True)),
        g=tuple(e - eps.uncond for e in eps.concepts),
        d=eps.text - eps.uncond,
    )
    warm = [sld.warmup_steps <= i for sld in p.concepts]
    gamma = with_momentum(combine(terms, [torch.ones_like(on) for on in warm]), momentum, shared.momentum_scale)
    nu = next_momentum(momentum, gamma, shared.momentum_beta, shared.momentum_rest)
    acting = torch.where(reduce(torch.logical_and, warm), gamma, combine(terms, warm))
    return guided(eps.uncond, terms.d - acting, shared.guidance_scale), nu


@final
@dataclass(frozen=True, kw_only=True)
class Concept:
    """A concept that pictures should not show; the defaults are Medium's.

    Attributes:
        text: the concept in words.
        weight: w_k, finite and >= 0; at 0 the concept does not act, at 1 it acts as in SLD.
        safety_scale, threshold, warmup_steps, warmup_fraction: as in `SLDConfig`.

    Raises:
        ValueError: a value is out of its range.
    """

    text: str
    weight: float = 1.0
    safety_scale: float = MEDIUM.safety_scale
    threshold: float = MEDIUM.threshold
    warmup_steps: int = MEDIUM.warmup_steps
    warmup_fraction: float | None = None

    def __post_init__(self) -> None:
        require_weight("Concept: weight", self.weight)
        self.config(0.0, 0.0, 1.0)

    def config(self, momentum_scale: float, momentum_beta: float, guidance_scale: float) -> SLDConfig:
        """Return SLD's configuration for this concept alone."""
        return SLDConfig(
            safety_scale=self.safety_scale,
            threshold=self.threshold,
            momentum_scale=momentum_scale,
            momentum_beta=momentum_beta,
            warmup_steps=self.warmup_steps,
            warmup_fraction=self.warmup_fraction,
            guidance_scale=guidance_scale,
        )


def require_weight(name: str, weight: float) -> None:
    """Refuse a weight that is negative or not finite.

    Raises:
        ValueError: says what was expected and what came.
    """
    require(name, weight, lambda w: 0 <= w < torch.inf, "a finite number >= 0 (1 is usual, 0 leaves it out)")


@final
@dataclass(frozen=True)
class SafeLatentConcepts(ConceptGuidance[Momentum, SeveralParams]):
    """SLD with several concepts; `safe_latent_concepts` says how warm-up and momentum work then.

    Attributes:
        concepts: at least one. Their order matters for "orthogonalised" only.
        combination: "sum", "maximum" (the strongest term of every element), "select" (CASG: one concept per image and
            step) or "orthogonalised".
        momentum_scale, momentum_beta, guidance_scale: as in `SLDConfig`, the same for all concepts. The defaults are
            Medium's.

    Raises:
        ValueError: concepts is empty, the combination is unknown, or a value is out of its range.
    """

    concepts: tuple[Concept, ...]
    combination: str = "sum"
    momentum_scale: float = MEDIUM.momentum_scale
    momentum_beta: float = MEDIUM.momentum_beta
    guidance_scale: float = MEDIUM.guidance_scale

    def __post_init__(self) -> None:
        if not self.concepts:
            raise ValueError("SafeLatentConcepts needs at least one concept, got none; use ClassifierFreeGuidance")
        named("combination", self.combination, COMBINATIONS)
        self._configs()

    @classmethod
    def alike(cls, texts: Sequence[str], config: SLDConfig, combination: str = "sum") -> Self:
        """Return a rule whose concepts all have SLD's `config` and weight 1."""
        concepts = tuple(
            Concept(
                text=text,
                safety_scale=config.safety_scale,
                threshold=config.threshold,
                warmup_steps=config.warmup_steps,
                warmup_fraction=config.warmup_fraction,
            )
            for text in texts
        )
        return cls(concepts, combination, config.momentum_scale, config.momentum_beta, config.guidance_scale)

    @property
    def concept_texts(self) -> tuple[str, ...]:
        return tuple(concept.text for concept in self.concepts)

    def start(self, steps: int) -> Start:
        """Return the evaluations before the first concept acts, which are plain classifier-free guidance."""
        until = min(config.warmup(steps) for config in self._configs())
        return Start(until, ("classifier-free", self.guidance_scale))

    def idle(self, i: int, steps: int) -> frozenset[str]:
        """Return the concepts in their warm-up if there is no momentum; with momentum, every concept is needed."""
        if self.momentum_scale != 0:
            return frozenset()
        cold = [i < config.warmup(steps) for config in self._configs()]
        if self.combination == "orthogonalised":  # a concept that acts needs the directions of all earlier ones
            cold = [all(cold[k:]) for k in range(len(cold))]
        return frozenset(name for name, is_cold in zip(self.texts, cold, strict=True) if is_cold)

    def params(
        self, steps: int, batch: int, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
    ) -> SeveralParams:
        return SeveralParams(
            weights=tuple(torch.tensor(concept.weight, dtype=dtype, device=device) for concept in self.concepts),
            concepts=tuple(config.params(steps, device, dtype) for config in self._configs()),
        )

    def init(self, x: Tensor) -> Momentum:
        return Momentum(torch.zeros_like(x))

    def __call__(
        self, rows: ConceptPredictions, state: Momentum, i: Tensor | int, params: SeveralParams
    ) -> tuple[Tensor, Momentum]:
        eps_hat, nu = safe_latent_concepts(rows, state.nu, i, params, COMBINATIONS[self.combination])
        return eps_hat, Momentum(nu)

    def s_g(self, params: SeveralParams) -> Tensor:
        return params.concepts[0].guidance_scale

    def opened(self, params: SeveralParams) -> SeveralParams:
        return params._replace(concepts=tuple(no_warmup(p) for p in params.concepts))

    def masks(self, rows: ConceptPredictions, params: SeveralParams) -> tuple[Tensor, ...]:
        """Return mu_k without its weight; 0 for a concept of weight 0."""
        masks = concept_masks(rows, params)
        return tuple(torch.where(w > 0, mu, 0) for mu, w in zip(masks, params.weights, strict=True))

    def _configs(self) -> list[SLDConfig]:
        shared = (self.momentum_scale, self.momentum_beta, self.guidance_scale)
        return [concept.config(*shared) for concept in self.concepts]
