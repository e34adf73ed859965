"""What all plots share: settings that end with the drawing, equal and well-formed files, labels that do not overlap.

Mutants seen to fail here: control characters left in SVG, a date in files, random ids, the user's settings in plots,
labels left where they overlap, labels that reach below the plot.
"""

import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from itertools import pairwise

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sld.plotting import FORMATS, label_right_edge, look, render, save, stacked


def labelled(text):
    figure = Figure(figsize=(3, 2))
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1])
    axes.set_title(text)
    axes.set_yticks([0, 1], [text, text])
    return figure


def test_importing_it_loads_no_matplotlib():
    program = "import sys, sld.plotting; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


@pytest.mark.filterwarnings("ignore:Glyph")  # a box stands in the picture for what no font has
def test_labels_with_control_characters_and_markup_leave_an_svg_well_formed():
    text = "a\x00\x01\x0b\x1b\x7f</text><script>&amp;"
    root = ElementTree.fromstring(render("name", "says", lambda: labelled(text)).svg.encode())
    assert [e for e in root.iter() if e.tag.endswith("script")] == []
    assert sum("".join(e.itertext()) == "a\ufffd\ufffd\ufffd\ufffd\ufffd</text><script>&amp;" for e in root.iter()) >= 3


@pytest.mark.parametrize("kind", FORMATS)
def test_equal_figures_give_equal_files_which_name_no_date_and_no_version(kind):
    def drawn():
        with look():
            return save(labelled("a & b"), kind)

    before = dict(matplotlib.rcParams)
    first = drawn()
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "svg.hashsalt": None}):
        assert drawn() == first
    assert dict(matplotlib.rcParams) == before
    assert matplotlib.__version__.encode() not in first and b"Date" not in first


def test_stacked_labels_stand_at_their_levels_or_above_and_keep_their_order():
    rng = np.random.default_rng(0)
    for _ in range(50):
        levels, heights = rng.uniform(size=8).tolist(), rng.uniform(0.01, 0.3, size=8).tolist()
        placed = stacked(levels, heights, 0.0)
        order = np.argsort(levels)
        assert np.array_equal(order, np.argsort(placed))
        assert all(new >= old for new, old in zip(placed, levels, strict=True))
        assert min(p - h / 2 for p, h in zip(placed, heights, strict=True)) >= -1e-12
        for below, above in pairwise(order):
            assert placed[above] - heights[above] / 2 >= placed[below] + heights[below] / 2 - 1e-12
    assert stacked([0.5, 0.1], [0.1, 0.1]) == [0.5, 0.1]


def test_labels_at_the_right_edge_do_not_overlap_and_stay_above_the_bottom():
    with look():
        figure = Figure(figsize=(6, 3))
        axes = figure.add_subplot()
        axes.set_ylim(-1, 1)
        label_right_edge(axes, [("one\ntwo", -1.0, "k"), ("three", -0.98, "k"), ("four", 0.5, "k")], 8, 0.07)
        renderer = FigureCanvasAgg(figure).get_renderer()
        figure.draw_without_rendering()
        boxes = [text.get_window_extent(renderer) for text in axes.texts]
    assert len(boxes) == 3
    assert not any(a.overlaps(b) for k, a in enumerate(boxes) for b in boxes[:k])
    assert min(box.y0 for box in boxes) >= axes.get_window_extent(renderer).y0 - 1
