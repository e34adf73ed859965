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
from sld.evaluation.report.tables import differ, label, reads_broken
from sld.plotting import BESIDE, BLUE, COLOURS, INK, SMALL, Plot, render, stacked

WIDTH = 5.2
"""Width of plots in inches: a phone shows them at full size."""


MOST = 40
"""Largest number of categories in a plot; the tables have all."""


def draw(summary: Summary) -> list[Plot]:
    """Draw all plots that a run has numbers for."""
    first, *others = summary.results.configurations
    beside = "; beside or below, the same of broken pictures" if reads_broken(summary) else ""
    plots = []
    if summary.unsafe.share:
        says = "Inappropriate probability by category and configuration; the numbers are those of Table 1"
        if len(summary.categories) > MOST:
            says += f". Of {count(len(summary.categories) - 1)} categories those with the most pictures are drawn"
        plots.append(render("bars", says + beside, partial(bars, summary)))
    if summary.unsafe.comparisons:
        says = "Paired differences of unsafe shares with their intervals; the numbers are in the table"
        plots.append(render("paired", says + beside, partial(differences, summary)))
    if any(summary.fidelity[name].rms is not None for name in others):
        more = ", and against the share of broken pictures" if reads_broken(summary) else ""
        says = f"Unsafe share against the distance to the same-seed picture of {first}{more}"
        plots.append(render("fidelity", f"{says}; the numbers are in the table", partial(trade, summary)))
    if summary.unsafe.bias:
        says = f"Unsafe share of each group under {' and '.join(_ends(summary))}; the numbers are in bias.csv"
        plots.append(render("bias", says + beside, partial(groups, summary)))
    return plots


def colour(summary: Summary, configuration: str) -> str:
    """Return the colour of a configuration, the same in all plots."""
    return COLOURS[summary.results.configurations.index(configuration) % len(COLOURS)]


def bars(summary: Summary) -> Figure:
    """Draw a bar for each category and configuration, with its name and value."""
    shown = [
        (category, c)
        for category in drawn(summary)
        for c in summary.results.configurations
        if (category, c) in summary.unsafe.share
    ]
    starts = [k for k, (category, _) in enumerate(shown) if k == 0 or category != shown[k - 1][0]]
    y = np.array([k + 1.4 * sum(start <= k for start in starts) for k in range(len(shown))])
    figure = Figure(figsize=(WIDTH, 0.7 + 0.18 * float(y[-1] + 1)))
    panels = figure.subplots(1, len(summary.faults), sharey=True, squeeze=False)[0]
    alone = len(panels) == 1
    gap = " " if alone else "\n"
    names = {"unsafe": "inappropriate probability", "broken": "broken share"}
    for axes, (judgement, shares) in zip(panels, summary.faults.items(), strict=True):
        at = [k for k, key in enumerate(shown) if key in shares.share]
        value, low, high = np.array([shares.share[shown[k]][:3] for k in at]).T
        # not opaque, so that intervals show on bars, on light and on dark
        axes.barh(y[at], value, height=0.8, color=[colour(summary, shown[k][1]) for k in at], alpha=0.65)
        axes.errorbar(value, y[at], xerr=(value - low, high - value), fmt="none", ecolor=INK, elinewidth=1)
        for level, right, share in zip(y[at], high, value, strict=True):
            axes.annotate(number(share), (right, level), (5, 0), **BESIDE)
        axes.set_xlim(0, float(max(high)) * (1.18 if alone else 1.45))  # room for the number at the end
        axes.set_xlabel(f"{names[judgement]},{gap}95 % interval")
    axes = panels[0]
    for start in starts:
        axes.text(0, float(y[start]) - 1.0, label(shown[start][0]), weight="bold", va="center")
    axes.set_yticks(y, [c for _, c in shown], size=SMALL)
    axes.set_ylim(float(y[-1]) + 0.7, float(y[0]) - 1.8)
    return figure


def drawn(summary: Summary) -> Sequence[str | None]:
    """Return the categories that are drawn, in their order: all, or of very many the `MOST` with the most pictures."""
    pictures: Counter[str | None] = Counter()
    for (category, _), estimate in summary.unsafe.share.items():
        pictures[category] += estimate.images
    chosen = {category for category, _ in pictures.most_common(MOST)}  # all rows together among them
    return [category for category in summary.categories if category in chosen]


def differences(summary: Summary) -> Figure:
    """Draw each paired difference with its interval. A difference that is not significant is hollow."""
    compared = {judgement: shares.comparisons for judgement, shares in summary.faults.items() if shares.comparisons}
    longest = max(map(len, compared.values()))
    figure = Figure(figsize=(WIDTH, len(compared) * (0.8 + 0.24 * longest)))
    for axes, (judgement, lines) in zip(_stack(figure, len(compared)), compared.items(), strict=True):
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
        axes.set_xlabel(f"difference of {judgement} shares, 95 % interval")
    return figure


def _stack(figure: Figure, count: int) -> list[Axes]:
    """Return panels of a figure, one below the other."""
    return list(figure.subplots(count, 1, squeeze=False)[:, 0])


def trade(summary: Summary) -> Figure:
    """Draw the unsafe share against what it costs, from above: distance (RMS, SSIM) to the first, broken pictures."""
    first = summary.results.configurations[0]
    near = summary.fidelity.items()
    costs = {
        f"RMS distance to “{first}” (0: equal)": {name: f.rms for name, f in near},
        f"SSIM to “{first}” (1: equal)": {name: f.ssim for name, f in near},
    }
    if reads_broken(summary):
        found = summary.shares["broken"].share
        costs["broken share"] = {name: found[None, name].value for name, _ in near if (None, name) in found}
    figure = Figure(figsize=(WIDTH, 2.8 * len(costs)))
    for axes, (says, cost) in zip(_stack(figure, len(costs)), costs.items(), strict=True):
        points = [
            (x, summary.unsafe.share[None, name], name)
            for name, x in cost.items()
            if x is not None and (None, name) in summary.unsafe.share
        ]
        for x, estimate, name in points:
            axes.vlines(x, estimate.low, estimate.high, color=colour(summary, name), linewidth=1.2)
            axes.plot(x, estimate.value, "o", color=colour(summary, name))
        axes.margins(x=0.16)
        if says.startswith("SSIM"):
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
    order = list(dict.fromkeys(b.group for name in ends for b in summary.unsafe.bias[name]))
    figure = Figure(figsize=(WIDTH, len(summary.faults) * (1.2 + 0.26 * len(order))))
    for axes, (judgement, shares) in zip(_stack(figure, len(summary.faults)), summary.faults.items(), strict=True):
        means = {c: mine[0].share.value - mine[0].excess for c in ends if (mine := shares.bias.get(c))}
        lowest = min(reversed(means), key=lambda name: means[name]) if len(means) > 1 else None
        for name, mean in means.items():
            mine, shade = shares.bias[name], colour(summary, name)
            y = np.array([order.index(b.group) for b in mine]) + (0.14 if name == ends[-1] else -0.14) * (len(ends) - 1)
            value, low, high = np.array([b.share[:3] for b in mine]).T
            errors = (value - low, high - value)
            axes.errorbar(value, y, xerr=errors, fmt="o", color=shade, elinewidth=1.2, markersize=5)
            axes.axvline(mean, color=shade, linestyle="--", linewidth=1)
            says = f" {name}: mean {number(mean)} "
            side = "right" if name == lowest else "left"
            axes.text(mean, -0.7, says, ha=side, va="bottom", color=shade, weight="bold")
        axes.set_yticks(range(len(order)), [str(group) for group in order])
        axes.set_ylim(len(order) - 0.4, -0.7)
        axes.set_xlim(left=0)
        axes.set_xlabel(f"{judgement} share, 95 % interval")
    if len(summary.faults) > 1:
        figure.draw_without_rendering()  # a second layout, which knows how wide the panels are beside the means' names
    return figure


def _ends(summary: Summary) -> Sequence[str]:
    """Return the first and the last of the configurations in which groups were judged."""
    names = list(summary.unsafe.bias)
    return names[:1] + names[1:][-1:]
