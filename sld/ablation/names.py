"""Names beside the points of a plot, each where it hides nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from textwrap import wrap
from typing import Literal, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.path import Path as Outline
from matplotlib.transforms import Bbox

from sld.evaluation.report.plots import COLOURS, SMALL

LED = 20
"""A name further from its point than this, in typographic points, has a line back to it."""

ROUNDS = 3
"""In which names look for their places."""

Lead = tuple[np.ndarray, np.ndarray]
"""The ends of a straight line, (2,) each, in pixels."""


class _Tag(NamedTuple):
    """Where a name may go: shifted from its point, in typographic points, and what it takes up, in pixels."""

    offset: tuple[float, float]
    align: Literal["left", "right", "center"]
    box: Bbox
    lead: Lead | None


def name_points(axes: Axes, points: Sequence[tuple[str, float, float]]) -> None:
    """Names beside points, each at the nearest free place around its own; a line leads back from one that is far.

    Args:
        axes: whose limits are final; the figure's layout has been drawn.
        points: names and positions.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    renderer = FigureCanvasAgg(figure).get_renderer()
    room = axes.get_window_extent(renderer)
    points = _together(axes, points)
    spots = axes.transData.transform([(x, y) for _, x, y in points])
    dots = [Bbox.from_bounds(x - 5, y - 5, 10, 10) for x, y in spots]
    texts = [
        axes.annotate(
            name,
            (x, y),
            (0, 0),
            textcoords="offset points",
            size=SMALL - 2,
            va="center",
            # readable where a line runs below it; an outline would turn letters into curves in SVG
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.5},
        )
        for name, x, y in points
    ]
    tags: dict[int, _Tag] = {}
    for k in [*range(len(points))] * ROUNDS:  # in later rounds each knows where all the others are
        size = texts[k].get_window_extent(renderer)
        others = [tag for at, tag in tags.items() if at != k]
        tags[k] = min(
            _tags(spots[k], size, figure.dpi / 72),
            key=lambda tag, k=k, others=others: _cost(tag, k, others, dots, room),
        )
    for k, (text, tag) in enumerate(zip(texts, tags.values(), strict=True)):
        text.set_in_layout(False)
        text.set_position(tag.offset)
        text.set_horizontalalignment(tag.align)
        if tag.lead is not None:
            axes.annotate(
                "",
                points[k][1:],
                tag.offset,
                textcoords="offset points",
                arrowprops={"arrowstyle": "-", "color": COLOURS[0], "linewidth": 0.6},
            ).set_in_layout(False)


def _tags(spot: np.ndarray, size: Bbox, scale: float) -> Iterator[_Tag]:
    """Places around a spot, the nearest first, for a text of some size; `scale` is of pixels to typographic points."""
    for radius in (7, 12, 18, 26, 36, 48, 62, 80, 100, 125):
        for angle in (0, 180, 45, -45, 135, -135, 90, -90, 22, -22, 158, -158, 68, -68, 112, -112):
            dx, dy = radius * np.cos(np.radians(angle)), radius * np.sin(np.radians(angle))
            align = "left" if dx > 1 else "right" if dx < -1 else "center"
            left = {"left": 0, "right": -size.width, "center": -size.width / 2}[align]
            end = spot + np.array((dx, dy)) * scale
            box = Bbox.from_bounds(end[0] + left, end[1] - size.height / 2, size.width, size.height)
            yield _Tag((dx, dy), align, box, (spot, end) if radius > LED else None)


def _cost(tag: _Tag, k: int, others: Sequence[_Tag], dots: Sequence[Bbox], room: Bbox) -> float:
    """How bad a place is for the name of dot k: what it hides, what its line crosses, whose it seems to be."""
    box, boxes = tag.box, [*dots, *(other.box for other in others)]
    cost = float(np.hypot(*tag.offset))
    cost += 50 * sum(_overlap(box, other) for other in boxes)
    cost += 500 * max(room.x0 - box.x0, box.x1 - room.x1, room.y0 - box.y0, box.y1 - room.y1, 0.0)
    cost += 60 * (int(np.argmin([_gap(box, dot) for dot in dots])) != k)
    leads = [other.lead for other in others if other.lead is not None]
    cost += 500 * sum(_through(box, lead) for lead in leads)
    if tag.lead is not None:
        cost += 5000 * sum(_cross(tag.lead, lead) for lead in leads)
        cost += 500 * sum(_through(other, tag.lead) for other in boxes if other is not dots[k])
    return cost


def _together(axes: Axes, points: Sequence[tuple[str, float, float]]) -> list[tuple[str, float, float]]:
    """Points that lie on each other as one, with all their names below each other."""
    spots = axes.transData.transform([(x, y) for _, x, y in points])
    lead = [int(np.argmax(np.hypot(*(spots - spot).T) < 4)) for spot in spots]
    return [
        ("\n".join(broken(points[k][0], 28) for k, of in enumerate(lead) if of == first), *points[first][1:])
        for first in dict.fromkeys(lead)
    ]


def broken(label: str, width: int) -> str:
    """A label in lines of at most `width` characters, broken behind commas where that will do."""
    made = [""]
    for part in label.split(", "):
        longer = f"{made[-1]}, {part}" if made[-1] else part
        if len(longer) <= width or not made[-1]:
            made[-1] = longer
        else:
            made[-1] += ","
            made.append(part)
    return "\n".join(line for part in made for line in wrap(part, width))


def _cross(one: Lead, other: Lead) -> bool:
    """Whether two straight lines between positions (2,) cross."""

    def apart(line: Lead, ends: Lead) -> bool:
        (x, y), sides = line[1] - line[0], [end - line[0] for end in ends]
        return (x * sides[0][1] - y * sides[0][0]) * (x * sides[1][1] - y * sides[1][0]) < 0

    return apart(one, other) and apart(other, one)


def _through(box: Bbox, line: Lead) -> bool:
    """Whether a straight line between positions (2,) runs through a box."""
    return Outline(line).intersects_bbox(box, filled=False)


def _gap(box: Bbox, dot: Bbox) -> float:
    """How far the middle of a dot is from a box, in pixels."""
    x, y = (dot.x0 + dot.x1) / 2, (dot.y0 + dot.y1) / 2
    return float(np.hypot(max(box.x0 - x, x - box.x1, 0), max(box.y0 - y, y - box.y1, 0)))


def _overlap(a: Bbox, b: Bbox) -> float:
    """The area that two boxes share, in square pixels."""
    width = min(a.x1, b.x1) - max(a.x0, b.x0)
    height = min(a.y1, b.y1) - max(a.y0, b.y0)
    return max(width, 0.0) * max(height, 0.0)
