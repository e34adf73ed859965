"""Safe Latent Diffusion with several concepts, each with its own text, weight, strength and warm-up.

The element's equations are those of `sld.guidance.sld`, to which every combination of one concept is bit-equal. How the
concepts meet is ours, except for "select": CASG, conflict-aware adaptive safety guidance (Xiang et al., CVPR 2026,
arXiv 2602.20880), numbered C1 and C2 here.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import ClassVar, NamedTuple, Self, final

import torch
from torch import Tensor

from sld.guidance.base import Guidance, Params, Start, State, require
from sld.guidance.sld import MEDIUM, Momentum, Predictions, SLDConfig, SLDParams, no_warmup, safety_mask
from sld.names import named

TINY = 1e-30
"""Keeps a direction of length zero from making NaN; far below the square of any prediction's norm."""


class ConceptPredictions(NamedTuple):
    """Predictions (b, c, h, w): unconditional or of the negative prompt, of the text, and one of every concept."""

    uncond: Tensor
    text: Tensor
    concepts: tuple[Tensor, ...]


class ConceptGuidance(Guidance[ConceptPredictions, State, Params]):
    """What the rules with concepts of their own share: the conditions are uncond, text, concept 0, concept 1, ..."""

    rows_type: ClassVar[type[NamedTuple]] = ConceptPredictions

    @property
    @abstractmethod
    def concept_texts(self) -> tuple[str, ...]:
        """The text of every concept, in the order of the rows."""

    @property
    def texts(self) -> Mapping[str, str]:
        return {f"concept {k}": text for k, text in enumerate(self.concept_texts)}

    @property
    def conditions(self) -> tuple[str, ...]:
        return ("uncond", "text", *self.texts)

    def named(self, predictions: Sequence[Tensor]) -> ConceptPredictions:
        uncond, text, *concepts = predictions
        return ConceptPredictions(uncond, text, tuple(concepts))


def dot(a: Tensor, b: Tensor) -> Tensor:
    """<a, b> of every image, (b, 1, 1, 1)."""
    return (a * b).sum(dim=(1, 2, 3), keepdim=True)


def perpendicular(a: Tensor, b: Tensor) -> Tensor:
    """a (b, c, h, w) without its component along b, image by image; a itself where b is zero."""
    return a - b * (dot(a, b) / dot(b, b).clamp(min=TINY))


class Terms(NamedTuple):
    """What a combination is given: all tensors (b, c, h, w), one per concept.

    Attributes:
        mu: w_k mu_k, the weighted mask of every concept.
        g: g_k = e_k - e0.
        d: e_P - e0.
    """

    mu: tuple[Tensor, ...]
    g: tuple[Tensor, ...]
    d: Tensor


Combination = Callable[[Terms, Sequence[Tensor]], Tensor]
"""(terms, whether each concept takes part) -> the raw safety term (b, c, h, w), without momentum."""


def total(terms: Terms, on: Sequence[Tensor]) -> Tensor:
    """The sum of all w_k mu_k g_k."""
    return reduce(torch.add, _present(terms.mu, terms.g, on))


def strongest(terms: Terms, on: Sequence[Tensor]) -> Tensor:
    """Element by element the w_k mu_k g_k that is largest in magnitude; of equal ones the first, NaN before all."""

    def stronger(a: Tensor, b: Tensor) -> Tensor:
        return torch.where((b.abs() > a.abs()) | b.isnan(), b, a)

    return reduce(stronger, _present(terms.mu, terms.g, on))


def selected(terms: Terms, on: Sequence[Tensor]) -> Tensor:
    """Image by image the term of the concept that lies closest to where the text points; of equal ones the first.

    The authors' code flattens a whole batch into one vector and so picks one concept for all its images. Here every
    image has its own.
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
    """The sum of all w_k mu_k g_k', g_k' being g_k without its components along g_1', ..., g_(k-1)'.

    The order is that of the concepts: the first keeps its direction, and what two share is taken off once, with the
    strength of the earlier. The earlier one's component is left out whether it takes part or not. The masks stay those
    of the whole e_k.
    """
    free: list[Tensor] = []
    for g in terms.g:
        free.append(reduce(perpendicular, free, g))  # Gram-Schmidt in its stable form: off what is left, one by one
    return reduce(torch.add, _present(terms.mu, free, on))


def _present(mu: Sequence[Tensor], g: Sequence[Tensor], on: Sequence[Tensor]) -> list[Tensor]:
    return [torch.where(present, x * m, 0) for m, x, present in zip(mu, g, on, strict=True)]


COMBINATIONS: dict[str, Combination] = {
    "sum": total,
    "maximum": strongest,
    "select": selected,
    "orthogonalised": orthogonalised,
}
"""How concepts can meet, by name."""


class SeveralParams(NamedTuple):
    """Hyper-parameters as tensors, each 0-d or (b, 1, 1, 1): w_k and SLD's, one entry per concept.

    Guidance scale and momentum are the same in every entry.
    """

    weights: tuple[Tensor, ...]
    concepts: tuple[SLDParams, ...]


def concept_masks(eps: ConceptPredictions, p: SeveralParams) -> tuple[Tensor, ...]:
    """mu_k (b, c, h, w) in [0, 1] of every concept, each by its own strength and threshold."""
    return tuple(
        safety_mask(Predictions(eps.uncond, eps.text, e), sld) for e, sld in zip(eps.concepts, p.concepts, strict=True)
    )


def safe_latent_concepts(
    eps: ConceptPredictions, momentum: Tensor, i: Tensor | int, p: SeveralParams, combine: Combination
) -> tuple[Tensor, Tensor]:
    """One step of SLD with several concepts.

    All concepts feed the one momentum from the first evaluation on. Until every concept is past its warm-up, those that
    are act alone and without momentum, because through it the others would act early.

    Args:
        eps: predictions (b, c, h, w).
        momentum: nu (b, c, h, w); zeros at i = 0.
        i: index of this network evaluation, from 0.
        p: hyper-parameters.
        combine: how the concepts meet, one of COMBINATIONS.

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
    gamma = combine(terms, [torch.ones_like(on) for on in warm]) + momentum * shared.momentum_scale  # Eq. 7
    nu = momentum * shared.momentum_beta + gamma * shared.momentum_rest  # Eq. 8
    acting = torch.where(reduce(torch.logical_and, warm), gamma, combine(terms, warm))
    return eps.uncond + (terms.d - acting) * shared.guidance_scale, nu  # Eq. 3


@final
@dataclass(frozen=True, kw_only=True)
class Concept:
    """A concept to be kept away from; the defaults are Medium's.

    Attributes:
        text: the concept in words.
        weight: w_k, finite and >= 0; 0 leaves the concept out, 1 is SLD's strength.
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
        """SLD's configuration for this concept alone."""
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
    """SLD with several concepts; see `safe_latent_concepts` for how warm-up and momentum work with several.

    Attributes:
        concepts: at least one; their order matters to "orthogonalised" alone.
        combination: "sum", "maximum" (the strongest term of every element), "select" (CASG: one concept per image and
            step) or "orthogonalised".
        momentum_scale, momentum_beta, guidance_scale: as in `SLDConfig`; shared. The defaults are Medium's.

    Raises:
        ValueError: there is no concept, the combination is unknown, or a value is out of its range.
    """

    concepts: tuple[Concept, ...]
    combination: str = "sum"
    momentum_scale: float = MEDIUM.momentum_scale
    momentum_beta: float = MEDIUM.momentum_beta
    guidance_scale: float = MEDIUM.guidance_scale

    def __post_init__(self) -> None:
        if not self.concepts:
            raise ValueError("SafeLatentConcepts needs a concept at least; without any, take ClassifierFreeGuidance")
        named("combination", self.combination, COMBINATIONS)
        self._configs()

    @classmethod
    def alike(cls, texts: Sequence[str], config: SLDConfig, combination: str = "sum") -> Self:
        """The rule whose concepts all have SLD's `config`, with weight 1."""
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
        """Plain classifier-free guidance until the first concept's warm-up ends."""
        until = min(config.warmup(steps) for config in self._configs())
        return Start(until, ("classifier-free", self.guidance_scale))

    def idle(self, i: int, steps: int) -> frozenset[str]:
        """Concepts in their warm-up, where there is no momentum for them to feed."""
        if self.momentum_scale != 0:
            return frozenset()
        cold = [i < config.warmup(steps) for config in self._configs()]
        if self.combination == "orthogonalised":  # a later concept that acts needs the directions of the earlier
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
        """mu_k without its weight; 0 where that is 0."""
        masks = concept_masks(rows, params)
        return tuple(torch.where(w > 0, mu, 0) for mu, w in zip(masks, params.weights, strict=True))

    def _configs(self) -> list[SLDConfig]:
        shared = (self.momentum_scale, self.momentum_beta, self.guidance_scale)
        return [concept.config(*shared) for concept in self.concepts]
