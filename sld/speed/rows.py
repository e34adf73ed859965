"""The plan of a run: which rows of the network each evaluation computes, in which calls, and what is prepared once.

Rows that a guidance rule calls idle are left out. Rows with equal latents and equal texts are computed once. Images
with equal noise and texts have equal latents as long as their rules agree (`Guidance.start`), so five presets share
their warm-up.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sld.config import Numerics
from sld.guidance.base import Guidance
from sld.models.denoiser import Cond
from sld.speed.keys import KeyedUNet, TimeKeys
from sld.speed.reuse import NO_REUSE, Reuse, ReusingUNet


class Rows(NamedTuple):
    """Numbers of network rows: those that guidance rules ask for, and those that are computed.

    Of the computed rows, `shallow` pass through the last block alone (`Reuse`).
    """

    asked: int
    computed: int
    shallow: int = 0


class Call(NamedTuple):
    """One call of the network.

    Attributes:
        images: indices (u,) of the images whose latents go into the call.
        texts: indices (r * u) into the texts of the run: the first row of each image, then the second of each, and so
            on.
    """

    images: tuple[int, ...]
    texts: tuple[int, ...]


class Phase(NamedTuple):
    """Consecutive evaluations that make the same calls.

    Attributes:
        evaluations: indices of the evaluations.
        calls: of the network.
        order: indices (r * b) into the joined results of the calls: the row for each condition and image, condition by
            condition. An idle row repeats another row.
    """

    evaluations: range
    calls: tuple[Call, ...]
    order: tuple[int, ...]


def plan(
    guidance: Guidance[Any, Any, Any],
    texts: Sequence[str],
    starts: Sequence[Hashable],
    evaluations: int,
    rows_at_once: int | None = None,
    reuse: Reuse = NO_REUSE,
) -> tuple[Phase, ...]:
    """Return the phases of a run of b images: what each evaluation computes.

    Args:
        guidance: the rule.
        texts: (r * b), condition by condition.
        starts: (b,), equal for images that have equal latents at the start and equal noise later.
        evaluations: of the run.
        rows_at_once: largest number of rows of an image in one call.
        reuse: features that evaluations reuse. With any reuse, all rows are computed at every evaluation.
    """
    b, names = len(starts), guidance.conditions
    rules = [guidance.of_image(k) for k in range(b)]
    rows = [[c * b + k for c in range(len(names))] for k in range(b)]
    common = [rule.start(evaluations) for rule in rules]
    named = [
        (common[k].key, *(texts[c * b + k] for c, n in enumerate(names) if n in ("uncond", "text"))) for k in range(b)
    ]

    def sketch(i: int) -> tuple[tuple[int, tuple[int, ...]], ...]:
        """Return, for each image, the first image with equal latents, and the rows that are not idle."""
        first: dict[Hashable, int] = {}
        shared = []
        for k in range(b):
            alike = not reuse and i <= common[k].until
            shared.append(first.setdefault((starts[k], *named[k]), k) if alike else k)
        idle = [frozenset() if reuse else rule.idle(i, evaluations) for rule in rules]
        return tuple(
            (shared[k], tuple(row for row, name in zip(rows[k], names, strict=True) if name not in idle[k]))
            for k in range(b)
        )

    phases = []
    for drawn, group in groupby(range(evaluations), key=sketch):
        numbers = list(group)
        calls, order = _arrange(drawn, rows, texts, rows_at_once or len(names), equal=not reuse)
        phases.append(Phase(range(numbers[0], numbers[-1] + 1), calls, order))
    return tuple(phases)


def _arrange(
    drawn: Sequence[tuple[int, tuple[int, ...]]],
    rows: Sequence[Sequence[int]],
    texts: Sequence[str],
    most: int,
    equal: bool,
) -> tuple[tuple[Call, ...], tuple[int, ...]]:
    """Return calls for the needed rows, and the index of every row in their results.

    With `equal`, rows of an image with equal texts are computed once.
    """
    wanted: dict[int, dict[Hashable, int]] = {}  # image -> text -> the row that is computed for it
    for image, needed in drawn:
        for row in needed:
            wanted.setdefault(image, {}).setdefault(texts[row] if equal else row, row)
    parts = {}  # (image, start of a part of its rows) -> rows
    for image, distinct in wanted.items():
        standing = list(distinct.values())
        for start in range(0, len(standing), most):
            parts[image, start] = standing[start : start + most]
    calls = []
    place: dict[tuple[int, int], int] = {}  # (image, row) -> index in the results
    sizes = sorted({(start, len(part)) for (_, start), part in parts.items()})
    for start, size in sizes:
        images = [image for (image, at), part in parts.items() if at == start and len(part) == size]
        for k in range(size):
            for image in images:
                place[image, parts[image, start][k]] = len(place)
        calls.append(Call(tuple(images), tuple(parts[image, start][k] for k in range(size) for image in images)))

    def where(k: int, row: int) -> int:
        image, needed = drawn[k]
        stands = row if row in needed else needed[-1]
        return place[image, wanted[image][texts[stands] if equal else stands]]

    order = [where(k, rows[k][c]) for c in range(len(rows[0])) for k in range(len(rows))]
    return tuple(calls), tuple(order)


def count(phases: Sequence[Phase], *, invariant: bool = False, reuse: Reuse = NO_REUSE) -> Rows:
    """Count the rows of a planned run. With `invariant` numerics a call with one latent counts twice."""
    asked = computed = shallow = 0
    for phase in phases:
        asked += len(phase.evaluations) * len(phase.order)
        for call in phase.calls:
            rows = len(call.texts) * (1 + (invariant and len(call.images) == 1))
            computed += len(phase.evaluations) * rows
            shallow += sum(not reuse.deep(i) for i in phase.evaluations) * rows
    return Rows(asked, computed, shallow)


def rows_of_run(
    guidance: Guidance[Any, Any, Any], evaluations: int, batch: int, numerics: Numerics, rows_at_once: int | None = None
) -> Rows:
    """Count the rows of a run of b images that share nothing.

    Fewer are computed than the rule asks for where rows are idle, and twice as many where "invariant" numerics double a
    single image.
    """
    asked = evaluations * batch * len(guidance.conditions)
    if numerics == "reference":
        return Rows(asked, asked)
    texts = [f"{condition} {k}" for condition in guidance.conditions for k in range(batch)]
    phases = plan(guidance, texts, range(batch), evaluations, rows_at_once)
    return count(phases, invariant=numerics == "invariant")


@dataclass(frozen=True, eq=False)
class RowNetwork:
    """The network of one run, with its plan, texts and timesteps.

    Attributes:
        unet: the network.
        cond: encoded texts, r * b rows, condition by condition.
        timesteps: of the run, (n,).
        phases: the plan of the run.
        invariant: give an image the same bits in any batch. Convolution kernels compute a batch of one in another way,
            so a latent that is alone in a call is computed twice, and one result is kept. A product over several
            timesteps may round differently, so timesteps are embedded one by one.
        reuse: features that evaluations reuse.
    """

    unet: KeyedUNet
    cond: Cond
    timesteps: Tensor
    phases: tuple[Phase, ...]
    invariant: bool = False
    reuse: Reuse = NO_REUSE

    def evaluations(self, start: int) -> Iterator[tuple[int, Callable[[Tensor], Tensor]]]:
        """Yield each evaluation from `start` on, with the function that predicts its rows.

        The function takes latents (b, c, h, w) and returns predictions (r * b, c, h, w). Keys and values of texts are
        kept as long as the phase that needs them.
        """
        times = self._times()
        for phase in self.phases:
            ahead = [i for i in phase.evaluations if i >= start]
            if not ahead:
                continue
            predict = self._prepare(phase)
            for i in ahead:
                yield i, partial(predict, i, times.at(i))

    def _prepare(self, phase: Phase) -> Callable[[int, TimeKeys, Tensor], Tensor]:
        """Return the function that predicts all rows of a phase from an evaluation, its timestep and the latents."""
        calls = [self._prepare_call(call) for call in phase.calls]
        in_order = phase.order == tuple(range(len(phase.order)))
        order = torch.tensor(phase.order, device=self.timesteps.device)

        def predict(i: int, time: TimeKeys, x: Tensor) -> Tensor:
            made = [call(i, time, x) for call in calls]
            rows = made[0] if len(made) == 1 else torch.cat(made)
            return rows if in_order else rows[order]

        return predict

    @torch.no_grad()
    def _prepare_call(self, call: Call) -> Callable[[int, TimeKeys, Tensor], Tensor]:
        """Return the function that predicts the rows of a call from an evaluation, its timestep and all latents."""
        copies = 2 if self.invariant and len(call.images) == 1 else 1
        device = self.timesteps.device
        images = torch.tensor(call.images, device=device).repeat_interleave(copies)
        keys = self.unet.text_keys(self.cond[torch.tensor(call.texts, device=device).repeat_interleave(copies)])
        reusing = ReusingUNet(self.unet, self.reuse) if self.reuse else None

        def predict(i: int, time: TimeKeys, x: Tensor) -> Tensor:
            x, time = x[images], self.unet.time_of_rows(time, keys, self.invariant)
            rows = self.unet(x, time, keys) if reusing is None else reusing(i, x, time, keys)
            return rows[::copies]

        return predict

    @torch.no_grad()
    def _times(self) -> TimeKeys:
        """Return the projections of all timesteps."""
        if self.invariant:
            return TimeKeys.join([self.unet.time_keys(t) for t in self.timesteps])
        return self.unet.time_keys(self.timesteps)
