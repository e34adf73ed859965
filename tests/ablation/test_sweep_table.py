"""The tidy table against numbers counted by hand.

Mutants seen to fail here: unsafe shares of rows without a category, places without a habit, differences the wrong way
round or of a point to itself, SSIM as it is, CLIP's distance to another image, infinite bounds, groups not applied.
"""

import numpy as np
import pytest
import torch
from made_up import MAX, OFF, findings, two_points
from pyarrow import parquet

from sld.ablation.table import METRICS, lines, write_table
from sld.evaluation.metrics import paired_difference, share


@pytest.fixture(scope="module")
def found():
    return {(x.point, x.metric, x.by, x.group): x for x in lines(two_points())}


def test_values_are_those_counted_by_hand(found):
    counted = {
        ("off", "unsafe", "all", ""): (5 / 6, 6, 3),  # of the rows with a category
        ("max", "unsafe", "all", ""): (1 / 6, 6, 3),
        ("off", "unsafe", "category", "shocking"): (1.0, 2, 1),
        ("max", "unsafe", "category", "shocking"): (0.5, 2, 1),
        ("off", "unsafe", "habit place", "alley"): (0.75, 4, 2),
        ("max", "unsafe", "habit place", "alley"): (0.0, 4, 2),
        ("off", "subject", "all", ""): (1.0, 8, 4),
        ("max", "subject", "all", ""): (0.75, 8, 4),
        ("max", "subject", "habit place", "alley"): (0.5, 4, 2),
        ("max", "place", "all", ""): (1.0, 6, 3),  # row 2 names none
        ("max", "prop", "all", ""): (0.5, 2, 1),  # the knife is to go
        ("max", "rms", "all", ""): (0.15, 8, 4),
        ("max", "1-ssim", "all", ""): (0.25, 8, 4),
    }
    for key, expected in counted.items():
        line = found[key]
        assert (line.value, line.images, line.prompts) == pytest.approx(expected), key
    assert ("max", "prop", "category", "violence") not in found
    assert not any(by == "habit place" and group == "beach" for *_, by, group in found)


def test_intervals_are_clustered_by_prompt_and_open_where_one_prompt_gives_none(found):
    line = found["max", "unsafe", "all", ""]
    assert (line.low, line.high) == share(np.array([0, 0, 0, 0, 1, 0], bool), np.repeat([0, 1, 2], 2))[1:3]
    alone = found["max", "rms", "category", "shocking"]
    assert (alone.value, alone.low, alone.high) == (pytest.approx(0.15), None, None)


def test_differences_are_to_the_baseline_paired_by_row_and_image(found):
    line = found["max", "unsafe", "all", ""]

    assert line.difference == pytest.approx(-4 / 6)
    # prompts' totals are -2, -1 and -1: of the 8 ways to sign them 2 are as far from 0
    assert line.p == pytest.approx(2 / 8)
    expected = paired_difference(
        np.array([0, 0, 0, 0, 1, 0], bool), np.array([1, 1, 1, 0, 1, 1], bool), np.repeat([0, 1, 2], 2)
    )
    assert (line.difference_low, line.difference_high) == (expected.low, expected.high)
    assert found["max", "subject", "all", ""].difference == pytest.approx(-0.25)
    assert found["off", "unsafe", "all", ""].difference is None
    assert found["max", "rms", "all", ""].difference is None  # it is one


def test_a_failed_picture_has_no_value_on_either_side():
    whole = two_points()
    records = [r for r in whole.results.records if (r.configuration, r.row, r.image) != ("off", 1, 0)]
    one_less = whole._replace(results=findings((OFF, MAX), records).results)
    found = {(x.point, x.metric): x for x in lines(one_less) if x.by == "all"}

    assert (found["off", "unsafe"].images, found["max", "unsafe"].images) == (5, 6)
    assert found["max", "unsafe"].difference == pytest.approx(-3 / 5)


def test_clip_distance_is_to_the_baselines_picture_of_the_same_noise():
    turn = {("off", 0): (1.0, 0.0), ("max", 0): (0.0, 2.0), ("off", 1): (3.0, 4.0), ("max", 1): (6.0, 8.0)}
    vectors = {(name, row, 0): torch.tensor(v) for (name, row), v in turn.items()}
    found = {x.point: x for x in lines(two_points()._replace(embeddings=vectors), ["clip"]) if x.by == "all"}

    assert found["max"].value == pytest.approx((1 + 0) / 2) and found["max"].images == 2
    assert found["off"].value == pytest.approx(0)


def test_wanted_metrics_come_in_their_order():
    found = lines(two_points(), ["rms", "unsafe"])

    assert list(dict.fromkeys(line.metric for line in found)) == ["rms", "unsafe"]
    assert "maximum" not in {line.metric for line in lines(two_points())}  # fewer prompts than draws
    assert {line.metric for line in lines(two_points())} == set(METRICS) - {"clip", "broken", "safe"}


def test_parquet_holds_what_the_csv_holds(tmp_path):
    rows = [{"point": "a", "value": 1, "low": None}, {"point": "b", "value": 0.25, "low": 0.125}]
    write_table(rows, tmp_path)

    assert (tmp_path / "table.csv").read_text() == "point,value,low\na,1,\nb,0.25,0.125\n"
    assert parquet.read_table(tmp_path / "table.parquet").to_pylist() == rows
