"""Runs of any guidance rule over made-up predictions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sld.guidance import CFGPredictions, ConceptPredictions, Guidance, Predictions
from sld.guidance.base import per_image

STEPS = 20


def concept_rows(
    concepts: int, batch: int = 2, dtype: torch.dtype = torch.float64, steps: int = STEPS, seed: int = 0
) -> list[ConceptPredictions]:
    """Rows that change at every evaluation."""
    generator = torch.Generator().manual_seed(seed)
    shape = (2 + concepts, batch, 4, 4, 4)
    made = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(steps)]
    return [ConceptPredictions(rows[0], rows[1], tuple(rows[2:])) for rows in made]


def contrast(steps: Sequence[ConceptPredictions]) -> list[CFGPredictions]:
    """The rows of classifier-free guidance."""
    return [CFGPredictions(e.uncond, e.text) for e in steps]


def one_concept(steps: Sequence[ConceptPredictions]) -> list[Predictions]:
    """The rows of SLD, the first concept being its safety concept."""
    return [Predictions(e.uncond, e.text, e.concepts[0]) for e in steps]


def images(steps: Sequence[ConceptPredictions], which: slice) -> list[ConceptPredictions]:
    """The rows of some images of the batch alone."""
    return [
        ConceptPredictions(e.uncond[which], e.text[which], tuple(concept[which] for concept in e.concepts))
        for e in steps
    ]


def run(rule: Guidance[Any, Any, Any], steps: Sequence[Any], params: Any = None) -> Tensor:
    """Guided predictions (steps, b, c, h, w), the state carried from one to the next."""
    text = steps[0].text
    state, guided = rule.init(text), []
    params = rule.params(len(steps), len(text), dtype=text.dtype) if params is None else params
    for i, rows in enumerate(steps):
        eps_hat, state = rule(rows, state, torch.tensor(i), params)
        guided.append(eps_hat)
    return torch.stack(guided)


def run_each(rules: Sequence[Guidance[Any, Any, Any]], steps: Sequence[Any]) -> Tensor:
    """As `run`, with the settings of one rule for every image; the rules differ in numbers alone."""
    dtype = steps[0].text.dtype
    params = per_image([rule.params(len(steps), 1, dtype=dtype) for rule in rules], len(steps[0].text))
    return run(rules[0], steps, params)
