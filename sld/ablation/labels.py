"""Labels beside the points of a plot, placed so that they hide as little as possible.

Two libraries were tried on the plot of all rules and on many random points. adjustText 1.4 wrote labels on each other.
textalloc 1.2 covered points, and left some labels far away where nearer places were free.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from textwrap import wrap
from typing import Literal, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.path import Path as Outline
from matplotlib.transforms import Bbox

from sld.plotting import NEUTRAL, SMALL

FAR = 20
"""Least distance in typographic points at which a line connects the label with its point."""

ROUNDS = 3
"""Number of rounds in which each label is placed. From the second round on, all other labels have a place."""

Lead = tuple[np.ndarray, np.ndarray]
"""Ends of the straight line from a point to its label, (2,) each, in pixels."""


class _Place(NamedTuple):
    """A place where a label may go.

    Attributes:
        offset: from the label's point, in typographic points.
        align: of the text. box: that the text takes up, in pixels.
        lead: the line from the label to the point, if the place is far.
    """

    offset: tuple[float, float]
    align: Literal["left", "right", "center"]
    box: Bbox
    lead: Lead | None


def label_points(axes: Axes, points: Sequence[tuple[str, float, float]]) -> None:
    """Write a label beside each point, at the best place around it. A line connects a point with a label that is far.

    Equal points give equal places.

    Args:
        axes: the plot. Its limits are final, and the figure has been laid out (`Figure.draw_without_rendering`).
        points: label, x and y of each. Points at the same position share a label.
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
            label,
            (x, y),
            (0, 0),
            textcoords="offset points",
            size=SMALL - 2,
            va="center",
            # keeps text readable above a line; an outline would turn letters into curves in SVG
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.5},
        )
        for label, x, y in points
    ]
    chosen: dict[int, _Place] = {}
    for k in [*range(len(points))] * ROUNDS:
        places = _places(spots[k], texts[k].get_window_extent(renderer), figure.dpi / 72)
        others = [place for at, place in chosen.items() if at != k]
        chosen[k] = _best(places, lambda place, k=k, others=others: _cost(place, k, others, dots, room))
    for k, (text, place) in enumerate(zip(texts, chosen.values(), strict=True)):
        text.set_in_layout(False)
        text.set_position(place.offset)
        text.set_horizontalalignment(place.align)
        if place.lead is not None:
            axes.annotate(
                "",
                points[k][1:],
                place.offset,
                textcoords="offset points",
                arrowprops={"arrowstyle": "-", "color": NEUTRAL, "linewidth": 0.6},
            ).set_in_layout(False)


def _best(places: Iterator[_Place], cost: Callable[[_Place], float]) -> _Place:
    """Return the place with the lowest cost, the nearest of equal ones. Places come in the order of their distance.

    A place costs at least its distance, so the search ends early.
    """
    best = next(places)
    least = cost(best)
    for place in places:
        if np.hypot(*place.offset) > least:
            break
        if (price := cost(place)) < least:
            best, least = place, price
    return best


def _places(spot: np.ndarray, size: Bbox, scale: float) -> Iterator[_Place]:
    """Yield places around a point, the nearest first.

    Args:
        spot: where the point is, (2,), in pixels.
        size: of the text, in pixels.
        scale: pixels per typographic point.
    """
    for radius in (7, 12, 18, 26, 36, 48, 62, 80, 100, 125):
        for angle in (0, 180, 45, -45, 135, -135, 90, -90, 22, -22, 158, -158, 68, -68, 112, -112):
            dx, dy = radius * np.cos(np.radians(angle)), radius * np.sin(np.radians(angle))
            align = "left" if dx > 1 else "right" if dx < -1 else "center"
            left = {"left": 0, "right": -size.width, "center": -size.width / 2}[align]
            end = spot + np.array((dx, dy)) * scale
            box = Bbox.from_bounds(end[0] + left, end[1] - size.height / 2, size.width, size.height)
            yield _Place((dx, dy), align, box, (spot, end) if radius > FAR else None)


def _cost(place: _Place, k: int, others: Sequence[_Place], dots: Sequence[Bbox], room: Bbox) -> float:
    """Return how bad a place is for the label of point k.

    Distance costs, and so does what the label hides, a line that crosses something, and another point that is nearer.
    """
    box, boxes = place.box, [*dots, *(other.box for other in others)]
    cost = float(np.hypot(*place.offset))
    cost += 50 * sum(_overlap(box, other) for other in boxes)
    cost += 500 * max(room.x0 - box.x0, box.x1 - room.x1, room.y0 - box.y0, box.y1 - room.y1, 0.0)
    cost += 60 * (int(np.argmin([_gap(box, dot) for dot in dots])) != k)
    leads = [other.lead for other in others if other.lead is not None]
    cost += 500 * sum(_through(box, lead) for lead in leads)
    if place.lead is not None:
        cost += 5000 * sum(_cross(place.lead, lead) for lead in leads)
        cost += 500 * sum(_through(other, place.lead) for other in boxes if other is not dots[k])
    return cost


def _together(axes: Axes, points: Sequence[tuple[str, float, float]]) -> list[tuple[str, float, float]]:
    """Return points in which those within 4 pixels are merged. The merged label has one line for each label."""
    spots = axes.transData.transform([(x, y) for _, x, y in points])
    lead = [int(np.argmax(np.hypot(*(spots - spot).T) < 4)) for spot in spots]
    return [
        ("\n".join(broken(points[k][0], 28) for k, of in enumerate(lead) if of == first), *points[first][1:])
        for first in dict.fromkeys(lead)
    ]


def broken(label: str, width: int) -> str:
    """Return a label in lines of at most `width` characters, broken after commas where possible."""
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
    """Return whether two straight lines cross."""

    def apart(line: Lead, ends: Lead) -> bool:
        (x, y), sides = line[1] - line[0], [end - line[0] for end in ends]
        return (x * sides[0][1] - y * sides[0][0]) * (x * sides[1][1] - y * sides[1][0]) < 0

    return apart(one, other) and apart(other, one)


def _through(box: Bbox, line: Lead) -> bool:
    """Return whether a straight line runs through a box."""
    return Outline(line).intersects_bbox(box, filled=False)


def _gap(box: Bbox, dot: Bbox) -> float:
    """Return how far the middle of a dot is from a box, in pixels."""
    x, y = (dot.x0 + dot.x1) / 2, (dot.y0 + dot.y1) / 2
    return float(np.hypot(max(box.x0 - x, x - box.x1, 0), max(box.y0 - y, y - box.y1, 0)))


def _overlap(a: Bbox, b: Bbox) -> float:
    """Return the area that two boxes share, in square pixels."""
    width = min(a.x1, b.x1) - max(a.x0, b.x0)
    height = min(a.y1, b.y1) - max(a.y0, b.y0)
    return max(width, 0.0) * max(height, 0.0)
