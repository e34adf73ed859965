"""Plots of a sweep: what safety costs, the effect of one setting, and the joint effect of two settings.

Every point has its label beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import combinations, pairwise
from math import isfinite
from numbers import Real
from textwrap import shorten
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sld.ablation.labels import label_points
from sld.ablation.points import Point
from sld.ablation.sweep import Axis, Value
from sld.ablation.table import LOSSES, METRICS, Findings, Line
from sld.evaluation.formatting import number
from sld.plotting import BESIDE, BLUE, COLOURS, INK, NEUTRAL, SMALL, Plot, label_right_edge, render

WIDE, PANEL = 9.6, 3.3
"""Inches: width of two panels, height of one."""

LINE = 0.075
"""Height of a label beside a panel, as a fraction of the panel's height."""

CURVES, PLANES = 6, 3
"""Largest number of curves in a plot (more curves get another plot), and of heat maps of the same two axes."""

MOST = 4
"""Largest number of panels with all points. Broken pictures have one more, so that they take no other's place."""

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
"""Names of axes in plots, with units. An axis that is not here has the name of its field."""


@dataclass(frozen=True)
class Board:
    """The data of the plots of a sweep.

    Attributes:
        findings: of the sweep.
        lines: of the sweep's table.
    """

    findings: Findings
    lines: Sequence[Line]

    @property
    def points(self) -> tuple[Point, ...]:
        return self.findings.points

    @cached_property
    def whole(self) -> dict[tuple[str, str], Line]:
        """Lines of the table that are about all rows, by point and metric."""
        return {(line.point, line.metric): line for line in self.lines if line.by == "all"}

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of metrics that are drawn: the unsafe share, and the losses in which points differ."""
        return tuple(name for name in ("unsafe", *LOSSES) if len(self._values(name)) > (name != "unsafe"))

    @property
    def alike(self) -> tuple[str, ...]:
        """Names of losses that are not drawn, because they are equal for all points."""
        return tuple(name for name in LOSSES if len(self._values(name)) == 1)

    def _values(self, metric: str) -> set[float]:
        return {line.value for (_, name), line in self.whole.items() if name == metric}

    def at(self, point: Point, metric: str) -> tuple[float, float, float] | None:
        """Return value, low and high as they are drawn: a share of right pictures as that of wrong ones."""
        line = self.whole.get((point.name, metric))
        if line is None:
            return None
        low, high = (line.value if end is None else end for end in (line.low, line.high))
        return (1 - line.value, 1 - high, 1 - low) if METRICS[metric].inverted else (line.value, low, high)


def called(metric: str) -> str:
    """Return the name of a metric in plots."""
    return METRICS[metric].loss or METRICS[metric].says


Drawer = Callable[[Board], Iterator[Plot]]


def draw(board: Board, kinds: Sequence[str] = ()) -> list[Plot]:
    """Draw the plots of a sweep.

    Args:
        board: what they show.
        kinds: names of PLOTS in the wanted order; empty for all. A kind without data gives no plot.
    """
    return [plot for kind in kinds or PLOTS for plot in PLOTS[kind](board)]


# ------------------------------------------------------------------------------------------------------------- pareto


def _pareto(board: Board) -> Iterator[Plot]:
    losses = [name for name in board.metrics if name != "unsafe"]
    if "unsafe" in board.metrics and losses:
        says = (
            f"Unsafe share against losses, {len(board.points)} points, 95 % intervals of the share; filled and joined: "
            "points that no other point beats in both; the numbers are in the table"
        )
        yield render("pareto", says, partial(pareto, board, losses))


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the indices of the points that no other point beats, in the order of x (the Pareto front).

    A point beats another one if it is smaller in one coordinate and not larger in the other. Equal points do not beat
    each other.
    """

    def beaten(k: int) -> bool:
        x, y = points[k]
        return any(a <= x and b <= y and (a, b) != (x, y) for a, b in points)

    return sorted((k for k in range(len(points)) if not beaten(k)), key=lambda k: points[k])


def pareto(board: Board, losses: Sequence[str]) -> Figure:
    """Draw the unsafe share against losses, a panel for each."""
    figure, panels = _panels(len(losses), PANEL + 0.4 + 0.08 * max(0, len(board.points) - 10))  # room for names
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
        axes.step(*np.array(edge).T, where="post", color=BLUE, linewidth=1.2, alpha=0.6, zorder=1)
        for k, (_, x, (y, low, high)) in enumerate(shown):
            colour = BLUE if k in best else NEUTRAL
            axes.vlines(x, low, high, color=colour, linewidth=1, alpha=0.5)
            face = colour if k in best else "white"
            axes.plot(x, y, "o", color=colour, markerfacecolor=face, markersize=5, zorder=3 if k in best else 2)
        axes.set_xlabel(called(loss))
        axes.set_ylabel("unsafe share")
        left, right = axes.get_xlim()
        axes.set_xlim(left - 0.1 * (right - left), right + 0.25 * (right - left))  # room for names
        axes.set_ylim(bottom=-0.02)
    figure.draw_without_rendering()  # labels are placed around the points and lines that are drawn before
    for axes, placed in zip(panels, names, strict=True):
        label_points(axes, placed)
    return figure


def _panels(count: int, height: float) -> tuple[Figure, list[Axes]]:
    """Return a figure and its panels, at most two in a row."""
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
    """Draw every point as a line with its interval, a panel for each of the first metrics, see `MOST`."""
    metrics = board.metrics[: MOST + ("broken" in board.metrics)]
    figure = Figure(figsize=(3.0 + 2.4 * len(metrics), 0.9 + 0.26 * len(board.points)))
    panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    for axes, metric in zip(panels, metrics, strict=True):
        for y, point in enumerate(board.points):
            seen = board.at(point, metric)
            if seen is None:
                continue
            value, low, high = seen
            colour = NEUTRAL if y == 0 else BLUE
            axes.hlines(y, low, high, color=colour, linewidth=1.2)
            axes.plot(value, y, "o", color=colour, markersize=5)
            axes.annotate(number(value), (high, y), (5, 0), **{**BESIDE, "size": SMALL - 2})
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
        says = f"Effect of {_axis(axis)}, all other settings equal, with 95 % intervals; dashed: the baseline {base}"
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
    """Return families of points that differ only in their number on this axis, in the order of that number.

    The key of a family says in words what its points have in common. A point that would be alone in its family is left
    out. Families whose points lie on the most axes come first, because these are nearest to the base.
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
    """Return the columns of a point that do not depend on these axes, as a key."""
    decided = frozenset().union(*(axis.decides for axis in axes))
    return frozenset((key, repr(value)) for key, value in point.columns.items() if key not in decided)


def _common(points: Sequence[Point], *axes: Axis) -> str:
    """Return in words what these points have in common on their other axes."""
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
    """Draw a curve for each family, a panel for each metric."""
    figure, panels = _panels(len(board.metrics), PANEL)
    for axes, metric in zip(panels, board.metrics, strict=True):
        ends: list[tuple[str, float, str]] = []
        at = sorted({x for family in families.values() for x, _ in family})
        _scale(axes, at)
        for k, (says, family) in enumerate(families.items()):
            seen = [(x, board.at(point, metric)) for x, point in family]
            here = [(x, *values) for x, values in seen if values is not None]
            if not here:
                continue
            x, value, low, high = np.array(here).T
            colour = COLOURS[1:][(k + 3) % len(COLOURS[1:])]
            if axes.get_xscale() == "linear":  # shifted a little, so that intervals do not cover each other
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
                ends.append((says, float(value[-1]), colour))
        base = board.at(board.points[0], metric)
        if base is not None:
            axes.axhline(base[0], color=NEUTRAL, linestyle="--", linewidth=1)
            ends.append((board.points[0].label, base[0], NEUTRAL))
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
        label_right_edge(axes, ends, SMALL - 1, LINE)
        axes.set_xlabel(_axis(axis))
        axes.set_ylabel(called(metric), size=SMALL)
    return figure


def _scale(axes: Axes, at: Sequence[float]) -> None:
    """Set a tick at each value, and make the axis logarithmic if values would be too close to each other."""
    positive = [x for x in at if x > 0]
    closest = min((b - a for a, b in pairwise(at)), default=0.0)
    if positive and at[0] >= 0 and closest < 0.06 * (at[-1] - at[0]):
        axes.set_xscale("symlog", linthresh=positive[0], linscale=0.5)
    axes.set_xticks(at, [f"{x:g}" for x in at], size=SMALL, rotation=45 if len(at) > 6 else 0)
    axes.minorticks_off()


# ---------------------------------------------------------------------------------------------------------- heat maps


def _heatmaps(board: Board) -> Iterator[Plot]:
    for a, b in combinations(_axes(board), 2):
        for k, cells in enumerate(_planes(board, a, b)):
            where = _common(list(cells.values()), a, b)
            says = f"Joint effect of {_axis(a)} and {_axis(b)}{f', at {where}' if where else ''}; darker is less"
            more = f"-{k}" if k else ""
            yield render(f"heatmap-{_file(a, b)}{more}", says, partial(heatmap, board, a, b, cells))


Plane = Mapping[tuple[Value, Value], Point]
"""Points by their values on two axes. They differ in nothing else."""


def _planes(board: Board, a: Axis, b: Axis) -> Sequence[Plane]:
    """Return at most PLANES planes with at least two values on each axis, those with most points first."""
    planes: dict[Hashable, dict[tuple[Value, Value], Point]] = {}
    for point in board.points:
        if a in point.axes and b in point.axes:
            planes.setdefault(_others(point, a, b), {})[point.axes[a], point.axes[b]] = point
    wide = [p for p in planes.values() if min(len({key[k] for key in p}) for k in (0, 1)) > 1]
    return sorted(wide, key=len, reverse=True)[:PLANES] if board.metrics else []


def heatmap(board: Board, a: Axis, b: Axis, cells: Plane) -> Figure:
    """Draw a heat map for each metric, with a number in every cell. Axis `a` runs to the right, axis `b` upwards."""
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
    """Return numbers in rising order, and other values in their given order."""
    numbers: list[Any] = [v.value for v in values]
    return sorted(values, key=lambda v: v.value) if all(isinstance(n, Real) for n in numbers) else values


PLOTS: dict[str, Drawer] = {"pareto": _pareto, "points": _points, "curves": _curves, "heatmaps": _heatmaps}
"""Kinds of plots, by the name that a sweep asks for."""
