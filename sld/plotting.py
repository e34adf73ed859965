"""Tools for plots: colours for all readers, common settings, labels that do not overlap, and files as bytes.

Figures are drawn on their own objects, under settings that end with the drawing. So nothing changes for a program that
uses matplotlib itself, and equal numbers give equal files. Importing this module loads no matplotlib.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sld.printable import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, RULE = "#1b1f24", "#d5d9de"
"""Colours of text and of grid lines."""

COLOURS = ("#5d6570", "#c87800", "#2f8fc9", "#00936b", "#2b5fb8", "#b8578c", "#c9501a", "#8a7a10")
"""Colours of data on white, after Okabe and Ito but darker. The first, a neutral one, is for the baseline."""

DARK = ("#a9b2bd", "#f0ab3c", "#6cc1f2", "#2fc798", "#7ea6f5", "#e694c0", "#f58550", "#d8c84a")
"""The colours of COLOURS on a dark page, in the same order."""

NEUTRAL, GREEN, BLUE, ORANGE = COLOURS[0], COLOURS[3], COLOURS[4], COLOURS[6]

SMALL = 10
"""Size of numbers and of long lists of names, in points."""

BESIDE: Mapping[str, Any] = {"textcoords": "offset points", "va": "center", "size": SMALL}
"""Arguments of `Axes.annotate` for a number beside its mark."""

LOOK: Mapping[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "sld",  # ids in SVG files are random without it
    "text.parse_math": False,  # names and prompts are no formulas
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": RULE,
    "savefig.dpi": 160,
}
"""Settings of matplotlib that all figures share."""

REPORT_LOOK: Mapping[str, Any] = {
    **LOOK,
    "font.size": 11,
    "axes.edgecolor": RULE,
    "axes.spines.left": False,
    "axes.grid.axis": "x",
    "xtick.color": RULE,
    "xtick.labelcolor": INK,
    "ytick.color": RULE,
    "ytick.labelcolor": INK,
    "ytick.major.size": 0,
    "figure.constrained_layout.use": True,
}
"""Settings for plots of reports and sweeps."""

_UNDATED: Mapping[str, Mapping[str, None]] = {
    "png": {"Software": None},
    "pdf": dict.fromkeys(("CreationDate", "Creator", "Producer")),
    "svg": dict.fromkeys(("Date", "Creator", "Format", "Type")),
}
"""Metadata to leave out, by format: dates and the version of matplotlib."""

FORMATS = tuple(_UNDATED)
"""Formats in which figures can be saved."""


@dataclass(frozen=True)
class Plot:
    """A plot that has been drawn.

    Attributes:
        name: of its files, without ending.
        says: what it shows, in words.
        png: a file, on white.
        svg: a file, without background.
    """

    name: str
    says: str
    png: bytes
    svg: str


def look(settings: Mapping[str, Any] = REPORT_LOOK) -> AbstractContextManager[None]:
    """Return a context with matplotlib's default settings and these. The user's settings return after it."""
    from matplotlib import style

    return style.context(["default", dict(settings)])


def render(name: str, says: str, plot: Callable[[], Figure]) -> Plot:
    """Draw a plot under `REPORT_LOOK`, as PNG and as SVG.

    Args:
        name: of its files, without ending.
        says: what it shows, in words.
        plot: makes the figure. Equal figures give equal files.
    """
    with look():
        figure = plot()
        return Plot(name, says, save(figure, "png"), save(figure, "svg", transparent=True).decode())


def save(figure: Figure, kind: str, **options: Any) -> bytes:
    """Return a figure as the content of a file. Equal figures give equal bytes.

    Args:
        figure: drawn under the same settings as are in force now; see `look`.
        kind: one of FORMATS.
        options: of matplotlib's `savefig`.
    """
    file = io.BytesIO()
    figure.savefig(file, format=kind, metadata=dict(_UNDATED[kind]), **options)
    content = file.getvalue()
    # matplotlib writes control characters of labels as they are, and XML forbids them
    return printable(content.decode()).encode() if kind == "svg" else content


# ------------------------------------------------------------------------------------------------------------- labels


def stacked(levels: Sequence[float], heights: Sequence[float], bottom: float = float("-inf")) -> list[float]:
    """Return levels for the middles of labels so that none covers another, at the wanted levels or above.

    Args:
        levels: wanted levels of the labels, in any unit.
        heights: of the labels, in the same unit.
        bottom: lower limit of all labels.

    Returns:
        New levels, in the order of `levels`.
    """
    placed = list(levels)
    for k in sorted(range(len(levels)), key=lambda k: levels[k]):
        placed[k] = max(levels[k], bottom + heights[k] / 2)
        bottom = placed[k] + heights[k] / 2
    return placed


def label_right_edge(axes: Axes, labels: Iterable[tuple[str, float, str]], size: float, line: float) -> None:
    """Write labels beside the right edge of a plot, each at its level, or above it where another label stands.

    No label reaches below the plot.

    Args:
        axes: the plot. Its limits are final.
        labels: text, level on the y axis, and colour of each. A text may have several lines.
        size: of the text, in points.
        line: height of a line of text, as a part of the height of the plot.
    """
    bottom, top = axes.get_ylim()
    labels = list(labels)
    heights = [line * (top - bottom) * (text.count("\n") + 1) for text, _, _ in labels]
    levels = stacked([level for _, level, _ in labels], heights, bottom)
    for (text, _, colour), level in zip(labels, levels, strict=True):
        axes.annotate(
            text,
            (1, level),
            (4, 0),
            xycoords=axes.get_yaxis_transform(),
            textcoords="offset points",
            va="center",
            size=size,
            color=colour,
        )
