"""A guidance rule in another program's denoising loop, which hands over predictions and takes the guided one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sld.guidance import Guidance, Wrapping

SPACES: dict[str, Callable[[Tensor], Tensor]] = {
    "v": torch.ones_like,
    "eps": lambda sigma: (1 - sigma).clamp(min=1e-3),
    "x0": torch.neg,
}
"""The factor that turns a difference of a flow model's v into one of each space, as a function of sigma.

x = (1 - sigma) x0 + sigma eps, so eps = x + (1 - sigma) v and x0 = x - sigma v. A rule sees x drop out of the
differences of its rows. At sigma = 1 all eps are equal, and the guided v is a limit: there 1 - sigma counts as one of
the 1000 timesteps of training.
"""


def require_usable(rule: Guidance[Any, Any, Any], space: str = "v") -> None:
    """Refuse a rule that needs more than predictions, or whole ones where `space` has only their differences.

    Raises:
        ValueError: says which rule, and what to do.
    """
    inner = rule
    while isinstance(inner, Wrapping):
        if space != "v" and getattr(inner, "after", ()):
            raise ValueError(
                f"{type(inner).__name__}: `after` changes whole predictions, and in space={space!r} only their "
                "differences are known: take space='v'"
            )
        inner = inner.rule
    if type(inner).moved is not Guidance.moved:
        raise ValueError(
            f"{type(inner).__name__} learns from where the sampler goes, which is not known here: take another "
            "rule, or sld.Pipeline"
        )


def texts_of(rule: Guidance[Any, Any, Any], concept: str) -> dict[str, str]:
    """Return the text of every condition but uncond and text: the rule's own, or else the safety concept."""
    return {name: rule.texts.get(name, concept) for name in rule.conditions if name not in ("uncond", "text")}


class Run:
    """A rule in the course of one run, in float32. Each call changes its state.

    Args:
        rule: any rule that `require_usable` lets pass.
        steps: network evaluations of the run.
    """

    def __init__(self, rule: Guidance[Any, Any, Any], steps: int) -> None:
        self.rule = rule
        self.steps = steps
        self.params: NamedTuple | None = None
        self.state: NamedTuple | None = None

    def __call__(self, predictions: Mapping[str, Tensor], i: int, factor: Tensor | float = 1.0) -> Tensor:
        """Return the guided prediction of evaluation i, of the shape and dtype of the text's.

        Args:
            predictions: of all conditions by name: images (b, c, h, w), tokens (b, n, c) or frames (b, c, f, h, w).
            i: index of the evaluation, from 0.
            factor: 0-d; what is guided is the predictions times this.
        """
        rows = self.rule.named([_as_images(predictions[name]).float() * factor for name in self.rule.conditions])
        like, text = rows[0], predictions["text"]
        if self.state is None:
            self.params = self.rule.params(self.steps, len(like), like.device, like.dtype)
            self.state = self.rule.init(like)
        guided, self.state = self.rule(rows, self.state, i, self.params)
        guided = guided / factor
        return (guided.squeeze(-1).mT if text.ndim == 3 else guided.reshape(text.shape)).to(text.dtype)


def _as_images(p: Tensor) -> Tensor:
    """View a prediction as (b, c, h, w): tokens stand in a column, frames below each other."""
    return p.mT.unsqueeze(-1) if p.ndim == 3 else p.flatten(2, -2)
