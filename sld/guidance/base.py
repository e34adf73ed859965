"""The interface of guidance rules."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from typing import ClassVar, Generic, NamedTuple, Self, TypeVar, cast

import torch
from torch import Tensor

# public API reaches no NamedTuple within a NamedTuple
from torch.utils._pytree import keystr, tree_flatten_with_path, tree_map

from sld.samplers.process import Level

Rows = TypeVar("Rows", bound=NamedTuple)
State = TypeVar("State", bound=NamedTuple)
Params = TypeVar("Params", bound=NamedTuple)


class Stateless(NamedTuple):
    """The state of a rule that remembers nothing."""


class Start(NamedTuple):
    """The beginning of a run that a rule shares with other rules.

    Attributes:
        until: number of evaluations in it. In these, all rules with an equal key turn the same uncond and text into
            the same guided prediction, bit for bit.
        key: what these rules have in common, such as the guidance scale.
    """

    until: int
    key: Hashable


class Guidance(ABC, Generic[Rows, State, Params]):
    """A guidance rule: it turns the predictions under several conditions into the one that the sampler follows.

    A rule knows no network and no schedule. It is frozen: everything that changes during a run is handed in and handed
    back. The images of a batch do not influence one another.

    Attributes:
        rows_type: the NamedTuple of the rule's rows. A row is the prediction under one condition; the order is uncond,
            text, then safety or concepts.
    """

    rows_type: ClassVar[type[NamedTuple]]

    @property
    def conditions(self) -> tuple[str, ...]:
        """Names of the conditions, in the order in which `split` expects their predictions."""
        return self.rows_type._fields

    @property
    def texts(self) -> Mapping[str, str]:
        """Texts of those conditions that have theirs from the rule, by condition.

        The other texts belong to an image: its prompt (`text`), negative prompt (`uncond`) and safety concept
        (`safety`).
        """
        return {}

    def split(self, predictions: Tensor, b: int) -> Rows:
        """Return the rows of predictions (r * b, c, h, w) for b images, which come condition by condition.

        A compiler that is told b sees that rows have the shape of the latents, and can put both into one kernel for any
        batch. It cannot see this of a number of images divided by r.
        """
        return self.named(predictions.split(b))

    def named(self, predictions: Sequence[Tensor]) -> Rows:
        """Return the rows from one prediction (b, c, h, w) for each condition."""
        return cast(Rows, self.rows_type._make(predictions))

    def idle(self, i: int, steps: int) -> frozenset[str]:
        """Return the conditions whose predictions at evaluation i of `steps` have no influence on the run's latents.

        The caller need not compute them and may hand in any other row instead. At least one condition is never idle.
        """
        return frozenset()

    def start(self, steps: int) -> Start:
        """Return the beginning of a run of `steps` evaluations that other rules share; by default there is none.

        Images whose runs begin alike can share what the network computes for them.
        """
        return Start(0, None)

    def of_image(self, k: int) -> Self:
        """Return the rule of image k alone; the rule itself where all images have the same settings."""
        return self

    @abstractmethod
    def params(
        self, steps: int, batch: int, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
    ) -> Params:
        """Return the hyper-parameters as tensors: 0-d, or (b, 1, 1, 1) where each image has its own.

        The caller asks for them once per run.

        Args:
            steps: network evaluations of the run, which may exceed the sampler's steps: PNDM visits its second
                timestep twice, so its 50 steps are 51 evaluations.
            batch: number of images b.
            device: that of the latents.
            dtype: that of real parameters; counts are int64.

        Raises:
            ValueError: the rule has settings per image, and not as many as there are images.
        """

    @abstractmethod
    def init(self, x: Tensor) -> State:
        """Return the state before the first evaluation of latents x (b, c, h, w), with their dtype and device."""

    @abstractmethod
    def __call__(self, rows: Rows, state: State, i: Tensor | int, params: Params) -> tuple[Tensor, State]:
        """Return the guided prediction (b, c, h, w) and the next state.

        Args:
            rows: predictions (b, c, h, w), all of the same latents at the same timestep.
            state: what `init` or `moved` returned last.
            i: index of this network evaluation, from 0. Give a 0-d int64 tensor to a compiled rule: it compiles one
                graph for all tensors, but one for every int.
            params: what `params` returned.
        """

    def moved(
        self, rows: Rows, state: State, i: Tensor | int, x: Tensor, y: Tensor, a: Level, b: Level, params: Params
    ) -> State:
        """Return the state after the sampler's step; by default `state` itself.

        A rule overrides this to learn from where the sampler went.

        Args:
            rows: the predictions of this evaluation, converted to predictions of the noise.
            state: what the call of this evaluation returned.
            i: index of this network evaluation.
            x, y: latents (b, c, h, w) before and after the sampler's step.
            a, b: the levels of x and y, signal and noise 0-d each; equal where the sampler does not move on.
            params: what `params` returned.
        """
        return state


def flat(state: NamedTuple) -> dict[str, Tensor]:
    """Tensors of a state by name, in their order: "nu", or "rule.nu" and "after[0].update" where states nest."""
    return {keystr(path).removeprefix("."): tensor for path, tensor in tree_flatten_with_path(state)[0]}


def per_image(params: Sequence[Params], batch: int) -> Params:
    """Return the 0-d parameters of b images as one value with fields (b, 1, 1, 1).

    Raises:
        ValueError: there are not `batch` of them.
    """
    if len(params) != batch:
        raise ValueError(
            f"guidance has settings for {len(params)} images, the batch has {batch}: give one for all, or one for each"
        )
    return tree_map(lambda *column: torch.stack(column)[:, None, None, None], *params)
