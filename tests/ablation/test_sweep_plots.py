"""Plots of a sweep: all there, every point named, no name on another.

Mutants seen to fail here: a front that keeps points beaten in one coordinate only, what is kept drawn as what is lost,
names wherever they fall, one name per point where several lie on each other, losses drawn in which all agree, curves
through points that differ in more, rows of a sheet that are not whole, a sheet without the baseline.
"""

import random
import re
from dataclasses import replace

import numpy as np
import pytest
from made_up import THRESHOLD, WARMUP, findings, grid, made_up, point, record
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from sld.ablation import plots
from sld.ablation.labels import broken, label_points
from sld.ablation.plots import PLOTS, Board, draw, front, pareto
from sld.ablation.report import KINDS, write_report
from sld.ablation.sheets import sheets
from sld.ablation.table import lines
from sld.evaluation.results import picture_path

OFF = point("off", "no guidance")


def board(points):
    found = made_up(points)
    return Board(found, lines(found))


@pytest.fixture(scope="module")
def drawn():
    return {plot.name: plot for plot in draw(board((OFF, *grid())))}


def texts(svg):
    return [re.sub(r"<[^>]*>", "", found) for found in re.findall(r"<text.*?</text>", svg, re.DOTALL)]


def test_every_kind_is_drawn_and_says_what_its_axes_are(drawn):
    assert list(drawn) == [
        "pareto",
        "points",
        "curve-warmup_steps",
        "curve-threshold",
        "heatmap-warmup_steps-threshold",
    ]
    assert {"unsafe share", "1 \N{MINUS SIGN} SSIM to the baseline", "wrong subject, share"} <= set(
        texts(drawn["pareto"].svg)
    )
    assert "warm-up δ (network evaluations)" in texts(drawn["curve-warmup_steps"].svg)
    assert {"threshold λ", "warm-up δ (network evaluations)"} <= set(texts(drawn["heatmap-warmup_steps-threshold"].svg))
    assert all(plot.png.startswith(b"\x89PNG") for plot in drawn.values())
    assert tuple(KINDS) == (*PLOTS, "sheets")


def test_every_point_is_named_where_it_lies(drawn):
    labels = [OFF.label, *(p.label for p in grid())]

    assert set(labels) <= set(texts(drawn["points"].svg))
    for label in labels:  # those on the front may share a place, and long ones have two lines
        assert all(part in " ".join(texts(drawn["pareto"].svg)) for part in label.split(", "))
    assert {"threshold 0.0", "threshold 0.025", OFF.label} <= set(texts(drawn["curve-warmup_steps"].svg))


def test_a_loss_in_which_all_points_agree_is_not_drawn(drawn):
    assert "wrong place, share" not in texts(drawn["pareto"].svg)
    assert board((OFF, *grid())).alike == ("place",)


def test_heat_maps_write_the_value_of_each_cell_of_what_is_kept_the_loss(drawn):
    written = texts(drawn["heatmap-warmup_steps-threshold"].svg)
    for line in lines(made_up((OFF, *grid()))):
        if line.by == "all" and line.point != "off" and line.metric in ("unsafe", "subject", "prop", "1-ssim"):
            lost = 1 - line.value if line.metric in ("subject", "prop") else line.value
            assert f"{lost:.3f}" in written


def test_curves_join_points_that_differ_in_nothing_else():
    mine = board((OFF, *grid((0, 7, 15))))
    families = plots._families(mine, WARMUP)

    assert {name: [(x, p.name) for x, p in family] for name, family in families.items()} == {
        "threshold 0.0": [(0, "w0-t0.0"), (7, "w7-t0.0"), (15, "w15-t0.0")],
        "threshold 0.025": [(0, "w0-t0.025"), (7, "w7-t0.025"), (15, "w15-t0.025")],
    }
    assert set(plots._families(mine, THRESHOLD)) == {"warmup_steps 0", "warmup_steps 7", "warmup_steps 15"}


def test_the_front_is_what_no_other_point_beats():
    rng = random.Random(0)
    for _ in range(50):
        cloud = [(rng.randrange(6), rng.randrange(6)) for _ in range(12)]
        expected = set()
        for k, (x, y) in enumerate(cloud):
            beaten = False
            for a, b in cloud:
                if (a < x and b <= y) or (a <= x and b < y):
                    beaten = True
            if not beaten:
                expected.add(k)
        assert set(front(cloud)) == expected


def test_names_of_a_crowd_do_not_lie_on_each_other_or_on_points():
    rng = np.random.default_rng(3)
    figure, (axes,) = plots._panels(1, 4.0)
    crowd = [(f"point {k}", float(x), float(y)) for k, (x, y) in enumerate(rng.normal(size=(20, 2)))]
    axes.plot(*np.array([where for _, *where in crowd]).T, "o")
    axes.margins(0.2)
    figure.draw_without_rendering()
    label_points(axes, crowd)

    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = [text.get_window_extent(renderer) for text in axes.texts if text.get_text()]
    spots = axes.transData.transform([where for _, *where in crowd])
    assert len(boxes) == 20
    for k, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:k])
        assert not any(box.contains(*spot) for spot in spots)


def meet(a, b, c, d):
    """Whether a + s (b - a) = c + t (d - c) has a solution within both lines."""
    matrix = np.stack([b - a, c - d], axis=1)
    if abs(np.linalg.det(matrix)) < 1e-9:
        return False
    s, t = np.linalg.solve(matrix, c - a)
    return 0 < s < 1 and 0 < t < 1


def test_lines_that_lead_to_names_of_a_crowd_do_not_cross():
    """Where crossings cost nothing, lines of this crowd cross."""
    rng = np.random.default_rng(1)
    figure, (axes,) = plots._panels(1, 4.0)
    crowd = [(f"point {k}", float(x), float(y)) for k, (x, y) in enumerate(0.3 * rng.normal(size=(24, 2)))]
    axes.plot(*np.array([where for _, *where in crowd]).T, "o")
    axes.margins(0.5)
    figure.draw_without_rendering()
    label_points(axes, crowd)

    spots = axes.transData.transform([note.xy for note in axes.texts if note.arrow_patch is not None])
    shifts = np.array([note.xyann for note in axes.texts if note.arrow_patch is not None]) * figure.dpi / 72
    leads = list(zip(spots, spots + shifts, strict=True))
    assert len(leads) >= 2
    assert not [1 for k, one in enumerate(leads) for other in leads[:k] if meet(*one, *other)]


def test_points_in_one_place_share_a_name_tag():
    found = findings((OFF, point("twin")), [record(name, 0, 0, unsafe=True) for name in ("off", "twin")])
    figure = pareto(Board(found, lines(found)), ["1-ssim"])

    (axes,) = figure.axes
    assert isinstance(axes, Axes)
    assert [text.get_text() for text in axes.texts if text.get_text()] == ["no guidance\ntwin"]


def test_labels_break_behind_commas():
    assert broken("warm-up 5, threshold 0.025, momentum 0", 28) == "warm-up 5, threshold 0.025,\nmomentum 0"
    assert broken("off", 28) == "off"
    assert max(map(len, broken("one very long label that has no comma in it", 20).split("\n"))) <= 20


def test_equal_findings_give_equal_files(drawn):
    again = {plot.name: plot for plot in draw(board((OFF, *grid())), ["pareto", "heatmaps"])}

    assert list(again) == ["pareto", "heatmap-warmup_steps-threshold"]
    assert all((plot.svg, plot.png) == (drawn[name].svg, drawn[name].png) for name, plot in again.items())


@pytest.mark.filterwarnings("ignore:Glyph")  # a box stands in the picture for what no font has
def test_a_page_holds_labels_with_line_breaks_and_markup_as_text(tmp_path, monkeypatch):
    """Killed by: a label, the baseline's label or a plot's words written as they are."""
    monkeypatch.setattr("sld.ablation.report.tidy", lambda *_: [])  # there is no protocol on disk
    label = "no\nguidance | <b>\x1b"
    write_report(made_up((point("off", label), *grid())), tmp_path, kinds=["points", "curves"])
    page = (tmp_path / "index.md").read_text()

    assert "| no guidance \\| \\<b>\ufffd | 0." in page and "baseline is “no guidance \\| \\<b>\ufffd”" in page
    assert "\x1b" not in page and not re.search(r"(?<!\\)<b>", page)
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in page.split("\n\n")[3].split("\n")}) == 1


def test_contact_sheets_have_points_as_columns_and_seeds_as_rows(tmp_path):
    points = (OFF, *(point(f"p{k}") for k in range(11)))
    found = made_up(points)
    records = [replace(record, sha256=None) for record in found.results.records]  # nobody made their pictures
    found = found._replace(results=replace(found.results, folder=tmp_path, records=records))
    for k, p in enumerate(points):
        for row in range(3):
            path = picture_path(tmp_path, p.name, row, 0)
            path.parent.mkdir(parents=True, exist_ok=True)
            if (p.name, row) != ("p3", 1):  # a row that is not whole is left out
                Image.new("RGB", (8, 8), (20 * k, 50 * row, 0)).save(path)
    first, second = sheets(found)

    side = 192
    assert (first.width - second.width) == 7 * (side + 6)  # 10 and 3 columns
    assert first.height == second.height == 10 + 16 + 2 * (side + 6)
    left = first.width - 10 * (side + 6)
    for sheet, shown in ((first, range(10)), (second, (0, 10, 11))):
        for column, k in enumerate(shown):
            for r, row in enumerate((0, 2)):
                middle = (left + column * (side + 6) + side // 2, 26 + r * (side + 6) + side // 2)
                assert sheet.getpixel(middle) == (20 * k, 50 * row, 0)


def test_nothing_is_sheeted_where_nothing_was_kept():
    assert sheets(made_up((OFF, *grid()))) == []
