"""The points of a sweep for a model: checked requests, and the fields in which they differ."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from sld.ablation.sweep import Axis, Draft, Value
from sld.batching import require_possible
from sld.evaluation.protocol import configuration, describe
from sld.pipeline import Pipeline
from sld.request import Request


@dataclass(frozen=True)
class Point:
    """A point of a sweep: one configuration.

    Attributes:
        name, label: see `Draft`.
        request: the request that the runner samples.
        axes: its value on each axis. If several tables of the sweep give this configuration, the axes of all of them.
        same: names of all drafts of this configuration; its own name comes first.
    """

    name: str
    label: str
    request: Request
    axes: Mapping[Axis, Value]
    same: tuple[str, ...]

    @property
    def columns(self) -> dict[str, Any]:
        """The fields of the point as one row of plain values. With another rule the fields of SLD are absent."""
        values = {"reading": self.request.reading, **asdict(self.request.reuse), **describe(self.request)}
        guidance, rule = values.pop("guidance"), values.pop("rule", None)
        if rule is None:
            return {**guidance, **values}
        return {**values, "rule": json.dumps(rule, ensure_ascii=False)}


def resolve(drafts: Iterable[Draft], common: Request, guidance_scale: float, pipe: Pipeline) -> tuple[Point, ...]:
    """Return the points of drafts. Each is checked as far as possible without the network.

    Drafts of the same configuration become one point with the name of the first draft. So each picture is made once,
    and counts on the axes of all these drafts.

    Args:
        drafts: the baseline first.
        common: fields that no setting gives. Its prompt and seed are not used.
        guidance_scale: s_g of points that give none, also of their rules.
        pipe: the model.

    Raises:
        ValueError: a field is unknown or cannot have its value, or two points share a name; names the point.
    """
    points: dict[Request, Point] = {}
    names: dict[str, Request] = {}
    for draft in drafts:
        try:
            request = _configuration(draft, common, guidance_scale)
        except (ValueError, TypeError) as error:
            raise ValueError(f"the point {draft.name!r} is not possible: {error}") from error
        if request not in points:
            require_possible(pipe, request, f"the point {draft.name!r}")
        if names.setdefault(draft.name, request) != request:
            raise ValueError(
                f'two points are called {draft.name!r}: give values labels, as in {{label = "short", value = …}}'
            )
        known = points.get(request)
        if known is None:
            points[request] = Point(draft.name, draft.label, request, draft.axes, (draft.name,))
        else:
            same = tuple(dict.fromkeys((*known.same, draft.name)))
            points[request] = replace(known, axes={**known.axes, **draft.axes}, same=same)
    return tuple(points.values())


def _configuration(draft: Draft, common: Request, guidance_scale: float) -> Request:
    return configuration(common, draft.name, {"guidance_scale": guidance_scale, **draft.settings})


def differing(points: Sequence[Point]) -> list[str]:
    """Return the columns in which points differ, in the order of a point's columns."""
    every = dict.fromkeys(key for point in points for key in point.columns)
    return [key for key in every if len({repr(point.columns.get(key)) for point in points}) > 1]


def listing(points: Sequence[Point]) -> str:
    """Return the points and the fields in which they differ as text, a line for each point."""
    keys = differing(points)
    cells = [["", *keys], *([p.name, *(_short(p.columns.get(key)) for key in keys)] for p in points)]
    widths = [max(len(row[k]) for row in cells) for k in range(len(keys) + 1)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    merged = [f"{p.name} is also {', '.join(p.same[1:])}" for p in points if len(p.same) > 1]
    return "\n".join([*lines, *merged])


def _short(value: Any) -> str:
    text = "-" if value is None else str(value)
    return text if len(text) <= 24 else f"{text[:22]} …"
