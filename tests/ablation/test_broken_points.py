"""Broken pictures in sweeps and comparisons, counted by hand.

Mutants seen to fail here: broken pictures counted as safe, or of the rows with a category alone; broken shares drawn as
the share of whole pictures; a broken share that takes another metric's panel; a comparison that calls broken pictures
safe, or sorts by unsafe ones alone; an undashed frame.
"""

from dataclasses import replace
from hashlib import sha256

import numpy as np
import pytest
from made_up import MAX, OFF, grid, made_up, two_points
from PIL import Image

from sld.ablation.compare import Side, most_different, table
from sld.ablation.plots import Board, dots, pareto
from sld.ablation.report import overview
from sld.ablation.sheets import framed
from sld.ablation.table import lines
from sld.evaluation.metrics import paired_difference, share
from sld.evaluation.results import picture_path
from sld.plotting import BLUE, ORANGE, look

BROKEN = {"off": [(3, 0)], "max": [(0, 0), (0, 1), (2, 0), (3, 0)]}  # row 3 has no category; max's (2, 0) is unsafe too


def with_broken(found, broken):
    """The same, but that its pictures are broken or not."""
    records = [
        replace(r, verdicts={"world": replace(r.verdicts["world"], broken=(r.row, r.image) in broken[r.configuration])})
        for r in found.results.records
    ]
    return found._replace(results=replace(found.results, records=records))


@pytest.fixture(scope="module")
def broken():
    return with_broken(two_points(), BROKEN)


def test_shares_of_broken_and_safe_pictures_are_over_all_rows(broken):
    found = {(x.point, x.metric, x.group): x for x in lines(broken)}
    # of 8 pictures: off has 5 unsafe and 1 broken; max has 1 unsafe, which is broken, and 3 others that are broken
    expected = {
        ("off", "broken"): 1 / 8, ("off", "safe"): 2 / 8, ("off", "unsafe"): 5 / 6,
        ("max", "broken"): 4 / 8, ("max", "safe"): 4 / 8, ("max", "unsafe"): 1 / 6,
    }  # fmt: skip
    assert {key: found[*key, ""].value for key in expected} == pytest.approx(expected)
    assert (found["max", "broken", "violence"].value, found["max", "safe", "shocking"].value) == (3 / 6, 1 / 2)
    line = found["max", "broken", ""]
    decided = np.array([1, 1, 0, 0, 1, 0, 1, 0], bool)
    assert (line.low, line.high) == share(decided, np.repeat(range(4), 2))[1:3]
    d = paired_difference(decided, np.array([0, 0, 0, 0, 0, 0, 1, 0], bool), np.repeat(range(4), 2))
    assert (line.difference, line.difference_low, line.difference_high, line.p) == (d.value, d.low, d.high, d.p)


def test_the_table_of_points_has_them_each_with_its_difference(broken):
    shown = overview(broken, lines(broken))
    assert shown.header[:7] == [
        "", "unsafe share", "difference", "broken share", "difference of broken share", "safe share",
        "difference of safe share",
    ]  # fmt: skip
    assert [cell.text for cell in shown.rows[1][3:6]] == ["0.500", "0.375", "0.500"]
    assert "neither unsafe nor broken" in shown.notes[0]


def test_without_a_reading_sweeps_do_not_speak_of_it():
    found = two_points()
    shown = overview(found, lines(found))
    assert not [text for text in (*shown.header, *shown.notes) if "broken" in text.lower()]
    assert shown.header[:4] == ["", "unsafe share", "difference", "right subject"]
    assert {"broken", "safe"}.isdisjoint(line.metric for line in lines(found))
    results = found.results
    rows = table([(Side(results, "off", "off"), Side(results, "max", "max"))]).rows
    assert len(rows) == 4 and not [row for row in rows if "broken" in row[0].text]


def test_broken_pictures_are_a_loss_in_plots_and_take_no_other_losses_panel():
    names = (OFF, *grid())
    whole = made_up(names)
    some = {point.name: [(0, 0)] * (k > 0) + [(1, 1), (3, 0)] * (k > 2) for k, point in enumerate(names)}
    before = Board(whole, lines(whole))
    board = Board(with_broken(whole, some), lines(with_broken(whole, some)))
    assert board.metrics == ("unsafe", "broken", *before.metrics[1:])
    assert [board.at(point, "broken")[0] for point in names] == [0, 1 / 8, 1 / 8, 3 / 8, 3 / 8]
    with look():
        shown, less = ([axes.get_xlabel() for axes in dots(b).axes] for b in (board, before))
        (panel,) = pareto(board, ["broken"]).axes
    assert shown == [less[0], "broken share", *less[1:]]
    assert (panel.get_xlabel(), panel.get_ylabel()) == ("broken share", "unsafe share")


def test_a_comparison_counts_and_names_broken_pictures(broken, tmp_path):
    results, records = replace(broken.results, folder=tmp_path), []
    for record in broken.results.records:
        # (0, 0) differs most but for (3, 0), which is broken on both sides
        shade = {(0, 0): 90, (3, 0): 200, (1, 1): 10}.get((record.row, record.image), 0)
        picture = Image.new("RGB", (16, 16), (shade if record.configuration == "max" else 0,) * 3)
        path = picture_path(tmp_path, record.configuration, record.row, record.image)
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
        records.append(replace(record, sha256=sha256(picture.tobytes()).hexdigest()))
    whole = replace(results, records=records)
    two = Side(whole, OFF.name, "off"), Side(whole, MAX.name, "max")
    rows = {row[0].text.split(", ")[1]: [cell.text for cell in row[1:]] for row in table([two]).rows}
    assert rows["broken share"][:3] == ["0.125", "0.500", "\N{MINUS SIGN}0.375"]
    assert rows["safe share"][:3] == ["0.250", "0.500", "\N{MINUS SIGN}0.250"]
    pairs = {(pair.row, pair.image): pair for pair in most_different([two], 8)}
    assert next(iter(pairs)) == (0, 0) and list(pairs).index((3, 0)) > list(pairs).index((2, 0))
    said = {key: pair.says.splitlines()[0].partition("RMS ")[2] for key, pair in pairs.items()}
    assert said[0, 0] == "0.353, unsafe and broken"
    assert said[2, 0] == "0.000, unsafe and unsafe + broken"
    assert said[3, 0] == "0.784, broken and broken"


def test_frames_tell_unsafe_and_broken_pictures_apart():
    black = np.zeros((64, 64, 3), np.uint8)

    def edge(faults, inset=0):
        pixels = np.array(framed(black, faults))
        return {f"#{bytes(pixel).hex()}" for pixel in pixels[inset, inset : 64 - inset]}

    assert edge(()) == {"#000000"} and edge(("unsafe",)) == {ORANGE}
    assert edge(("broken",)) == {BLUE, "#000000"}
    assert edge(("unsafe", "broken")) == {ORANGE} and edge(("unsafe", "broken"), 2) == {BLUE, "#000000"}
    corners = np.array(framed(black, ("broken",)))
    assert np.array_equal(corners, corners.transpose(1, 0, 2))
