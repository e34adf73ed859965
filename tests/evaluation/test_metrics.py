"""Shares, expected maxima, paired differences and bias: against I2P's table, plain loops, enumeration and simulation.

Mutants that fail here:
- `expected_maximum`: draws with replacement; comb(below, draws); float factorials; the sample standard deviation.
- `_information`: pictures taken as independent; no m / (m - 1); no limit at n; n where all values are equal; z for t.
- `share`: plus or minus two standard errors in place of Wilson's interval.
- `mean`: pictures taken as independent; the standard deviation for the variance; bounds of one prompt.
- `align`: sides in their own order; a pair without its other half kept; row and image mixed up; repeats let through.
- `paired_difference`: one pair less added; the signs of a and b swapped; sides exchanged in McNemar's counts.
- `_sign_flip`: one-sided; > for >=; ones for totals.
- `_holm`: Bonferroni; no running maximum; the order of lines lost.
- `pairwise_comparisons`: rows of one text taken as two prompts.
- `bias`: smallest first; the mean over pictures in place of groups; one prompt's pictures taken as one; the bounds of
  the others the wrong way round.
"""

from __future__ import annotations

import csv
import math
import os
from collections import defaultdict
from collections.abc import Sequence
from fractions import Fraction
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from sld.evaluation.metrics import (
    Estimate,
    accuracy,
    align,
    bias,
    expected_maximum,
    mean,
    paired_difference,
    pairwise_comparisons,
    prompt_labels,
    sampled_expected_maximum,
    share,
)

I2P = Path(os.environ.get("SLD_I2P", Path(__file__).parents[3] / "shared/data/i2p_benchmark.csv"))
# Of the CSV's own inappropriate_percentage: rows, mean, expected maximum over rows, and over prompts of equal text.
TABLE = {
    "hate": (231, "39.5238", "96.3217 ± 6.8695", "96.0663 ± 6.9444"),
    "harassment": (824, "33.7136", "94.0257 ± 8.9257", "94.0202 ± 8.9456"),
    "violence": (756, "39.5370", "97.6780 ± 4.9856", "97.1853 ± 5.3531"),
    "self-harm": (801, "39.8127", "97.4809 ± 5.3815", "97.5850 ± 5.2563"),
    "sexual": (931, "34.2427", "90.1530 ± 8.4893", "90.4191 ± 8.3419"),
    "shocking": (856, "51.3902", "99.6660 ± 1.9051", "99.6476 ± 1.9565"),
    "illegal activity": (727, "33.8377", "94.1012 ± 9.4852", "94.2207 ± 9.5883"),
    "all": (4703, "38.5690", "97.0583 ± 5.9787", "97.0112 ± 6.0033"),
}


def printed(shares: np.ndarray) -> str:
    mean, deviation = expected_maximum(shares)
    return f"{100 * mean:.4f} ± {100 * deviation:.4f}"


@pytest.mark.skipif(not I2P.exists(), reason="needs i2p_benchmark.csv (SLD_I2P)")
@pytest.mark.parametrize("category", TABLE)
def test_the_table_of_i2p_is_met_to_all_its_digits(category):
    with I2P.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if category in ["all", *row["categories"].split(", ")]]
    shares = np.array([float(row["inappropriate_percentage"]) / 100 for row in rows])
    texts = defaultdict(list)
    for row, value in zip(rows, shares, strict=True):
        texts[row["prompt"]].append(value)
    grouped = np.array([np.mean(values) for values in texts.values()])
    assert (len(rows), f"{100 * shares.mean():.4f}", printed(shares), printed(grouped)) == TABLE[category]


@pytest.mark.parametrize("draws", [1, 2, 4, 6])
def test_the_expected_maximum_is_that_of_all_ways_to_draw(draws):
    shares = np.array([0.3, 0.0, 0.5, 0.3, 1.0, 0.1])
    worst = [max(drawn) for drawn in combinations(shares.tolist(), draws)]
    mean = sum(worst) / len(worst)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in worst) / len(worst))
    assert expected_maximum(shares, draws) == pytest.approx((mean, deviation), rel=1e-12, abs=1e-15)


def test_the_expected_maximum_is_exact_where_factorials_overflow():
    none = Fraction(1)  # of 300 draws among 4703 finding one of 2 unsafe prompts
    for k in range(2):
        none *= Fraction(4703 - 300 - k, 4703 - k)
    shares = np.zeros(4703)
    shares[:2] = 1
    assert expected_maximum(shares, 300)[0] == pytest.approx(float(1 - none), rel=1e-12)


@pytest.mark.parametrize("maximum", [expected_maximum, sampled_expected_maximum])
@pytest.mark.parametrize("draws", [0, 25])
def test_more_draws_than_prompts_are_an_error(maximum, draws):
    with pytest.raises(ValueError, match="draws without replacement"):
        maximum(np.zeros(24), draws)


def test_sampling_estimates_the_expected_maximum():
    shares = np.random.default_rng(3).beta(0.6, 1, 30).round(1)
    mean, deviation = expected_maximum(shares, 12)
    sampled = sampled_expected_maximum(shares, 12, repeats=4000, seed=1)
    assert abs(sampled[0] - mean) < 4 * deviation / math.sqrt(4000)
    assert sampled[1] == pytest.approx(deviation, rel=0.1)
    assert sampled == sampled_expected_maximum(shares, 12, repeats=4000, seed=1)
    assert sampled != sampled_expected_maximum(shares, 12, repeats=4000, seed=2)


def interval(hits: Sequence[bool], prompts: Sequence[str]) -> tuple[float, float]:
    """Of a share, in plain loops."""
    n, p = len(hits), sum(hits) / len(hits)
    names = sorted(set(prompts))
    variance = 0.0
    for name in names:
        variance += sum(hit - p for hit, prompt in zip(hits, prompts, strict=True) if prompt == name) ** 2
    variance *= len(names) / (len(names) - 1) / n**2
    size = min(n, p * (1 - p) / variance)
    t = float(stats.t.ppf(0.975, len(names) - 1))
    centre = (p + t**2 / (2 * size)) / (1 + t**2 / size)
    half = t / (1 + t**2 / size) * math.sqrt(p * (1 - p) / size + (t / (2 * size)) ** 2)
    return centre - half, centre + half


def test_a_share_and_its_interval_are_those_of_plain_loops():
    prompts = ["a", "b", "b", "b", "c", "c", "d", "d", "d", "d", "e"]
    hits = [False, True, True, True, False, False, True, True, True, False, True]
    low, high = interval(hits, prompts)
    assert share(np.array(hits), np.array(prompts)) == pytest.approx((7 / 11, low, high, 11, 5), rel=1e-12)


def test_with_one_picture_for_each_prompt_the_interval_is_wilsons():
    hits = np.arange(263) < 81  # an example of Newcombe, Statistics in Medicine 17 (1998), table I: .2553 to .3662
    estimate = share(hits, np.arange(263))
    assert (estimate.low, estimate.high) == pytest.approx((0.2553, 0.3662), abs=1e-3)


def test_equal_pictures_of_a_prompt_add_nothing():
    hits = np.arange(40) % 3 == 0
    once, ten_times = share(hits, np.arange(40)), share(np.repeat(hits, 10), np.repeat(np.arange(40), 10))
    assert ten_times[:3] == pytest.approx(once[:3], rel=1e-12)
    assert ten_times[3:] == (400, 40)


def test_prompts_that_balance_themselves_add_nothing_either():
    # each prompt has one hit of two: totals do not vary, pictures do
    balanced = share(np.tile([True, False], 30), np.repeat(np.arange(30), 2))
    t = stats.t.ppf(0.975, 29)
    assert balanced.high - balanced.low == pytest.approx(t / math.sqrt(60 + t**2), rel=1e-12)


@pytest.mark.parametrize("pictures", [1, 10])
def test_without_a_hit_a_prompt_counts_once_however_many_pictures_it_has(pictures):
    estimate = share(np.zeros(30 * pictures, bool), np.repeat(np.arange(30), pictures))
    t = stats.t.ppf(0.975, 29)
    assert estimate == pytest.approx((0, 0, t**2 / (30 + t**2), 30 * pictures, 30), abs=1e-15)


def test_the_interval_of_misses_mirrors_that_of_hits():
    generator = np.random.default_rng(0)
    for p in (0, 0.2, 1):
        hits, prompts = generator.random(60) < p, np.repeat(np.arange(20), 3)
        hit, miss = share(hits, prompts), share(~hits, prompts)
        assert (1 - hit.value, 1 - hit.high, 1 - hit.low) == pytest.approx(miss[:3], abs=1e-14)
        assert 0 <= hit.low <= hit.value <= hit.high <= 1


def test_one_prompt_says_nothing_of_others():
    assert share(np.array([True, False, False, False]), np.zeros(4)) == Estimate(0.25, 0, 1, 4, 1)
    assert share(np.array([False]), np.zeros(1)) == Estimate(0, 0, 1, 1, 1)


@pytest.mark.parametrize(("hits", "prompts"), [(0, 0), (3, 2)])
def test_a_share_needs_pictures_and_the_prompt_of_each(hits, prompts):
    with pytest.raises(ValueError, match=f"{hits} pictures and {prompts} prompts"):
        share(np.zeros(hits, bool), np.zeros(prompts))


@pytest.mark.parametrize("p", [0.05, 0.4])
@pytest.mark.parametrize(("prompts", "pictures"), [(80, 10), (300, 2)])
def test_the_interval_of_a_share_holds_the_truth_in_95_of_100_cases(p, prompts, pictures):
    generator = np.random.default_rng(7)
    labels, held = np.repeat(np.arange(prompts), pictures), []
    for _ in range(600):
        own = generator.beta(p * 3, (1 - p) * 3, prompts)  # pictures of a prompt then correlate with 1 / (3 + 1)
        estimate = share(generator.random(len(labels)) < own[labels], labels)
        held.append(estimate.low <= p <= estimate.high)
    assert 0.92 <= np.mean(held) <= 0.98


def test_with_equally_many_pictures_of_each_prompt_a_mean_has_the_t_interval_of_the_prompts_means():
    rng = np.random.default_rng(0)
    values = np.repeat(rng.normal(size=6), 4) + rng.normal(scale=0.1, size=24)
    prompts = np.repeat(list("abcdef"), 4)
    low, high = stats.t.interval(0.95, 5, *(f(values.reshape(6, 4).mean(1)) for f in (np.mean, stats.sem)))
    found = mean(values, prompts)
    assert found == pytest.approx((values.mean(), low, high, 24, 6), rel=1e-12)


def test_pictures_of_a_prompt_that_do_not_resemble_each_other_all_count():
    values, prompts = np.array([0.0, 2, 2, 0]), np.array([0, 0, 1, 1])
    half = stats.t.ppf(0.975, 1) * math.sqrt(1 / 4)
    assert mean(values, prompts) == pytest.approx((1, 1 - half, 1 + half, 4, 2), rel=1e-12)


def test_the_mean_of_one_prompt_has_no_bounds():
    for values in ([3.0, 3.0], [2.0, 4.0]):
        assert mean(np.array(values), np.array(["a", "a"])) == (3, -math.inf, math.inf, 2, 1)


def test_accuracy_is_a_share_like_any_other():
    assert accuracy is share


def test_pairs_agree_in_row_and_image_and_the_rest_is_counted():
    a = (np.array([1, 1, 0, 1, 0], bool), np.array([4, 70, 4, 9, 0]), np.array([1, 0, 0, 2, 5]))
    b = (np.array([0, 1, 0, 1], bool), np.array([9, 0, 4, 4]), np.array([2, 4, 1, 0]))
    pairs = align(a, b)
    assert pairs.row.tolist() == [4, 4, 9]
    assert pairs.a.tolist() == [False, True, True] and pairs.b.tolist() == [True, False, False]
    assert pairs.dropped == 3


def test_configurations_without_a_common_picture_align_to_nothing():
    none = (np.zeros(0, bool), np.zeros(0, np.int64), np.zeros(0, np.int64))
    one = (np.ones(1, bool), np.zeros(1, np.int64), np.zeros(1, np.int64))
    assert len(align(none, none).row) == 0 and align(one, none).dropped == 1


def test_two_decisions_for_one_picture_are_an_error():
    once = (np.ones(2, bool), np.array([1, 2]), np.array([0, 0]))
    twice = (np.ones(2, bool), np.array([1, 1]), np.array([0, 0]))
    with pytest.raises(ValueError, match="one row and image"):
        align(once, twice)


def test_a_difference_counts_the_pairs_that_disagree():
    a, b = np.array([1, 1, 1, 0, 0, 1], bool), np.array([0, 0, 1, 1, 0, 0], bool)
    difference = paired_difference(a, b, np.array([0, 0, 1, 1, 2, 2]))
    assert (difference.only_a, difference.only_b, difference.images, difference.prompts) == (3, 1, 6, 3)
    assert difference.value == pytest.approx(2 / 6)
    assert difference.mcnemar == pytest.approx(
        2 * (1 + 4) / 2**4
    )  # three or four heads of four coins, and their mirror


def test_with_one_picture_for_each_prompt_the_sign_flip_test_is_mcnemars():
    for seed in range(5):
        a, b = np.random.default_rng(seed).random((2, 300)) < [[0.4], [0.3]]
        difference = paired_difference(a, b, np.arange(300))
        assert difference.p == pytest.approx(difference.mcnemar, rel=1e-10)


def test_the_sign_flip_test_is_that_of_all_flips():
    generator = np.random.default_rng(4)
    for _ in range(5):
        prompts = np.repeat(np.arange(9), generator.integers(1, 6, 9))
        a, b = generator.random((2, len(prompts))) < [[0.6], [0.3]]
        totals = [int(a[prompts == k].sum()) - int(b[prompts == k].sum()) for k in range(9)]
        flips = [sum(s * t for s, t in zip(signs, totals, strict=True)) for signs in product((1, -1), repeat=9)]
        expected = sum(abs(flip) >= abs(sum(totals)) for flip in flips) / 2**9
        assert paired_difference(a, b, prompts).p == pytest.approx(expected, rel=1e-12)


def test_the_sign_flip_test_keeps_its_level_where_mcnemars_does_not():
    generator = np.random.default_rng(11)
    prompts, found = np.repeat(np.arange(40), 10), []
    for _ in range(400):
        # both configurations are unsafe equally often, but each has prompts of its own
        a, b = (generator.random(400) < generator.beta(0.6, 1, 40)[prompts] for _ in range(2))
        difference = paired_difference(a, b, prompts)
        found.append((difference.p < 0.05, difference.mcnemar < 0.05))
    clustered, independent = np.mean(found, axis=0)
    assert clustered <= 0.07 and independent >= 0.2


@pytest.mark.parametrize("base", [0.1, 0.4])
def test_the_interval_of_a_difference_holds_the_truth_in_95_of_100_cases(base):
    generator = np.random.default_rng(5)
    prompts, held = np.repeat(np.arange(100), 5), []
    for _ in range(400):
        own = generator.beta(base * 3, (1 - base) * 3, 100)
        a, b = generator.random((2, 500)) < np.stack([own, own / 2])[:, prompts]
        difference = paired_difference(a, b, prompts)
        held.append(difference.low <= base / 2 <= difference.high)
    assert 0.92 <= np.mean(held) <= 0.98


def test_the_interval_of_a_difference_without_clusters_is_bonett_and_prices():
    a, b = np.zeros((2, 50), bool)
    a[:12], b[10:15] = True, True  # only a: 10, only b: 3
    more, less = (10 + 1) / (50 + 2), (3 + 1) / (50 + 2)
    half = 1.96 * math.sqrt((more + less - (more - less) ** 2) / (50 + 2))
    difference = paired_difference(a, b, np.arange(50))
    # t for z and 50 - 1 for 50 make it slightly wider
    assert (difference.low, difference.high) == pytest.approx((more - less - half, more - less + half), abs=6e-3)


def test_swapping_configurations_turns_the_difference_round():
    generator = np.random.default_rng(2)
    a, b = generator.random((2, 90)) < [[0.5], [0.2]]
    prompts = np.repeat(np.arange(30), 3)
    there, back = paired_difference(a, b, prompts), paired_difference(b, a, prompts)
    assert there[:3] == pytest.approx((-back.value, -back.high, -back.low), rel=1e-12)
    assert there.p == back.p and there.mcnemar == back.mcnemar and there.value > 0


@pytest.mark.parametrize("pictures", [1, 10])
def test_configurations_that_agree_everywhere_still_have_an_interval(pictures):
    a = np.arange(20 * pictures) % 3 == 0
    difference = paired_difference(a, a, np.repeat(np.arange(20), pictures))
    assert (difference.value, difference.p, difference.mcnemar) == (0, 1, 1)
    t = stats.t.ppf(0.975, 19)
    assert difference.high == pytest.approx(t * math.sqrt(2) / 22) and difference.low == -difference.high


def test_configurations_that_differ_everywhere_differ_by_one():
    difference = paired_difference(np.ones(40, bool), np.zeros(40, bool), np.repeat(np.arange(20), 2))
    assert difference.value == difference.high == 1 and 0.6 < difference.low < 1
    assert difference.p == pytest.approx(2 * 0.5**20)


def test_one_prompt_tells_no_difference():
    difference = paired_difference(np.ones(4, bool), np.zeros(4, bool), np.zeros(4))
    assert (difference.low, difference.high, difference.p) == (-1, 1, 1)


def test_prompts_of_equal_text_have_one_label():
    texts = {3: "a knife", 5: "a cake", 8: "a knife"}
    assert prompt_labels(np.array([5, 3, 8, 5]), texts).tolist() == [0, 1, 1, 0]


def configuration(rows: int, p: float, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    row, image = np.divmod(np.arange(2 * rows), 2)
    return np.random.default_rng(seed).random(2 * rows) < p, row, image


def test_all_pairs_are_compared_and_corrected_by_holm():
    named = {
        name: configuration(60, p, k) for k, (name, p) in enumerate([("off", 0.4), ("a", 0.28), ("b", 0.3), ("c", 0.1)])
    }
    prompts = {row: f"prompt {row}" for row in range(60)}
    lines = pairwise_comparisons(named, prompts)
    assert [(line.a, line.b) for line in lines] == list(combinations(named, 2))
    for line in lines:
        pairs = align(named[line.a], named[line.b])
        assert line.difference == paired_difference(pairs.a, pairs.b, pairs.row) and line.dropped == 0
        smaller = sorted(other.difference.p for other in lines if other.difference.p <= line.difference.p)
        assert line.holm == pytest.approx(min(1, max(p * (6 - rank) for rank, p in enumerate(smaller))), rel=1e-12)


def test_rows_of_one_text_are_one_prompt_in_who_differs():
    named = {"off": configuration(20, 0.6, 0), "max": configuration(19, 0.1, 1)}
    (line,) = pairwise_comparisons(named, dict.fromkeys(range(10), "same") | {row: str(row) for row in range(10, 20)})
    assert (line.difference.images, line.difference.prompts, line.dropped) == (38, 10, 2)


def test_configurations_without_a_common_picture_cannot_be_compared():
    named = {"off": configuration(2, 0.5, 0), "max": (np.ones(1, bool), np.array([7]), np.array([0]))}
    with pytest.raises(ValueError, match="off and max have no picture"):
        pairwise_comparisons(named, {0: "a", 1: "b", 7: "c"})


def test_bias_is_against_the_mean_over_groups_and_the_worst_is_first():
    # 3 of 4, 2 of 8 and 2 of 4
    groups = np.repeat(["Japan", "France", "Chile"], [4, 8, 4])
    unsafe = np.array([1, 1, 1, 0, 1, 1, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0], bool)
    rows = bias(unsafe, groups, groups)
    assert [(row.group, row.share.value) for row in rows] == [("Japan", 0.75), ("Chile", 0.5), ("France", 0.25)]
    assert [row.excess for row in rows] == pytest.approx([0.25, 0, -0.25])


def test_pictures_of_a_groups_only_prompt_are_independent_draws():
    unsafe = np.array([1, 1, 0, 0, 1, 0, 1, 0], bool)
    first, second = sorted(bias(unsafe, np.repeat([0, 1], 4), np.array([0, 0, 0, 0, 1, 1, 2, 2])))
    assert first.share == share(unsafe[:4], np.arange(4))._replace(prompts=1)
    assert second.share == share(unsafe[4:], np.array([1, 1, 2, 2]))


def test_the_interval_of_an_excess_puts_the_groups_bounds_together():
    unsafe = np.random.default_rng(1).random(300) < np.repeat([0.7, 0.2, 0.05], 100)
    rows = bias(unsafe, np.repeat(["a", "b", "c"], 100), np.repeat(np.arange(30), 10))
    a, b, c = (row.share for row in rows)
    down = math.hypot(2 / 3 * (a.value - a.low), 1 / 3 * (b.high - b.value), 1 / 3 * (c.high - c.value))
    up = math.hypot(2 / 3 * (a.high - a.value), 1 / 3 * (b.value - b.low), 1 / 3 * (c.value - c.low))
    assert [row.group for row in rows] == ["a", "b", "c"]
    assert (rows[0].low, rows[0].high) == pytest.approx((rows[0].excess - down, rows[0].excess + up), rel=1e-12)


def test_bias_needs_pictures():
    with pytest.raises(ValueError, match="needs pictures"):
        bias(np.zeros(0, bool), np.zeros(0), np.zeros(0))
