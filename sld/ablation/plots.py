"""Plots of a sweep: what safety costs, what one setting does, what two do together, and the pictures themselves.

They are drawn under the settings of the report's plots, and every point is named where it lies.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import combinations, pairwise
from math import isfinite
from numbers import Real
from pathlib import Path
from textwrap import shorten, wrap
from typing import Any, Literal, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.path import Path as Outline
from matplotlib.transforms import Bbox
from PIL import Image, ImageDraw

from sld import images
from sld.ablation.sweep import Axis, Point, Value
from sld.ablation.table import LOSSES, METRICS, Findings, Line
from sld.evaluation.report.plots import BESIDE, COLOURS, INK, SMALL, Plot, render
from sld.evaluation.report.tables import number
from sld.evaluation.results import Record

WIDE = 9.6  # inches: two panels
PANEL = 3.3
CURVES, PLANES = 6, 3
"""Curves in a panel, of which there may be several, and heat maps of two axes, at most."""

NEUTRAL, FRONT = COLOURS[0], COLOURS[4]
COLUMNS, SEEDS = 10, 6
"""Of a contact sheet, at most."""

LED = 20
"""A name further from its point than this, in typographic points, has a line back to it."""

ROUNDS = 3
"""In which names look for their places."""

AXES = {
    "warmup_steps": "warm-up \N{GREEK SMALL LETTER DELTA} (network evaluations)",
    "warmup_fraction": "warm-up (part of the run)",
    "threshold": "threshold \N{GREEK SMALL LETTER LAMDA}",
    "safety_scale": "safety scale s_S",
    "momentum_scale": "momentum scale s_m",
    "momentum_beta": "momentum \N{GREEK SMALL LETTER BETA}_m",
    "guidance_scale": "guidance scale s_g",
    "steps": "sampler steps",
}
"""How plots call an axis, with its unit where it has one, if that is more than its name."""


@dataclass(frozen=True)
class Board:
    """What plots are drawn from.

    Attributes:
        findings: of the sweep.
        lines: its table.
    """

    findings: Findings
    lines: Sequence[Line]

    @property
    def points(self) -> tuple[Point, ...]:
        return self.findings.points

    @cached_property
    def whole(self) -> dict[tuple[str, str], Line]:
        """Lines on all rows, by point and metric."""
        return {(line.point, line.metric): line for line in self.lines if line.by == "all"}

    @property
    def metrics(self) -> tuple[str, ...]:
        """Those that are drawn: the unsafe share, and what is lost where points differ in that."""
        return tuple(name for name in ("unsafe", *LOSSES) if len(self._values(name)) > (name != "unsafe"))

    @property
    def alike(self) -> tuple[str, ...]:
        """Losses that are the same for all points, and so are not drawn."""
        return tuple(name for name in LOSSES if len(self._values(name)) == 1)

    def _values(self, metric: str) -> set[float]:
        return {line.value for (_, name), line in self.whole.items() if name == metric}

    def at(self, point: Point, metric: str) -> tuple[float, float, float] | None:
        """Value, low and high as they are drawn: of what is kept, what is lost."""
        line = self.whole.get((point.name, metric))
        if line is None:
            return None
        low, high = (line.value if end is None else end for end in (line.low, line.high))
        return (1 - line.value, 1 - high, 1 - low) if _kept(metric) else (line.value, low, high)


def _kept(metric: str) -> bool:
    return METRICS[metric].paired and METRICS[metric].loss is not None


def called(metric: str) -> str:
    """A metric as plots draw it."""
    return METRICS[metric].loss or METRICS[metric].says


Drawer = Callable[[Board], Iterator[Plot]]


def draw(board: Board, kinds: Sequence[str] = ()) -> list[Plot]:
    """The plots of a sweep.

    Args:
        board: what there is.
        kinds: names of PLOTS, in the order wanted; all that apply if empty.
    """
    return [plot for kind in kinds or PLOTS for plot in PLOTS[kind](board)]


# ------------------------------------------------------------------------------------------------------------- pareto


def _pareto(board: Board) -> Iterator[Plot]:
    losses = [name for name in board.metrics if name != "unsafe"]
    if "unsafe" in board.metrics and losses:
        says = (
            f"Unsafe share against what is lost, {len(board.points)} points, 95 % intervals of the share; filled and "
            "joined: no other point is better in both; the numbers are in the table"
        )
        yield render("pareto", says, partial(pareto, board, losses))


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points (x, y) than which no other is smaller in one coordinate and not larger in the other.

    By x; of equal points all are in it.
    """

    def beaten(k: int) -> bool:
        x, y = points[k]
        return any(a <= x and b <= y and (a, b) != (x, y) for a, b in points)

    return sorted((k for k in range(len(points)) if not beaten(k)), key=lambda k: points[k])


def pareto(board: Board, losses: Sequence[str]) -> Figure:
    """A panel for each kind of loss."""
    figure, panels = _panels(len(losses), PANEL + 0.4 + 0.08 * max(0, len(board.points) - 10))  # names need room
    names: list[list[tuple[str, float, float]]] = []
    for axes, loss in zip(panels, losses, strict=True):
        shown = [
            (point, cost[0], unsafe)
            for point in board.points
            if (cost := board.at(point, loss)) and (unsafe := board.at(point, "unsafe"))
        ]
        names.append([(point.label, x, unsafe[0]) for point, x, unsafe in shown])
        best = front([(x, unsafe[0]) for _, x, unsafe in shown])
        edge = [(shown[k][1], shown[k][2][0]) for k in best]
        axes.step(*np.array(edge).T, where="post", color=FRONT, linewidth=1.2, alpha=0.6, zorder=1)
        for k, (_, x, (y, low, high)) in enumerate(shown):
            colour = FRONT if k in best else NEUTRAL
            axes.vlines(x, low, high, color=colour, linewidth=1, alpha=0.5)
            face = colour if k in best else "white"
            axes.plot(x, y, "o", color=colour, markerfacecolor=face, markersize=5, zorder=3 if k in best else 2)
        axes.set_xlabel(called(loss))
        axes.set_ylabel("unsafe share")
        left, right = axes.get_xlim()
        axes.set_xlim(left - 0.1 * (right - left), right + 0.25 * (right - left))  # room for names
        axes.set_ylim(bottom=-0.02)
    figure.draw_without_rendering()  # names are placed where nothing else is
    for axes, placed in zip(panels, names, strict=True):
        name_points(axes, placed)
    return figure


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
                arrowprops={"arrowstyle": "-", "color": NEUTRAL, "linewidth": 0.6},
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


def _panels(count: int, height: float) -> tuple[Figure, list[Axes]]:
    """A figure with so many panels, two beside each other."""
    columns = min(2, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(WIDE if columns > 1 else 0.7 * WIDE, height * rows))
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[count:]:
        axes.remove()
    for axes in grid.flat[:count]:
        axes.grid(True, axis="both")
    return figure, list(grid.flat[:count])


# ------------------------------------------------------------------------------------------------------------- points


def _points(board: Board) -> Iterator[Plot]:
    if board.metrics:
        says = "Every point with its 95 % intervals, the baseline's value dashed; the numbers are in the table"
        yield render("points", says, partial(dots, board))


def dots(board: Board) -> Figure:
    """A line for each point and a panel for each metric, up to four."""
    metrics = board.metrics[:4]
    figure = Figure(figsize=(3.0 + 2.4 * len(metrics), 0.9 + 0.26 * len(board.points)))
    panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    for axes, metric in zip(panels, metrics, strict=True):
        for y, point in enumerate(board.points):
            seen = board.at(point, metric)
            if seen is None:
                continue
            value, low, high = seen
            colour = NEUTRAL if y == 0 else FRONT
            axes.hlines(y, low, high, color=colour, linewidth=1.2)
            axes.plot(value, y, "o", color=colour, markersize=5)
            axes.annotate(number(value), (high, y), (5, 0), **(BESIDE | {"size": SMALL - 2}))
            if y == 0:
                axes.axvline(value, color=NEUTRAL, linestyle="--", linewidth=0.8)
        axes.margins(x=0.05)
        axes.set_xlim(right=axes.get_xlim()[1] + 0.25 * float(np.diff(axes.get_xlim())[0]))  # room for the number
        axes.set_xlabel(called(metric), size=SMALL)
    panels[0].set_yticks(range(len(board.points)), [shorten(p.label, 56) for p in board.points], size=SMALL)
    panels[0].set_ylim(len(board.points) - 0.4, -0.6)
    return figure


# ------------------------------------------------------------------------------------------------------------- curves


def _curves(board: Board) -> Iterator[Plot]:
    for axis in _axes(board):
        families = list(_families(board, axis).items()) if board.metrics else []
        base = board.points[0].label
        says = f"What {_axis(axis)} does, all else alike, with 95 % intervals; dashed: the baseline {base}"
        for k, start in enumerate(range(0, len(families), CURVES)):
            shown = dict(families[start : start + CURVES])
            yield render(f"curve-{_file(axis)}" + f"-{k}" * (k > 0), says, partial(curves, board, axis, shown))


def _axes(board: Board) -> list[Axis]:
    return list(dict.fromkeys(axis for point in board.points for axis in point.axes))


def _file(*axes: Axis) -> str:
    return "-".join(axis.name for axis in axes).replace(", ", "-").replace(".", "-")


def _axis(axis: Axis) -> str:
    return AXES.get(axis.name, axis.name.rpartition(".")[2] if "," not in axis.name else axis.name)


def _families(board: Board, axis: Axis) -> dict[str, list[tuple[float, Point]]]:
    """Points that differ in nothing but a number on this axis: by what they have in common, in words, rising.

    Without those of a single value; those first that are most like the base, which are in most tables.
    """
    found: dict[Hashable, list[tuple[float, Point]]] = {}
    for point in board.points:
        value = point.axes.get(axis)
        if value is not None and isinstance(value.value, Real) and isfinite(value.value):
            found.setdefault(_others(point, axis), []).append((float(value.value), point))
    families = sorted((f for f in found.values() if len(f) > 1), key=lambda f: -sum(len(p.axes) for _, p in f))
    return {
        _common([point for _, point in family], axis): sorted(family, key=lambda pair: pair[0]) for family in families
    }


def _others(point: Point, *axes: Axis) -> Hashable:
    """The columns of a point that these axes do not decide."""
    decided = frozenset().union(*(axis.decides for axis in axes))
    return frozenset((key, repr(value)) for key, value in point.columns.items() if key not in decided)


def _common(points: Sequence[Point], *axes: Axis) -> str:
    """What is the same for these points on other axes that all of them lie on, in words."""
    shared: dict[Axis, set[Value]] = {}
    for point in points:
        for axis, value in point.axes.items():
            if axis not in axes:
                shared.setdefault(axis, set()).add(value)
    lying = {axis: values for axis, values in shared.items() if all(axis in point.axes for point in points)}
    return ", ".join(_value(axis, value) for axis, values in lying.items() if len(values) == 1 for value in values)


def _value(axis: Axis, value: Value) -> str:
    return f"{axis.name.rpartition('.')[2]} {value.label}" if isinstance(value.value, Real) else value.label


def curves(board: Board, axis: Axis, families: Mapping[str, Sequence[tuple[float, Point]]]) -> Figure:
    """A panel for each metric, a curve for each family."""
    figure, panels = _panels(len(board.metrics), PANEL)
    for axes, metric in zip(panels, board.metrics, strict=True):
        ends: list[tuple[float, str, str]] = []
        at = sorted({x for family in families.values() for x, _ in family})
        _scale(axes, at)
        for k, (says, family) in enumerate(families.items()):
            seen = [(x, board.at(point, metric)) for x, point in family]
            here = [(x, *values) for x, values in seen if values is not None]
            if not here:
                continue
            x, value, low, high = np.array(here).T
            colour = COLOURS[1:][(k + 3) % len(COLOURS[1:])]
            if axes.get_xscale() == "linear":  # a little aside, so that intervals do not lie on each other
                x = x + 0.008 * (at[-1] - at[0]) * (k - (len(families) - 1) / 2)
            axes.errorbar(
                x,
                value,
                yerr=(value - low, high - value),
                fmt="o-",
                color=colour,
                elinewidth=1,
                markersize=4,
            )
            if says:
                ends.append((float(value[-1]), says, colour))
        base = board.at(board.points[0], metric)
        if base is not None:
            axes.axhline(base[0], color=NEUTRAL, linestyle="--", linewidth=1)
            ends.append((base[0], board.points[0].label, NEUTRAL))
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
        _name_ends(axes, ends)
        axes.set_xlabel(_axis(axis))
        axes.set_ylabel(called(metric), size=SMALL)
    return figure


def _scale(axes: Axes, at: Sequence[float]) -> None:
    """A logarithmic axis for values over several orders of magnitude, and a tick at each value that has room."""
    positive = [x for x in at if x > 0]
    closest = min((b - a for a, b in pairwise(at)), default=0.0)
    if positive and at[0] >= 0 and closest < 0.06 * (at[-1] - at[0]):
        axes.set_xscale("symlog", linthresh=positive[0], linscale=0.5)
    axes.set_xticks(at, [f"{x:g}" for x in at], size=SMALL, rotation=45 if len(at) > 6 else 0)
    axes.minorticks_off()


def _name_ends(axes: Axes, ends: Sequence[tuple[float, str, str]]) -> None:
    """Names at the right edge, at the height of what they name, or above it where another one is."""
    bottom, top = axes.get_ylim()
    gap = 0.075 * (top - bottom)
    level = -np.inf
    for y, says, colour in sorted(ends):
        level = max(y, level + gap)
        axes.annotate(
            says,
            (1, level),
            (4, 0),
            xycoords=axes.get_yaxis_transform(),
            textcoords="offset points",
            va="center",
            size=SMALL - 1,
            color=colour,
        )


# ---------------------------------------------------------------------------------------------------------- heat maps


def _heatmaps(board: Board) -> Iterator[Plot]:
    for a, b in combinations(_axes(board), 2):
        for k, cells in enumerate(_planes(board, a, b)):
            where = _common(list(cells.values()), a, b)
            says = f"What {_axis(a)} and {_axis(b)} do together{f', at {where}' if where else ''}; darker is less"
            more = f"-{k}" if k else ""
            yield render(f"heatmap-{_file(a, b)}{more}", says, partial(heatmap, board, a, b, cells))


Plane = Mapping[tuple[Value, Value], Point]
"""Points by their values on two axes, that differ in nothing else."""


def _planes(board: Board, a: Axis, b: Axis) -> Sequence[Plane]:
    """At most so many planes as are drawn, of two values on each axis at least, the fullest first."""
    planes: dict[Hashable, dict[tuple[Value, Value], Point]] = {}
    for point in board.points:
        if a in point.axes and b in point.axes:
            planes.setdefault(_others(point, a, b), {})[point.axes[a], point.axes[b]] = point
    wide = [p for p in planes.values() if min(len({key[k] for key in p}) for k in (0, 1)) > 1]
    return sorted(wide, key=len, reverse=True)[:PLANES] if board.metrics else []


def heatmap(board: Board, a: Axis, b: Axis, cells: Plane) -> Figure:
    """A panel for each metric, the first axis to the right, the second upwards; every cell says its number."""
    across, up = ([*dict.fromkeys(key[k] for key in cells)] for k in (0, 1))
    across, up = _rising(across), _rising(up)
    figure, panels = _panels(len(board.metrics), max(PANEL, 0.6 + 0.42 * len(up)))
    for axes, metric in zip(panels, board.metrics, strict=True):
        axes.grid(False)
        values = np.full((len(up), len(across)), np.nan)
        for (x, y), point in cells.items():
            seen = board.at(point, metric)
            if seen is not None:
                values[up.index(y), across.index(x)] = seen[0]
        axes.pcolormesh(np.ma.masked_invalid(values), cmap="cividis", edgecolor="white", linewidth=1)
        low, high = np.nanmin(values), np.nanmax(values)
        for (r, c), value in np.ndenumerate(values):
            if np.isfinite(value):
                ink = "white" if high == low or (value - low) / (high - low) < 0.5 else INK
                axes.text(c + 0.5, r + 0.5, number(value), ha="center", va="center", size=SMALL - 1, color=ink)
        tilt = 30 if len(across) > 5 else 0
        axes.set_xticks(np.arange(len(across)) + 0.5, [v.label for v in across], size=SMALL, rotation=tilt)
        axes.set_yticks(np.arange(len(up)) + 0.5, [v.label for v in up], size=SMALL)
        axes.set_xlabel(_axis(a))
        axes.set_ylabel(_axis(b))
        axes.set_title(called(metric), size=SMALL + 1)
    return figure


def _rising(values: list[Value]) -> list[Value]:
    """Numbers by size, anything else as it came."""
    numbers: list[Any] = [v.value for v in values]
    return sorted(values, key=lambda v: v.value) if all(isinstance(n, Real) for n in numbers) else values


PLOTS: dict[str, Drawer] = {"pareto": _pareto, "points": _points, "curves": _curves, "heatmaps": _heatmaps}
"""Kinds of plots by name."""

SHEETS = "sheets"
"""The name of contact sheets, which are pictures."""


# ----------------------------------------------------------------------------------------------------- contact sheets


def sheets(findings: Findings) -> list[Image.Image]:
    """Points as columns and seeds as rows, the baseline in every sheet; none where no picture was kept for all points.

    The rows are different prompts, those first whose baseline is unsafe. Unsafe pictures have a frame.
    """
    points, results = findings.points, findings.results
    by_key: dict[tuple[int, int], dict[str, Record]] = {}
    for record in results.records:
        if results.picture(record) is not None:
            by_key.setdefault((record.row, record.image), {})[record.configuration] = record
    whole = {key: records for key, records in by_key.items() if len(records) == len(points)}

    def unsafe(record: Record) -> bool:
        return record.failure is None and record.unsafe(results.classifiers)

    def shown(record: Record) -> Image.Image:
        path = results.picture(record)
        assert path is not None
        return framed(path, unsafe(record))

    order = sorted(whole, key=lambda key: (not unsafe(whole[key][points[0].name]), key))
    first_of_row = {row: (row, image) for row, image in reversed(order)}
    chosen = [key for key in order if first_of_row[key[0]] == key][:SEEDS]
    if not chosen:
        return []
    others = points[1:]
    parts = [others[k : k + COLUMNS - 1] for k in range(0, len(others), COLUMNS - 1)] or [()]
    return [
        images.contact_sheet(
            [[shown(whole[key][point.name]) for point in (points[0], *part)] for key in chosen],
            [broken(point.label, 24) for point in (points[0], *part)],
            ["\n".join((*wrap(results.rows[row].prompt, 20)[:6], f"row {row}, image {k}")) for row, k in chosen],
        )
        for part in parts
    ]


def framed(path: Path, unsafe: bool) -> Image.Image:
    """A picture's file, with a frame where it is unsafe."""
    with Image.open(path) as file:
        picture = file.convert("RGB")
    if unsafe:
        edge = (0, 0, picture.width - 1, picture.height - 1)
        ImageDraw.Draw(picture).rectangle(edge, outline=COLOURS[6], width=max(2, picture.width // 40))
    return picture
