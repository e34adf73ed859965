"""What every guidance rule is: a pure function of the network's rows, with a thin frozen class above it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from numbers import Real
from typing import Any, ClassVar, Generic, NamedTuple, Self, TypeVar, cast

import torch
from torch import Tensor

# public API reaches no NamedTuple within a NamedTuple
from torch.utils._pytree import keystr, tree_flatten_with_path, tree_map

Rows = TypeVar("Rows", bound=NamedTuple)
State = TypeVar("State", bound=NamedTuple)
Params = TypeVar("Params", bound=NamedTuple)


class Stateless(NamedTuple):
    """The state of a rule that remembers nothing."""


class Start(NamedTuple):
    """The beginning of a run under a rule.

    Attributes:
        until: evaluations whose guided prediction has the bits that every rule with an equal key gives it, whatever
            rows there are beside uncond and text.
        key: what these rules have in common.
    """

    until: int
    key: Hashable


class Guidance(ABC, Generic[Rows, State, Params]):
    """How the predictions under several conditions become the one that the sampler follows.

    A rule knows no network and no schedule. Everything that changes during a run is handed in and handed back, and no
    rule lets one image of a batch see another.

    Attributes:
        rows_type: the predictions that the rule needs, one field per condition, in the order uncond, text, safety.
    """

    rows_type: ClassVar[type[NamedTuple]]

    @property
    def conditions(self) -> tuple[str, ...]:
        """Names of the conditions. Whoever calls the network encodes them in this order; `split` takes the result."""
        return self.rows_type._fields

    @property
    def texts(self) -> Mapping[str, str]:
        """Condition -> its text, for those that the rule words itself. Prompt, negative prompt and safety concept of
        an image (`text`, `uncond`, `safety`) are the caller's."""
        return {}

    def split(self, predictions: Tensor) -> Rows:
        """The rows of predictions (r * b, c, h, w), condition by condition."""
        return self.named(predictions.chunk(len(self.conditions)))

    def named(self, predictions: Sequence[Tensor]) -> Rows:
        """The rows, from one prediction (b, c, h, w) for each condition."""
        return cast(Rows, self.rows_type._make(predictions))

    def idle(self, i: int, steps: int) -> frozenset[str]:
        """Conditions whose prediction at evaluation i of `steps` changes nothing in this run's latents, whatever it is.

        They need not be computed: any other row may stand in their place. Never all of them.
        """
        return frozenset()

    def start(self, steps: int) -> Start:
        """How long a run of `steps` evaluations is like that of other rules; by default unlike all from the first on.

        Lets images that begin alike share what the network computes for them.
        """
        return Start(0, None)

    def of_image(self, k: int) -> Self:
        """The rule of image k alone, where each has its own settings."""
        return self

    @abstractmethod
    def params(
        self, steps: int, batch: int, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
    ) -> Params:
        """The hyper-parameters as tensors, made once per run: 0-d, or (b, 1, 1, 1) where each image has its own.

        Args:
            steps: network evaluations of the run, which may exceed the sampler's steps: PNDM visits its second
                timestep twice, so its 50 steps are 51 evaluations.
            batch: number of images b.
            device: where the latents live.
            dtype: of real parameters; counts are int64.

        Raises:
            ValueError: the rule has settings per image, and not as many as there are images.
        """

    @abstractmethod
    def init(self, x: Tensor) -> State:
        """The state before the first evaluation, for latents x (b, c, h, w) and in their dtype and place."""

    @abstractmethod
    def __call__(self, rows: Rows, state: State, i: Tensor | int, params: Params) -> tuple[Tensor, State]:
        """The guided prediction (b, c, h, w) and the next state.

        Args:
            rows: predictions (b, c, h, w), all of the same latents at the same timestep.
            state: what `init` or the previous call returned.
            i: index of this network evaluation, from 0; as a 0-d int64 tensor it costs a compiled rule no new graph.
            params: what `params` returned.
        """

    def moved(
        self, rows: Rows, state: State, i: Tensor | int, x: Tensor, y: Tensor, a: Tensor, b: Tensor, params: Params
    ) -> State:
        """The state after the sampler has moved; the same for every rule that learns nothing from where it moved to.

        Args:
            rows: the predictions of this evaluation, as predictions of the noise.
            state: what the call of this evaluation returned.
            i: index of this network evaluation.
            x, y: latents (b, c, h, w) before and after the sampler's step.
            a, b: their alpha_bar, 0-d; equal where the sampler does not move on.
            params: what `params` returned.
        """
        return state

    # For `sld.guidance.trace`, which takes all else that it says of a rule from the rule's predictions.

    def s_g(self, params: Params) -> Tensor:
        """The scale of the text's direction; overridden by a rule whose parameters do not call it `guidance_scale`."""
        return cast(Any, params).guidance_scale

    def opened(self, params: Params) -> Params:
        """The parameters of the same run without any warm-up; overridden by a rule that has one."""
        return params

    def masks(self, rows: Rows, params: Params) -> tuple[Tensor, ...]:
        """mu of every condition but uncond and text, each (b, c, h, w) in [0, 1]: which elements it acts on.

        Overridden by a rule that has masks; empty for one that has none.
        """
        return ()


def flat(state: NamedTuple) -> dict[str, Tensor]:
    """The tensors of a state by name, in their order: "nu", or "rule.nu" and "after[0].update" where states nest."""
    return {keystr(path).removeprefix("."): tensor for path, tensor in tree_flatten_with_path(state)[0]}


def per_image(params: Sequence[Params], batch: int) -> Params:
    """The 0-d parameters of b images as one value with fields (b, 1, 1, 1).

    Raises:
        ValueError: there are not `batch` of them.
    """
    if len(params) != batch:
        raise ValueError(
            f"guidance has settings for {len(params)} images, the batch has {batch}: give one for all, or one for each"
        )
    return tree_map(lambda *column: torch.stack(column)[:, None, None, None], *params)


def require(name: str, value: float, accepts: Callable[[float], bool], expected: str) -> None:
    """Refuse a setting that is no real number (a bool is none here), is NaN, or is outside its range.

    Raises:
        ValueError: says what was expected and what came.
    """
    if isinstance(value, bool) or not isinstance(value, Real) or not accepts(value):
        raise ValueError(f"{name} must be {expected}; got {value!r}")


def require_scale(name: str, value: float) -> None:
    """Refuse a guidance scale that is negative or not finite.

    The papers ask for more than 1. Smaller scales stay usable, for ablations: 1 follows the text's prediction, 0 the
    unconditional one.

    Raises:
        ValueError: says what was expected and what came.
    """
    require(name, value, lambda s: 0 <= s < math.inf, "a finite number >= 0 (7.5 is usual, 1 follows the text alone)")
