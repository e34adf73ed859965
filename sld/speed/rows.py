"""Which rows of the network are computed at an evaluation, in which calls, and what is prepared once.

Rows that a guidance rule calls idle are left out. Rows of equal latents under equal texts are computed once. Images
that begin alike have equal latents until their rules part (`Guidance.start`), so five presets share their warm-up.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sld.guidance.base import Guidance
from sld.models.denoiser import Cond
from sld.speed.keys import KeyedUNet, TimeKeys
from sld.speed.reuse import NO_REUSE, Reuse, ReusingUNet


class Rows(NamedTuple):
    """Rows of the network: what guidance rules ask for, and what is computed for them.

    `shallow` of the computed ones pass through the last block alone (`Reuse`).
    """

    asked: int
    computed: int
    shallow: int = 0


class Call(NamedTuple):
    """One call of the network.

    Attributes:
        images: whose latents are handed over, (u,).
        texts: indices (r * u) into the texts of a run, all images' first row before their second.
    """

    images: tuple[int, ...]
    texts: tuple[int, ...]


class Phase(NamedTuple):
    """Evaluations that make the same calls.

    Attributes:
        evaluations: one after another.
        calls: of the network.
        order: where in the calls' results, joined, stand the rows (r * b) that the rule asks for, condition by
            condition. An idle row repeats another one.
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
    """What is to be computed in a run of b images.

    Args:
        guidance: the rule.
        texts: (r * b), condition by condition.
        starts: (b,), equal for images whose latents are equal at the start, and noise later on.
        evaluations: of the run.
        rows_at_once: the most rows of an image in one call.
        reuse: what evaluations take over; if anything, all rows are computed at every evaluation.
    """
    b, names = len(starts), guidance.conditions
    rules = [guidance.of_image(k) for k in range(b)]
    rows = [[c * b + k for c in range(len(names))] for k in range(b)]
    common = [rule.start(evaluations) for rule in rules]
    named = [
        (common[k].key, *(texts[c * b + k] for c, n in enumerate(names) if n in ("uncond", "text"))) for k in range(b)
    ]

    def sketch(i: int) -> tuple[tuple[int, tuple[int, ...]], ...]:
        """For each image the one whose latents it shares, and its rows that matter."""
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
    """Calls for the distinct rows, and the place of every row in their results; `equal` ones are computed once."""
    wanted: dict[int, dict[Hashable, int]] = {}  # image -> text -> the row that stands for it
    for image, needed in drawn:
        for row in needed:
            wanted.setdefault(image, {}).setdefault(texts[row] if equal else row, row)
    parts = {}  # (image, which part of its rows) -> rows
    for image, distinct in wanted.items():
        standing = list(distinct.values())
        for start in range(0, len(standing), most):
            parts[image, start] = standing[start : start + most]
    calls = []
    place: dict[tuple[int, int], int] = {}  # (image, row) -> place in the results
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
    """Rows of a planned run; `invariant` numerics compute those of a single latent twice."""
    asked = computed = shallow = 0
    for phase in phases:
        asked += len(phase.evaluations) * len(phase.order)
        for call in phase.calls:
            rows = len(call.texts) * (1 + (invariant and len(call.images) == 1))
            computed += len(phase.evaluations) * rows
            shallow += sum(not reuse.deep(i) for i in phase.evaluations) * rows
    return Rows(asked, computed, shallow)


@dataclass(frozen=True, kw_only=True, eq=False)
class RowNetwork:
    """The predictions of a run, from a network and all that is known before the first latent.

    Attributes:
        unet: the network.
        cond: what the texts say, r * b rows, condition by condition.
        timesteps: of the run, (n,).
        phases: what is computed when.
        invariant: give an image the same bits in any batch. Convolution kernels treat a batch of one in their own way,
            so a latent that is alone in a call is computed twice, and one result kept; and a product over several
            timesteps may round differently, so they are embedded one by one.
        reuse: what evaluations take over from earlier ones.
    """

    unet: KeyedUNet
    cond: Cond
    timesteps: Tensor
    phases: tuple[Phase, ...]
    invariant: bool = False
    reuse: Reuse = NO_REUSE

    def evaluations(self, start: int) -> Iterator[tuple[int, Callable[[Tensor], Tensor]]]:
        """Each evaluation from `start` on, with what predicts the rows (r * b, c, h, w) for latents (b, c, h, w).

        Keys of texts live as long as the phase that needs them.
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
        """The rows of a phase, as they are asked for, as a function of the evaluation, its time and the latents."""
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
        """One call as a function of evaluation, time and all latents (b, c, h, w); returns (r * u, c, h, w)."""
        copies = 2 if self.invariant and len(call.images) == 1 else 1
        device = self.timesteps.device
        images = torch.tensor(call.images, device=device).repeat_interleave(copies)
        keys = self.unet.text_keys(self.cond[torch.tensor(call.texts, device=device).repeat_interleave(copies)])
        reusing = ReusingUNet(self.unet, self.reuse) if self.reuse else None

        def predict(i: int, time: TimeKeys, x: Tensor) -> Tensor:
            x = x[images]
            rows = self.unet(x, time, keys) if reusing is None else reusing(i, x, time, keys)
            return rows[::copies]

        return predict

    @torch.no_grad()
    def _times(self) -> TimeKeys:
        """Keys of all timesteps."""
        if self.invariant:
            return TimeKeys.join([self.unet.time_keys(t) for t in self.timesteps])
        return self.unet.time_keys(self.timesteps)
