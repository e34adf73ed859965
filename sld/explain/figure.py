"""Figures of `sld explain` and `sld conflicts`, on a white page, with a label at each line, map and axis."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from sld.explain.runs import Explanation, Run
from sld.files import write_whole
from sld.guidance.trace import Trace
from sld.plotting import BLUE, COLOURS, FORMATS, GREEN, INK, LOOK, NEUTRAL, ORANGE, label_right_edge, look, save

GAMMA, NU, TIMES = "\N{GREEK SMALL LETTER GAMMA}", "\N{GREEK SMALL LETTER NU}", "\N{MULTIPLICATION SIGN}"

WIDTH, BETWEEN, BELOW = 9.6, 0.6, 0.5
"""Inches: width of the figure, space between film strips and panels, space below the panels."""

LEFT, RIGHT = 0.08, 0.98
"""Left and right edge of the panels, as fractions of the width."""

CONCEPTS = (ORANGE, BLUE, GREEN, COLOURS[5], COLOURS[7], COLOURS[1], COLOURS[2])
"""Colours of concepts, the same in all panels."""

LINE = 0.06
"""Height of a line of small text, as a fraction of the height of a panel of `conflicts`."""

SETTINGS = {
    **LOOK,
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.edgecolor": INK,
    "axes.linewidth": 0.6,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "lines.linewidth": 1.4,
}
"""Settings of matplotlib for these figures."""


def require_format(path: Path) -> None:
    """Refuse a file name whose ending names no format of figures, before a run begins.

    Raises:
        ValueError: the file name ends in none of FORMATS.
    """
    if path.suffix.lower().removeprefix(".") not in FORMATS:
        raise ValueError(f"a figure ends in .{', .'.join(FORMATS)}; got {path.name!r}")


def write(plot: Callable[[], Figure], path: Path) -> None:
    """Draw a figure and write it, whole or not at all, in the format that the file name ends in.

    Equal figures give equal files.

    Raises:
        ValueError: the file name ends in none of FORMATS.
        OSError: the file cannot be written.
    """
    require_format(path)
    with look(SETTINGS):
        content = save(plot(), path.suffix.lower().removeprefix("."), bbox_inches="tight", pad_inches=0.1)
    write_whole(path, content)


# -------------------------------------------------------------------------------------------------------- explain


def explain(e: Explanation, name: str) -> Figure:
    """Return the figure of `sld explain`: film strips, where safety guidance acts, and its measures over the run.

    A film strip shows the run without guidance, another one that with guidance. If the run has no guidance, the figure
    has one film strip, and the gap on which guidance would act.

    Args:
        e: the runs to show.
        name: of the strength of guidance, such as "strong".
    """
    strips = [(name, e.guided)] if e.plain is None else [("without", e.plain), (name, e.guided)]
    columns, films = len(e.shown) + 1, len(strips) + (e.plain is not None)
    films_high = films * (RIGHT - LEFT) * WIDTH / columns * e.request.height / e.request.width  # inches
    panels_high = 4.6 if e.plain else 2.0
    high = films_high + BETWEEN + panels_high + BELOW
    figure = Figure(figsize=(WIDTH, high))
    upper, lower = figure.add_gridspec(
        2,
        1,
        height_ratios=(films_high, panels_high),
        hspace=2 * BETWEEN / (films_high + panels_high),
        left=LEFT,
        right=RIGHT,
        top=1,
        bottom=BELOW / high,
    )
    strip = upper.subgridspec(films, columns, wspace=0.05, hspace=0.05)
    cells = [[figure.add_subplot(strip[row, column]) for column in range(columns)] for row in range(films)]
    for row, (says, run) in zip(cells, strips, strict=False):
        _strip(row, says, run)
    _head(figure, cells[0], e, name)
    if e.plain is None:
        panels, draws = [figure.add_subplot(lower)], [_gaps]
    else:
        _maps(figure, cells[-1], e)
        where, *others = lower.subgridspec(2, 3, wspace=0.42, hspace=0.5)
        _accumulated(figure, figure.add_subplot(where.subgridspec(1, 2, width_ratios=(4, 1))[0]), e)
        panels = [figure.add_subplot(panel) for panel in others]
        draws = [_shares, _sizes, _cosine, _gaps, _momentum]
    for panel, draw in zip(panels, draws, strict=True):
        _time(panel, e)
        draw(panel, e)
    return figure


def _strip(row: Sequence[Axes], says: str, run: Run) -> None:
    for axes, picture in zip(row, [*run.heading, run.picture], strict=True):
        _bare(axes)
        axes.imshow(picture)
    row[0].set_ylabel(says)


def _head(figure: Figure, row: Sequence[Axes], e: Explanation, name: str) -> None:
    """Write prompt and settings above the strips, then the two parts of the run, then the evaluations."""
    for axes, i in zip(row, e.shown, strict=False):
        axes.set_title(f"i = {i}", loc="center")
    row[-1].set_title("picture", loc="center")
    if e.plain is not None:
        for words, shade, acts in (("warm-up", NEUTRAL, False), ("guided", ORANGE, True)):
            members = [axes for axes, i in zip(row, e.shown, strict=False) if (i >= e.warmup) == acts]
            if members:
                _bracket(figure, members[0], members[-1], words, shade)
    r = e.request
    concepts = "; ".join(e.guided.trace.concepts)
    says = f"away from “{concepts}” ({name})" if e.plain else f"off; the concept looked at is “{concepts}”"
    how = (
        f"{says}; seed {r.seed}, {r.sampler}, {e.evaluations} evaluations, guidance scale {r.guidance.guidance_scale:g}"
    )
    prompt, settings = textwrap.wrap(f"“{r.prompt}”", 90), textwrap.wrap(how, 140)
    lines = [(text, "bold", 11) for text in prompt] + [(text, "normal", 9) for text in settings]
    above = 40 if e.plain else 22  # points
    for k, (text, weight, size) in enumerate(reversed(lines)):
        at = (0, above + 14 * k)
        row[0].annotate(
            text, (0, 1), at, xycoords="axes fraction", textcoords="offset points", weight=weight, size=size
        )


def _bracket(figure: Figure, left: Axes, right: Axes, words: str, shade: str) -> None:
    """Draw a line over the strips from one column to another, with its name in the middle."""
    x0, x1, inch = left.get_position().x0, right.get_position().x1, 1 / figure.get_figheight()
    y = left.get_position().y1 + 0.24 * inch
    line = Line2D((x0, x1), (y, y), transform=figure.transFigure, color=shade, linewidth=1.6, solid_capstyle="butt")
    figure.add_artist(line)
    figure.text((x0 + x1) / 2, y + 0.03 * inch, words, ha="center", va="bottom", color=shade)


def _maps(figure: Figure, row: Sequence[Axes], e: Explanation) -> None:
    """Draw |gamma| over the pictures, on one scale. Gamma of the warm-up is drawn too, with a label that says so."""
    trace = e.guided.trace
    would = trace.measures.would_map[:, 0].numpy()
    most = _most(would[list(e.shown)])
    for axes, i, picture in zip(row, e.shown, e.guided.heading, strict=False):
        _bare(axes)
        _overlay(axes, picture, would[i] / most, trace.measures.driver[i, 0].numpy())
        if i < e.warmup:
            axes.text(0.5, 0.06, "held back", transform=axes.transAxes, ha="center", size=7, **_PLATE)
    row[0].set_ylabel(f"|{GAMMA}|")
    row[-1].set_axis_off()
    _scale(figure, row[-1].inset_axes((0.02, 0.04, 0.1, 0.92)), trace, most, f"|{GAMMA}|, in ε")


def _scale(figure: Figure, axes: Axes, trace: Trace, most: float, says: str) -> None:
    shades = LinearSegmentedColormap.from_list("ink", ["white", CONCEPTS[0] if len(trace.concepts) == 1 else INK])
    bar = figure.colorbar(ScalarMappable(Normalize(0, most), shades), cax=axes)
    bar.ax.tick_params(labelsize=7)
    bar.locator = MaxNLocator(3)
    bar.set_label(says, size=8)


_PLATE: dict[str, Any] = {"bbox": {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 1.0}}


def _most(values: np.ndarray) -> float:
    """Return the upper end of a scale, above 99 % of the values."""
    return max(float(np.nanquantile(values, 0.99)), 1e-12)


def _overall_driver(trace: Trace) -> np.ndarray:
    """Return the index of the concept that acts most at each position over all evaluations, (h, w)."""
    acts, who = trace.measures.applied_map[:, 0].numpy(), trace.measures.driver[:, 0].numpy()
    by_concept = np.stack([(acts * (who == k)).sum(0) for k in range(len(trace.concepts))])
    return by_concept.argmax(0)


def _overlay(axes: Axes, picture: np.ndarray, share: np.ndarray, who: np.ndarray) -> None:
    """Draw a picture in pale grey, and over it the strength of guidance in the colour of the strongest concept."""
    grey = picture.mean(axis=2, keepdims=True).repeat(3, axis=2) / 255
    axes.imshow(1 - 0.55 * (1 - grey))
    colours = np.array([to_rgb(c) for c in CONCEPTS])[np.maximum(who, 0) % len(CONCEPTS)]
    ink = np.concatenate([colours, 0.9 * np.clip(share, 0, 1)[..., None]], axis=2)
    height, width = picture.shape[:2]
    axes.imshow(ink, extent=(-0.5, width - 0.5, height - 0.5, -0.5), interpolation="bilinear")


def _bare(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def _accumulated(figure: Figure, axes: Axes, e: Explanation) -> None:
    """Draw the sum of all guidance over the picture, with its scale."""
    trace = e.guided.trace
    total = trace.measures.applied_map[:, 0].sum(0).numpy()
    _bare(axes)
    _overlay(axes, e.guided.picture, total / _most(total), _overall_driver(trace))
    axes.set_anchor("W")
    colours = " (colours: beside)" if len(trace.concepts) > 1 else ""
    axes.set_title(f"where it acted, in sum{colours}" if total.any() else "it acted nowhere")
    if total.any():
        _scale(figure, axes.inset_axes((1.04, 0, 0.05, 1)), trace, _most(total), f"Σ |{GAMMA}| over the run, in ε")


def _time(axes: Axes, e: Explanation) -> None:
    """Draw the x axis that all curves share, with the warm-up."""
    axes.set_xlim(0, max(1, e.evaluations - 1))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("evaluation i")
    if e.plain is None or e.warmup == 0:
        return
    axes.axvspan(0, e.warmup, color=NEUTRAL, alpha=0.12, linewidth=0)
    if e.warmup < e.evaluations:
        axes.axvline(e.warmup, color=NEUTRAL, linewidth=1, linestyle=(0, (3, 2)))


def _by_concept(axes: Axes, trace: Trace, values: Tensor) -> None:
    """Draw a line for each concept, of values (s, k)."""
    for k, concept in enumerate(trace.concepts):
        axes.plot(values[:, k], color=CONCEPTS[k % len(CONCEPTS)], label=textwrap.shorten(concept, 24))


def _shares(axes: Axes, e: Explanation) -> None:
    m = e.guided.trace.measures
    axes.set_ylim(0, 1.02)
    if len(e.guided.trace.concepts) == 1:
        axes.set_title("share of elements pulled")
        axes.plot(m.active[:, 0, 0, 0], color=ORANGE, label="active, μ > 0")
        axes.plot(m.saturated[:, 0, 0, 0], color=BLUE, linestyle="--", label="saturated, μ = 1")
    else:
        axes.set_title("share of elements pulled, μ > 0")
        _by_concept(axes, e.guided.trace, m.active[:, 0, 0])
    axes.set_ylabel("share")
    warms_up = e.plain is not None and e.warmup > 0
    bottom = 0.22 if warms_up else 0  # two lines of words stand below the legend
    axes.legend(bbox_to_anchor=(0, bottom, 1, 1 - bottom), framealpha=0.85, edgecolor="none", fontsize=8)
    if warms_up:
        words = f"acts from\ni = {e.warmup} on" if e.warmup < e.evaluations else "warm-up: it never acts"
        near_end = e.warmup > 0.7 * e.evaluations
        axes.annotate(
            words,
            (min(e.warmup, e.evaluations - 1), 0.02),
            (-4 if near_end else 4, 0),
            textcoords="offset points",
            ha="right" if near_end else "left",
            va="bottom",
            size=8,
            color=NEUTRAL,
        )


def _sizes(axes: Axes, e: Explanation) -> None:
    m = e.guided.trace.measures
    axes.plot(m.applied[:, 0, 0], color=ORANGE, label="as it acts")
    if e.warmup:
        axes.plot(m.would[:, 0, 0], color=ORANGE, linestyle=(0, (2, 1.5)), label="if there were no warm-up")
        axes.legend(frameon=False, fontsize=8, loc="upper left")
    axes.set_ylim(0, 1.35 * float(m.would.nan_to_num().max()) + 1e-12)  # with room for the legend
    axes.set_title(f"size of {GAMMA} beside the text's d")
    axes.set_ylabel(f"|{GAMMA}| / |d|")


def _cosine(axes: Axes, e: Explanation) -> None:
    axes.axhline(0, color=INK, linewidth=0.6)
    axes.plot(e.guided.trace.measures.cosine[:, 0, 0], color=ORANGE)
    axes.set_ylim(-1, 1)
    axes.set_title(f"direction of {GAMMA} against the text's d")
    axes.set_ylabel(f"cos({GAMMA}, d)")


def _gaps(axes: Axes, e: Explanation) -> None:
    gap = e.guided.trace.measures.gap[:, 0, 0]  # (s, k, 5)
    axes.set_ylabel("$e_P - e_S$, in units of ε", parse_math=True)
    if gap.shape[1] == 1:
        axes.set_title("gap: median, 50 % and 90 % bands")
        low, lower, middle, upper, high = gap[:, 0].T.numpy()
        i = np.arange(e.evaluations)
        axes.fill_between(i, low, high, color=ORANGE, alpha=0.2, linewidth=0)
        axes.fill_between(i, lower, upper, color=ORANGE, alpha=0.4, linewidth=0)
        axes.plot(i, middle, color=ORANGE)
    else:
        axes.set_title("median gap of each concept")
        _by_concept(axes, e.guided.trace, gap[:, :, 2])
    _threshold(axes, e)


def _threshold(axes: Axes, e: Explanation) -> None:
    """Draw lambda as a line. If it lies outside the plot, write on which side."""
    if e.plain is None:
        return
    low, high = axes.get_ylim()
    at = e.request.guidance.threshold
    if low < at < high:
        axes.axhline(at, color=INK, linewidth=1, linestyle=(0, (3, 2)))
    where = "" if low < at < high else " (below)" if at <= low else " (above)"
    axes.annotate(
        f"λ = {at:g}{where}",
        (0.98, at if not where else high),
        (0, 2 if not where else -2),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        ha="right",
        va="bottom" if not where else "top",
        size=8,
        **_PLATE,
    )
    axes.set_ylim(low, high)


def _momentum(axes: Axes, e: Explanation) -> None:
    axes.plot(e.guided.trace.measures.nu[:, 0, 0], color=ORANGE)
    axes.set_ylim(bottom=0)
    axes.set_title("momentum")
    axes.set_ylabel(f"|{NU}|, in units of ε")


# ------------------------------------------------------------------------------------------------------ conflicts

TEXT = "prompt"
"""Name of the prompt's direction d in tables and plots."""


def conflict_table(trace: Trace) -> str:
    """Return mean cosines over evaluations and images as lines of text: the prompt's direction first, then concepts."""
    names = [f"{k}  {name}" for k, name in enumerate([TEXT, *trace.concepts])]
    mean = trace.measures.conflict.nanmean((0, 1))
    width = max(map(len, names))
    head = " " * width + "".join(f"{k:>7}" for k in range(len(names)))
    rows = [f"{name:<{width}}" + "".join(f"{v:7.2f}" for v in row) for name, row in zip(names, mean, strict=True)]
    return "\n".join([head, *rows])


def conflicts(trace: Trace, prompt: str) -> Figure:
    """Return the figure of `sld conflicts`: mean cosines as a matrix, and cosines by evaluation.

    One panel has cosines of concepts with the prompt, another one those between concepts.
    """
    names = [TEXT, *trace.concepts]
    by_time = trace.measures.conflict.nanmean(1).numpy()  # (s, 1 + k, 1 + k)
    size = len(names)
    figure = Figure(figsize=(10.5, 4.2))
    matrix, with_text, between = figure.subplots(1, 3, width_ratios=(1.15, 1, 1))
    figure.subplots_adjust(left=0.14, right=0.93, wspace=0.75, bottom=0.25)
    figure.suptitle("\n".join(textwrap.wrap(f"“{prompt}”", 110)), x=0.01, ha="left", weight="bold", size=11)
    _matrix(matrix, by_time.mean(0), names)
    for axes in (with_text, between):
        axes.axhline(0, color=INK, linewidth=0.6)
        axes.set_ylim(-1, 1)
        axes.set_xlim(0, max(1, len(by_time) - 1))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("evaluation i")
        axes.set_ylabel("cosine")
    for k in range(1, size):
        with_text.plot(by_time[:, 0, k], color=CONCEPTS[(k - 1) % len(CONCEPTS)])
    _label_ends(with_text, [(names[k], by_time[:, 0, k], CONCEPTS[(k - 1) % len(CONCEPTS)]) for k in range(1, size)])
    with_text.set_title("concept against prompt")
    pairs = [(j, k) for k in range(1, size) for j in range(1, k)]
    pairs.sort(key=lambda pair: by_time[:, pair[0], pair[1]].mean())
    for j, k in pairs:
        between.plot(by_time[:, j, k], color=NEUTRAL, alpha=0.6, linewidth=1)
    extremes = dict.fromkeys([pairs[0], pairs[-1]])  # the pair least alike, the pair most alike
    named = list(zip(extremes, (ORANGE, BLUE), strict=False))
    for (j, k), shade in named:
        between.plot(by_time[:, j, k], color=shade)
    _label_ends(between, [(f"{names[j]}\n{TIMES} {names[k]}", by_time[:, j, k], shade) for (j, k), shade in named])
    between.set_title("concept against concept")
    return figure


def _matrix(axes: Axes, mean: np.ndarray, names: Sequence[str]) -> None:
    axes.imshow(mean, cmap="PuOr_r", vmin=-1, vmax=1)
    axes.grid(False)
    for (row, column), value in np.ndenumerate(mean):
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", color="white" if abs(value) > 0.7 else INK)
    axes.set_xticks(range(len(names)), map(str, range(len(names))))
    axes.set_yticks(range(len(names)), ["\n".join(textwrap.wrap(f"{k}  {name}", 22)) for k, name in enumerate(names)])
    axes.tick_params(length=0)
    axes.set_title("mean over the run")


def _label_ends(axes: Axes, lines: Sequence[tuple[str, np.ndarray, str]]) -> None:
    """Write the name of each line beside its right end. A line is its name, its values (s,) and its colour."""
    label_right_edge(axes, [(_narrow(name), float(values[-1]), shade) for name, values, shade in lines], 8, LINE)


def _narrow(name: str) -> str:
    return "\n".join(line for part in name.splitlines() for line in textwrap.wrap(part, 16))
