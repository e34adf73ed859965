"""Changes to the guided prediction of any rule: rescaling, adaptive projection, and a guidance interval."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, final

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from sld.guidance.base import Params, State, Stateless
from sld.guidance.cfg import CFGPredictions
from sld.guidance.checks import require
from sld.guidance.vectors import TINY, component, dot
from sld.guidance.wrapping import Wrapping
from sld.samplers.process import Level


class Afterwards(ABC, Generic[State, Params]):
    """A change to the guided prediction that needs only the text's prediction beside it.

    As a rule, it is frozen: everything that changes during a run is handed in and handed back. The images of a batch do
    not influence one another.
    """

    @abstractmethod
    def params(self, device: torch.device | str | None, dtype: torch.dtype) -> Params:
        """Return the hyper-parameters as 0-d tensors."""

    @abstractmethod
    def init(self, x: Tensor) -> State:
        """Return the state before the first evaluation of latents x (b, c, h, w), with their dtype and device."""

    @abstractmethod
    def __call__(self, eps_hat: Tensor, text: Tensor, state: State, params: Params) -> tuple[Tensor, State]:
        """Return the changed prediction and the next state, given the guided and the text's prediction (b, c, h, w)."""


class RescaleParams(NamedTuple):
    """The hyper-parameters of CFG rescale, phi and 1 - phi, each rounded once; 0-d or (b, 1, 1, 1)."""

    phi: Tensor
    rest: Tensor


def rescale(eps_hat: Tensor, text: Tensor, p: RescaleParams) -> Tensor:
    """Return eps_hat mixed with eps_hat at the standard deviation of the text's prediction; all (b, c, h, w).

    In float32 the result is bit-equal to diffusers.
    """
    ratio = text.std(dim=(1, 2, 3), keepdim=True) / eps_hat.std(dim=(1, 2, 3), keepdim=True)
    return eps_hat * ratio * p.phi + eps_hat * p.rest  # Eq. 15 and 16 of arXiv 2305.08891


@final
@dataclass(frozen=True)
class Rescale(Afterwards[Stateless, RescaleParams]):
    """CFG rescale (Lin et al., WACV 2024, arXiv 2305.08891).

    It brings the standard deviation of the guided prediction to that of the text's.

    Attributes:
        phi: share of the rescaled prediction, in [0, 1]; 0 changes nothing, the paper uses 0.7.

    Raises:
        ValueError: phi is out of its range.
    """

    phi: float = 0.7

    def __post_init__(self) -> None:
        require("Rescale: phi", self.phi, lambda phi: 0 <= phi <= 1, "in [0, 1]")

    def params(self, device: torch.device | str | None, dtype: torch.dtype) -> RescaleParams:
        phi, rest = torch.tensor([self.phi, 1 - self.phi], dtype=dtype, device=device)
        return RescaleParams(phi, rest)

    def init(self, x: Tensor) -> Stateless:
        return Stateless()

    def __call__(
        self, eps_hat: Tensor, text: Tensor, state: Stateless, params: RescaleParams
    ) -> tuple[Tensor, Stateless]:
        return rescale(eps_hat, text, params), state


class APGParams(NamedTuple):
    """The hyper-parameters of APG as tensors, each 0-d or (b, 1, 1, 1)."""

    eta: Tensor
    threshold: Tensor
    momentum: Tensor


class Running(NamedTuple):
    """The state of APG: the running update (b, c, h, w)."""

    update: Tensor


def adaptive_projection(eps_hat: Tensor, text: Tensor, running: Tensor, p: APGParams) -> tuple[Tensor, Tensor]:
    """Return the changed prediction and the running update, all (b, c, h, w).

    The lines follow Algorithm 1 of arXiv 2410.02416 and are numbered A1 to A3 here. The paper's update is (s_g - 1) d.
    Here it is the difference of the guided and the text's prediction, whatever the rule.
    """
    update = running = eps_hat - text + running * p.momentum  # A1
    norm = dot(update, update).sqrt().clamp(min=TINY)
    update = update * (p.threshold / norm).clamp(max=1)  # A2
    parallel = component(update, text)
    return text + (update - parallel + parallel * p.eta), running  # A3


@final
@dataclass(frozen=True)
class APG(Afterwards[Running, APGParams]):
    """Adaptive projected guidance (Sadat et al., ICLR 2025, arXiv 2410.02416).

    The update is the difference of the guided and the text's prediction. It gets momentum over the evaluations, its
    norm is bounded, and its component along the text's prediction is scaled. The paper changes predictions of x0; here,
    as in diffusers, it is the network's own prediction that is changed.

    Attributes:
        eta: scale of the parallel component, finite; 0 removes it, 1 keeps it.
        threshold: r > 0, the largest norm of an image's update; None for no bound. The paper's r bounds d, not
            (s_g - 1) d: under classifier-free guidance, give s_g - 1 times that r.
        momentum: beta in (-1, 1); the paper uses -0.5, and 0 means no momentum.

    Raises:
        ValueError: a value is out of its range.
    """

    eta: float = 0.0
    threshold: float | None = None
    momentum: float = -0.5

    def __post_init__(self) -> None:
        require("APG: eta", self.eta, math.isfinite, "a finite number (0 drops the parallel component, 1 keeps it)")
        if self.threshold is not None:
            require("APG: threshold", self.threshold, lambda r: r > 0, "above 0, or None for no bound")
        require("APG: momentum", self.momentum, lambda m: -1 < m < 1, "in (-1, 1)")

    def params(self, device: torch.device | str | None, dtype: torch.dtype) -> APGParams:
        threshold = math.inf if self.threshold is None else self.threshold
        return APGParams(*torch.tensor([self.eta, threshold, self.momentum], dtype=dtype, device=device))

    def init(self, x: Tensor) -> Running:
        return Running(torch.zeros_like(x))

    def __call__(self, eps_hat: Tensor, text: Tensor, state: Running, params: APGParams) -> tuple[Tensor, Running]:
        changed, running = adaptive_projection(eps_hat, text, state.update, params)
        return changed, Running(running)


class ComposedParams(NamedTuple):
    """The hyper-parameters of the parts; first evaluation of the interval and first one after it, 0-d int64."""

    rule: NamedTuple
    after: tuple[NamedTuple, ...]
    begin: Tensor
    end: Tensor


class ComposedState(NamedTuple):
    """The states of the inner rule and of everything in `after`."""

    rule: NamedTuple
    after: tuple[NamedTuple, ...]


@final
@dataclass(frozen=True)
class Composed(Wrapping[Any, ComposedState, ComposedParams]):
    """A rule whose prediction is changed afterwards, or which acts in a part of the run only, or both.

    The interval is that of Kynkäänniemi et al. (NeurIPS 2024, arXiv 2404.07724), given as fractions of the run in place
    of noise levels. Outside it the guided prediction is the text's, and all states stay as they are, momentum too. The
    warm-up of the inner rule still counts every evaluation of the run.

    Attributes:
        rule: any rule with the rows uncond and text.
        after: changes to its prediction, applied in this order.
        begin, end: evaluation i of n acts if begin <= i / n < end; 0 <= begin < end <= 1. diffusers rounds its start
            and stop down to whole evaluations; these round up, as `SLDConfig.warmup_fraction` does.

    Raises:
        ValueError: the inner rule lacks a row, a kind of change is given twice, or the interval is empty.
    """

    after: tuple[Afterwards[Any, Any], ...] = ()
    begin: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        if not set(CFGPredictions._fields) <= set(self.rule.conditions):
            raise ValueError(
                f"{type(self.rule).__name__} follows the text's prediction as it is: there is no guidance to change "
                "afterwards or to confine to an interval. Take ClassifierFreeGuidance, or a rule above it"
            )
        kinds = [type(after).__name__ for after in self.after]
        if twice := sorted({kind for kind in kinds if kinds.count(kind) > 1}):
            raise ValueError(f"{', '.join(twice)} stands twice in `after`; the second would undo the first: keep one")
        require("Composed: begin", self.begin, lambda s: 0 <= s < 1, "in [0, 1)")
        require("Composed: end", self.end, lambda s: 0 < s <= 1, "in (0, 1]")
        if self.begin >= self.end:
            raise ValueError(f"the interval [{self.begin}, {self.end}) is empty: nothing would ever act")

    def idle(self, i: int, steps: int) -> frozenset[str]:
        """Return all conditions but the text outside the interval, and inside it those idle in the inner rule."""
        if self.begin <= i / steps < self.end:
            return self.rule.idle(i, steps)
        return frozenset(self.conditions) - {"text"}

    def params(
        self, steps: int, batch: int, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
    ) -> ComposedParams:
        acts = [i for i in range(steps) if self.begin <= i / steps < self.end]
        begin, end = (acts[0], acts[-1] + 1) if acts else (steps, steps)
        return ComposedParams(
            rule=self.rule.params(steps, batch, device, dtype),
            after=tuple(after.params(device, dtype) for after in self.after),
            begin=torch.tensor(begin, dtype=torch.int64, device=device),
            end=torch.tensor(end, dtype=torch.int64, device=device),
        )

    def init(self, x: Tensor) -> ComposedState:
        return ComposedState(self.rule.init(x), tuple(after.init(x) for after in self.after))

    def __call__(
        self, rows: Any, state: ComposedState, i: Tensor | int, params: ComposedParams
    ) -> tuple[Tensor, ComposedState]:
        eps_hat, of_rule = self.rule(rows, state.rule, i, params.rule)
        of_after = []
        for after, before, own in zip(self.after, state.after, params.after, strict=True):
            eps_hat, remembered = after(eps_hat, rows.text, before, own)
            of_after.append(remembered)
        after_state = ComposedState(of_rule, tuple(of_after))
        acts = _acts(i, params)
        return torch.where(acts, eps_hat, rows.text), _where(acts, after_state, state)

    def moved(
        self,
        rows: Any,
        state: ComposedState,
        i: Tensor | int,
        x: Tensor,
        y: Tensor,
        a: Level,
        b: Level,
        params: ComposedParams,
    ) -> ComposedState:
        return _where(_acts(i, params), super().moved(rows, state, i, x, y, a, b, params), state)


def _acts(i: Tensor | int, params: ComposedParams) -> Tensor:
    return (params.begin <= i) & (i < params.end)


def _where(acts: Tensor, new: ComposedState, old: ComposedState) -> ComposedState:
    return tree_map(lambda a, b: torch.where(acts, a, b), new, old)
