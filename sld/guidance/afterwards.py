"""What can be done to a guided prediction afterwards, whatever rule made it: rescale, APG, and a guidance interval."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, final

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from sld.guidance.base import Guidance, Params, State, Stateless, require
from sld.guidance.cfg import CFGPredictions
from sld.guidance.concepts import TINY, dot


class Afterwards(ABC, Generic[State, Params]):
    """A change of the guided prediction that needs nothing but the text's own prediction beside it.

    As with `Guidance`: frozen, everything that changes during a run is handed in and handed back, and no image of a
    batch sees another.
    """

    @abstractmethod
    def params(self, device: torch.device | str | None, dtype: torch.dtype) -> Params:
        """The hyper-parameters as 0-d tensors."""

    @abstractmethod
    def init(self, x: Tensor) -> State:
        """The state before the first evaluation, for latents x (b, c, h, w) and in their dtype and place."""

    @abstractmethod
    def __call__(self, eps_hat: Tensor, text: Tensor, state: State, params: Params) -> tuple[Tensor, State]:
        """The changed prediction and the next state, from the guided one and the text's, each (b, c, h, w)."""


class RescaleParams(NamedTuple):
    """phi and 1 - phi, rounded once each; 0-d or (b, 1, 1, 1)."""

    phi: Tensor
    rest: Tensor


def rescale(eps_hat: Tensor, text: Tensor, p: RescaleParams) -> Tensor:
    """eps_hat (b, c, h, w), mixed with itself at the text's standard deviation; in float32 bit-equal to diffusers."""
    ratio = text.std(dim=(1, 2, 3), keepdim=True) / eps_hat.std(dim=(1, 2, 3), keepdim=True)
    return eps_hat * ratio * p.phi + eps_hat * p.rest  # Eq. 15 and 16 of arXiv 2305.08891


@final
@dataclass(frozen=True)
class Rescale(Afterwards[Stateless, RescaleParams]):
    """CFG rescale (Lin et al., WACV 2024, arXiv 2305.08891): the guided prediction at the text's standard deviation.

    Attributes:
        phi: how much of the rescaled prediction is mixed in, in [0, 1]; 0 changes nothing, 0.7 is the paper's.

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
    """The prediction with a tamed update, and the running update; all (b, c, h, w).

    Lines follow Algorithm 1 of arXiv 2410.02416, numbered A1 to A3 here. Its update is (s_g - 1) d; here it is whatever
    the rule adds to the text's prediction.
    """
    update = running = eps_hat - text + running * p.momentum  # A1
    norm = dot(update, update).sqrt().clamp(min=TINY)
    update = update * (p.threshold / norm).clamp(max=1)  # A2
    parallel = text * (dot(update, text) / dot(text, text).clamp(min=TINY))
    return text + (update - parallel + parallel * p.eta), running  # A3


@final
@dataclass(frozen=True)
class APG(Afterwards[Running, APGParams]):
    """Adaptive projected guidance (Sadat et al., ICLR 2025, arXiv 2410.02416).

    The update is what the rule adds to the text's prediction. It is averaged over steps, its norm is bounded, and its
    component along the text's prediction is scaled. The paper does so to predictions of x0; as in diffusers, here it
    is done to what the network predicts.

    Attributes:
        eta: scale of the parallel component, finite; 0 drops it, 1 keeps it.
        threshold: r > 0, the largest norm of an image's update, None for no bound. The paper's r bounds the update
            before it is scaled: under classifier-free guidance, give s_g - 1 times that r.
        momentum: beta, finite with magnitude below 1; negative in the paper (-0.5), 0 for none.

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
    """Those of the parts, and where the interval begins and ends, in network evaluations."""

    rule: NamedTuple
    after: tuple[NamedTuple, ...]
    begin: Tensor
    end: Tensor


class ComposedState(NamedTuple):
    """The states of the parts."""

    rule: NamedTuple
    after: tuple[NamedTuple, ...]


@final
@dataclass(frozen=True)
class Composed(Guidance[Any, ComposedState, ComposedParams]):
    """A rule, what is done to its prediction afterwards, and the part of the run in which all of that acts.

    The interval is that of Kynkäänniemi et al. (NeurIPS 2024, arXiv 2404.07724), in parts of the run in place of noise
    levels. Outside it the text's prediction is followed alone and nothing is remembered: momentum waits. A warm-up
    counts on.

    Attributes:
        rule: any rule with the rows uncond and text.
        after: applied to its prediction in this order.
        begin, end: evaluation i of n acts where begin <= i / n < end; 0 <= begin < end <= 1. diffusers rounds its start
            and stop down to whole evaluations; these round up, as `SLDConfig.warmup_fraction` does.

    Raises:
        ValueError: the parts do not go together, or the interval is empty.
    """

    rule: Guidance[Any, Any, Any]
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

    @property
    def conditions(self) -> tuple[str, ...]:
        return self.rule.conditions

    @property
    def texts(self) -> Mapping[str, str]:
        return self.rule.texts

    def named(self, predictions: Sequence[Tensor]) -> Any:
        return self.rule.named(predictions)

    def idle(self, i: int, steps: int) -> frozenset[str]:
        """Outside the interval everything but the text; inside it what the rule says."""
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
        a: Tensor,
        b: Tensor,
        params: ComposedParams,
    ) -> ComposedState:
        of_rule = self.rule.moved(rows, state.rule, i, x, y, a, b, params.rule)
        return _where(_acts(i, params), state._replace(rule=of_rule), state)

    def s_g(self, params: ComposedParams) -> Tensor:
        return self.rule.s_g(params.rule)

    def opened(self, params: ComposedParams) -> ComposedParams:
        return params._replace(rule=self.rule.opened(params.rule))

    def masks(self, rows: Any, params: ComposedParams) -> tuple[Tensor, ...]:
        return self.rule.masks(rows, params.rule)


def _acts(i: Tensor | int, params: ComposedParams) -> Tensor:
    return (params.begin <= i) & (i < params.end)


def _where(acts: Tensor, new: ComposedState, old: ComposedState) -> ComposedState:
    return tree_map(lambda a, b: torch.where(acts, a, b), new, old)
