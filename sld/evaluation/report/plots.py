"""Plots of a report. Everything in them is labelled, so that no reader needs to tell colours apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sld.evaluation.formatting import count, number
from sld.evaluation.report.summary import Summary
from sld.evaluation.report.tables import differ, label
from sld.plotting import BESIDE, BLUE, COLOURS, INK, SMALL, Plot, render, stacked

WIDTH = 5.2
"""Width of plots in inches: a phone shows them at full size."""


MOST = 40
"""Largest number of categories in a plot; the tables have all."""


def draw(summary: Summary) -> list[Plot]:
    """Draw all plots that a run has numbers for."""
    first, *others = summary.results.configurations
    plots = []
    if summary.probability:
        says = "Inappropriate probability by category and configuration; the numbers are those of Table 1"
        if len(summary.categories) > MOST:
            says += f". Of {count(len(summary.categories) - 1)} categories those with the most pictures are drawn"
        plots.append(render("bars", says, partial(bars, summary)))
    if summary.comparisons:
        says = "Paired differences of unsafe shares with their intervals; the numbers are in the table"
        plots.append(render("paired", says, partial(differences, summary)))
    if any(summary.fidelity[name].rms is not None for name in others):
        says = f"Unsafe share against the distance to the same-seed picture of {first}; the numbers are in the table"
        plots.append(render("fidelity", says, partial(trade, summary)))
    if summary.bias:
        says = f"Unsafe share of each group under {' and '.join(_ends(summary))}; the numbers are in bias.csv"
        plots.append(render("bias", says, partial(groups, summary)))
    return plots


def colour(summary: Summary, configuration: str) -> str:
    """Return the colour of a configuration, the same in all plots."""
    return COLOURS[summary.results.configurations.index(configuration) % len(COLOURS)]


def bars(summary: Summary) -> Figure:
    """Draw a bar for each category and configuration, with its name and value."""
    shown = [
        (category, c, summary.probability[category, c])
        for category in drawn(summary)
        for c in summary.results.configurations
        if (category, c) in summary.probability
    ]
    starts = [k for k, (category, *_) in enumerate(shown) if k == 0 or category != shown[k - 1][0]]
    y = np.array([k + 1.4 * sum(start <= k for start in starts) for k in range(len(shown))])
    figure = Figure(figsize=(WIDTH, 0.7 + 0.18 * float(y[-1] + 1)))
    axes = figure.add_subplot()
    value, low, high = np.array([estimate[:3] for *_, estimate in shown]).T
    # not opaque, so that intervals show on bars, on light and on dark
    axes.barh(y, value, height=0.8, color=[colour(summary, c) for _, c, _ in shown], alpha=0.65)
    axes.errorbar(value, y, xerr=(value - low, high - value), fmt="none", ecolor=INK, elinewidth=1)
    for at, right, share in zip(y, high, value, strict=True):
        axes.annotate(number(share), (right, at), (5, 0), **BESIDE)
    for start in starts:
        axes.text(0, float(y[start]) - 1.0, label(shown[start][0]), weight="bold", va="center")
    axes.set_yticks(y, [c for _, c, _ in shown], size=SMALL)
    axes.set_ylim(float(y[-1]) + 0.7, float(y[0]) - 1.8)
    axes.set_xlim(0, float(max(high)) * 1.18)  # room for the number at the end
    axes.set_xlabel("inappropriate probability, 95 % interval")
    return figure


def drawn(summary: Summary) -> Sequence[str | None]:
    """Return the categories that are drawn, in their order: all, or of very many the `MOST` with the most pictures."""
    pictures: Counter[str | None] = Counter()
    for (category, _), estimate in summary.probability.items():
        pictures[category] += estimate.images
    chosen = {category for category, _ in pictures.most_common(MOST)}  # all rows together among them
    return [category for category in summary.categories if category in chosen]


def differences(summary: Summary) -> Figure:
    """Draw each paired difference with its interval. A difference that is not significant is hollow."""
    lines = summary.comparisons
    figure = Figure(figsize=(WIDTH, 0.8 + 0.24 * len(lines)))
    axes = figure.add_subplot()
    axes.axvline(0, color=INK, linewidth=0.8)
    for y, line in enumerate(lines):
        value, low, high = line.difference[:3]
        axes.hlines(y, low, high, color=INK, linewidth=1.2)
        axes.plot(value, y, "o", color=BLUE, markerfacecolor=BLUE if differ(line) else "none")
        # on the far side of zero's line
        if value < 0:
            axes.annotate(number(value), (min(low, value), y), (-5, 0), ha="right", **BESIDE)
        else:
            axes.annotate(number(value), (max(high, value), y), (5, 0), ha="left", **BESIDE)
    axes.set_yticks(range(len(lines)), [f"{line.a} \N{MINUS SIGN} {line.b}" for line in lines])
    axes.set_ylim(len(lines) - 0.4, -0.6)
    axes.margins(x=0.22)
    axes.xaxis.set_major_locator(MaxNLocator(5))  # more ticks would run into each other
    axes.set_xlabel("difference of unsafe shares, 95 % interval")
    return figure


def trade(summary: Summary) -> Figure:
    """Draw the unsafe share against the mean distance to the first configuration: RMS above, SSIM below."""
    figure = Figure(figsize=(WIDTH, 5.6))
    first = summary.results.configurations[0]
    kinds = {"rms": f"RMS distance to “{first}” (0: equal)", "ssim": f"SSIM to “{first}” (1: equal)"}
    for axes, (kind, says) in zip(np.ravel(figure.subplots(2, 1)), kinds.items(), strict=True):
        points = [
            (getattr(near, kind), summary.probability[None, name], name)
            for name, near in summary.fidelity.items()
            if getattr(near, kind) is not None and (None, name) in summary.probability
        ]
        for x, estimate, name in points:
            axes.vlines(x, estimate.low, estimate.high, color=colour(summary, name), linewidth=1.2)
            axes.plot(x, estimate.value, "o", color=colour(summary, name))
        axes.margins(x=0.16)
        if kind == "ssim":
            axes.invert_xaxis()  # further from the first to the right, as above
        axes.set_ylim(bottom=0)
        _name_points(axes, [(x, estimate.value, name) for x, estimate, name in points])
        axes.set_xlabel(says)
        axes.set_ylabel("unsafe share")
    return figure


def _name_points(axes: Axes, points: Sequence[tuple[float, float, str]]) -> None:
    """Write names at the right of points, moved up where one would lie on another."""
    gap = 0.07 * float(np.diff(axes.get_ylim())[0])
    levels = stacked([y for _, y, _ in points], [gap] * len(points))
    for (x, _, name), level in zip(points, levels, strict=True):
        axes.annotate(name, (x, level), (6, 0), textcoords="offset points", va="center")


def groups(summary: Summary) -> Figure:
    """Draw the share of each group under the first configuration and under the last, and their means."""
    ends = _ends(summary)
    # by the first one's shares; groups that only the other has stand at the end
    order = list(dict.fromkeys(b.group for name in ends for b in summary.bias[name]))
    figure = Figure(figsize=(WIDTH, 1.2 + 0.26 * len(order)))
    axes = figure.add_subplot()
    for k, name in enumerate(ends):
        mine = summary.bias[name]
        y = np.array([order.index(b.group) for b in mine]) + (0.14 if k else -0.14) * (len(ends) - 1)
        value, low, high = np.array([b.share[:3] for b in mine]).T
        shade = colour(summary, name)
        axes.errorbar(value, y, xerr=(value - low, high - value), fmt="o", color=shade, elinewidth=1.2, markersize=5)
        mean = mine[0].share.value - mine[0].excess
        axes.axvline(mean, color=shade, linestyle="--", linewidth=1)
        says = f" {name}: mean {number(mean)} "
        axes.text(mean, -0.7, says, ha="right" if k else "left", va="bottom", color=shade, weight="bold")
    axes.set_yticks(range(len(order)), [str(group) for group in order])
    axes.set_ylim(len(order) - 0.4, -0.7)
    axes.set_xlim(left=0)
    axes.set_xlabel("unsafe share, 95 % interval")
    return figure


def _ends(summary: Summary) -> Sequence[str]:
    """Return the first and the last of the configurations in which groups were judged."""
    names = list(summary.bias)
    return names[:1] + names[1:][-1:]
