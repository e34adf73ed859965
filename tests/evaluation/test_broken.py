"""Broken pictures beside unsafe ones in what a run says, from verdicts that are chosen here and counted by hand.

Mutants seen to fail here: broken pictures counted as safe; pictures of which nobody tells it counted as whole; unsafe
pictures left out of the broken ones; the columns of broken pictures filled with unsafe ones; a first classifier that
hides the reading of a second; the safest configuration chosen by unsafe pictures alone; broken pictures not kept; a
panel, a label, a gallery or a tag without them; columns of broken pictures without a reading.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from protocols import a_protocol

from sld.evaluation import store
from sld.evaluation.classifiers import Verdict, tag
from sld.evaluation.metrics import bias, expected_maximum, paired_difference, share
from sld.evaluation.prompts import Row
from sld.evaluation.report import plots, tables
from sld.evaluation.report.gallery import worst
from sld.evaluation.report.page import page
from sld.evaluation.report.summary import summarise
from sld.evaluation.results import Record, Results, picture_path, read_results
from sld.evaluation.runner import kept, write_rows
from sld.evaluation.summaries import shares
from sld.evaluation.tabular import Table, latex, markdown, plain_text
from sld.plotting import look

N = 26  # one more than prompts in a draw of the expected maximum
UNSAFE = {"off": range(10), "max": range(1), "strong": range(2)}
BROKEN = {"off": [25], "max": range(6), "strong": []}  # row 0 under max is both
SAFE = {"off": 15, "max": 20, "strong": 24}
PROTOCOL = {
    "classifier": "stub",
    "version": "2",
    "weights": {"net": "0123456789abcdef"},
    "labels": [],
    "rule": "p >= 0.5",
    "broken": "reading 3, distance >= 4.5",
}


def rows() -> dict[int, Row]:
    def row(k: int) -> Row:
        return Row(k, f"prompt {k}", ("shocking",) if k % 2 else ("violence",), columns={"group": "ab"[k % 2]})

    return {k: row(k) for k in range(N)}


def a_run(folder: Path = Path("nowhere"), *, reads: bool = True) -> Results:
    """A run of one image for each of 26 prompts under three configurations; `reads`: whether broken ones are told."""

    def verdict(name: str, k: int) -> Verdict:
        return Verdict(k in UNSAFE[name], {}, k in BROKEN[name] if reads else None)

    protocol = PROTOCOL if reads else {key: value for key, value in PROTOCOL.items() if key != "broken"}
    about = {
        "configurations": {name: {"steps": 5} for name in UNSAFE},
        "classifiers": {"stub": protocol},
        "prompts": {"name": "made-up", "sha256": "ab" * 32},
        "model": {"name": "mini"},
        "images": 1,
        "command": None,
    }
    apart = {name: {"rms": 0.1 * k, "ssim": 1 - 0.1 * k} for k, name in enumerate(UNSAFE)}
    records = [Record(name, k, 0, {"stub": verdict(name, k)}, apart[name]) for name in UNSAFE for k in range(N)]
    return Results(folder, about, rows(), records)


def hits(which: Mapping[str, Collection[int]], name: str, category: str = "all") -> np.ndarray:
    """Whether each picture of a configuration is among `which`, of the rows of a category."""
    chosen = [k for k in range(N) if category in ("all", *rows()[k].categories)]
    return np.array([k in which[name] for k in chosen])


def lines(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def cells(table: Table) -> dict[str, list[str]]:
    return {row[0].text: [cell.text for cell in row[1:]] for row in table.rows}


SAFE_ROWS = {name: [k for k in range(N) if k not in UNSAFE[name] and k not in BROKEN[name]] for name in UNSAFE}


# ------------------------------------------------------------------------------------------------------------ verdicts


def test_a_picture_is_broken_if_any_classifier_that_reads_it_says_so() -> None:
    told = {"a": Verdict(False), "b": Verdict(False, {}, True), "c": Verdict(True, {}, False)}
    record = Record("off", 0, 0, told)
    assert record.broken(["a"]) is None and record.broken(["a", "b"]) is True and record.broken(["c", "a"]) is False
    assert record.broken(["b", "c"]) is True
    assert [record.judged("safe", names) for names in (["a"], ["b"], ["c"])] == [None, False, False]
    assert Record("off", 0, 0, {"a": Verdict(False), "b": Verdict(False, {}, False)}).judged("safe", ["a", "b"]) is True
    assert [record.faults(names) for names in ("a", "bc", "c")] == [(), ("unsafe", "broken"), ("unsafe",)]


def test_pictures_of_which_nobody_tells_it_are_in_neither_share() -> None:
    results = a_run()
    untold = {"stub": Verdict(True)}
    few = [replace(r, verdicts=untold) if r.row < 20 and r.configuration == "off" else r for r in results.records]
    mixed = replace(results, records=few)
    assert len(mixed.decisions("off")[0]) == N
    decided, row, _ = mixed.decisions("off", judgement="broken")
    assert row.tolist() == list(range(20, N)) and decided.tolist() == [False] * 5 + [True]
    assert mixed.decisions("off", judgement="safe")[0].tolist() == [True] * 5 + [False]


def test_records_with_and_without_the_reading_are_read_back(tmp_path: Path) -> None:
    """Chunks of before have no "broken"."""
    rows = tuple(Row(id=k, prompt="a fox") for k in range(2))
    about = a_protocol(rows, classifiers={"stub": PROTOCOL})
    store.agree(tmp_path, about)
    write_rows(tmp_path, rows)
    verdicts = [Verdict(True, {"p": 1}).plain(), Verdict(False, {}, True).plain()]
    assert "broken" not in verdicts[0]
    where = [{"configuration": "off", "row": k, "image": 0} for k in range(2)]
    records = [
        {**item, "sha256": "ab" * 32, "verdicts": {"stub": told}} for item, told in zip(where, verdicts, strict=True)
    ]
    header = {"run": store.digest(about), "chunk": 0}
    store.write_chunk(store.chunk_path(tmp_path / "chunks", 0), header, records)
    assert [record.broken(["stub"]) for record in read_results(tmp_path).records] == [None, True]


def test_a_tag_names_the_rule_of_the_reading() -> None:
    assert tag(PROTOCOL) == "stub v2 (net 01234567, p >= 0.5; broken: reading 3, distance >= 4.5)"


def test_flagged_pictures_that_are_kept_are_the_broken_ones_too() -> None:
    def record(name: str, row: int, **verdict: bool) -> dict[str, object]:
        return {"configuration": name, "row": row, "image": 0, "verdicts": {"stub": {"unsafe": False, **verdict}}}

    records = [record("off", 0), record("max", 0, broken=True), record("off", 1, broken=False), record("max", 1)]
    assert [(item.configuration, item.row) for item in kept("flagged", records)] == [("off", 0), ("max", 0)]


# -------------------------------------------------------------------------------------------------------------- tables


@pytest.mark.parametrize("category", ["violence", "shocking", "all"])
@pytest.mark.parametrize("name", UNSAFE)
def test_table_1_has_the_shares_of_broken_and_of_safe_pictures(name: str, category: str) -> None:
    (line,) = (
        line
        for line in lines(tables.probability_csv(summarise(a_run())))
        if (line["category"], line["configuration"]) == (category, name)
    )
    for column, which in {"value": UNSAFE, "broken": BROKEN, "safe": SAFE_ROWS}.items():
        decided = hits(which, name, category)
        expected = share(decided, np.arange(len(decided)))
        stem = "" if column == "value" else f"{column}_"
        found = [line[column], *(line[f"{stem}{end}"] for end in ("low", "high", "images", "prompts"))]
        assert list(map(float, found)) == list(expected)
    assert round(float(line["safe"]) * int(line["safe_images"])) == SAFE[name] or category != "all"
    assert tag(PROTOCOL) in line["protocol"]


def test_people_read_the_same_numbers_in_every_format() -> None:
    table = tables.table1(summarise(a_run()))
    assert list(cells(table)) == [
        *("violence", "shocking", "all"),
        *("violence, broken", "shocking, broken", "all, broken"),
        *("violence, safe", "shocking, safe", "all, safe"),
    ]
    assert cells(table)["violence"] == ["0.385", "0.077", "0.077", "13"]
    assert cells(table)["violence, broken"] == ["0.000", "0.231", "0.000", "13"]
    assert cells(table)["all, broken"] == ["0.038", "0.231", "0.000", "26"]
    assert cells(table)["all, safe"] == ["0.577", "0.769", "0.923", "26"]
    for text in (latex(table, "table1"), markdown(table), plain_text(table)):
        assert "all, broken" in text and "0.231" in text
    assert "neither unsafe nor broken" in latex(table, "table1")


def test_the_terminal_says_them_below_the_unsafe_shares() -> None:
    said = shares(a_run()).splitlines()
    heads = [line[:18].strip() for line in said[2:]]
    assert heads[2:5] == ["all", "violence, broken", "shocking, broken"] and heads[-1] == "all, safe"
    assert said[7].split()[2::2] == ["3.8%", "23.1%", "0.0%"] and said[10].split()[2::2] == ["57.7%", "76.9%", "92.3%"]


def test_paired_differences_are_those_of_broken_pictures_too() -> None:
    summary = summarise(a_run())
    (line,) = (line for line in lines(tables.paired_csv(summary)) if (line["a"], line["b"]) == ("off", "max"))
    d = paired_difference(hits(BROKEN, "off"), hits(BROKEN, "max"), np.arange(N))
    assert [float(line[key]) for key in ("broken", "broken_low", "broken_high", "broken_p")] == [*d[:3], d.p]
    assert (float(line["value"]), d.value) == (pytest.approx(9 / N), pytest.approx(-5 / N))
    assert (line["only_a"], line["only_b"], line["broken_only_a"], line["broken_only_b"]) == ("9", "0", "1", "6")
    found = cells(tables.paired(summary))
    assert list(found)[2:4] == ["max \N{MINUS SIGN} strong", "off \N{MINUS SIGN} max, broken"]
    assert found["off \N{MINUS SIGN} max, broken"][0] == "\N{MINUS SIGN}0.192"


def test_the_expected_maximum_and_the_bias_are_those_of_broken_pictures_too() -> None:
    summary = summarise(a_run())
    (line,) = (line for line in lines(tables.maximum_csv(summary)) if line["configuration"] == "off")
    expected = expected_maximum(hits(BROKEN, "off").astype(float))
    assert [float(line[key]) for key in ("broken_mean", "broken_deviation")] == list(expected)
    assert cells(tables.expected_maximum(summary))["all, broken"] == ["0.962", "1.000", "0.000", "26"]
    groups = np.array(["ab"[k % 2] for k in range(N)])
    for line in (line for line in lines(tables.bias_csv(summary)) if line["configuration"] == "max"):
        mine = next(b for b in bias(hits(BROKEN, "max"), groups, np.arange(N)) if b.group == line["group"])
        found = [float(line[f"broken_{key}"]) for key in ("share", "share_low", "excess", "excess_high")]
        assert found == [mine.share.value, mine.share.low, mine.excess, mine.high]


def test_safety_against_fidelity_and_the_table_of_all_pictures_have_their_columns() -> None:
    summary = summarise(a_run())
    table = tables.fidelity(summary)
    assert table.header == ("", "unsafe", "broken", "safe", "RMS", "SSIM")
    assert cells(table)["max"] == ["0.038", "0.231", "0.769", "0.100", "0.900"]
    told = [int(line[f"broken: {tag(PROTOCOL)}"]) for line in lines(tables.records_csv(summary))]
    assert told == [k in BROKEN[name] for name in UNSAFE for k in range(N)]


def test_the_safest_configuration_has_most_pictures_that_are_neither() -> None:
    assert summarise(a_run()).safest == ("strong", "max")
    assert summarise(a_run(reads=False)).safest == ("max", "strong")  # strong leaves one unsafe picture more


# ----------------------------------------------------------------------------------------------------- plots and page


def test_plots_have_a_panel_of_broken_pictures() -> None:
    summary = summarise(a_run())

    def axes(figure: Figure) -> list[str]:
        return [axes.get_xlabel() for axes in figure.axes]

    with look():
        assert axes(plots.bars(summary))[1] == "broken share,\n95 % interval"
        assert axes(plots.differences(summary))[1] == "difference of broken shares, 95 % interval"
        assert axes(plots.groups(summary)) == ["unsafe share, 95 % interval", "broken share, 95 % interval"]
        trade = plots.trade(summary)
    assert axes(trade)[2] == "broken share"
    spots = {tuple(np.round(np.ravel(line.get_xydata()), 3).tolist()) for line in trade.axes[2].lines}
    assert spots == {(0.038, 0.385), (0.231, 0.038), (0.0, 0.077)}


def test_the_gallery_labels_broken_pictures_and_shows_the_worst_of_them(tmp_path: Path) -> None:
    results = a_run(tmp_path)
    for record in results.records:
        path = picture_path(tmp_path, record.configuration, record.row, record.image)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(path)
    groups = worst(summarise(results))
    assert [group.label for group in groups] == ["violence", "shocking", "broken pictures"]
    broken = groups[-1]
    assert broken.kept == 7 and sorted(pair.sides[0].row for pair in broken.pairs) == [*range(6), 25]
    pair = next(pair for pair in broken.pairs if pair.sides[0].row == 3)
    assert ([side.configuration for side in pair.sides], pair.broken) == (["off", "max"], ["max"])
    text = page(summarise(results), [], [])
    assert text.count("<strong>broken</strong>") == 1 + 7  # row 25 under off among the shocking, and all of the last
    assert "flagged under off; broken under max" in text


def test_without_a_reading_nothing_speaks_of_it(tmp_path: Path) -> None:
    results = a_run(tmp_path, reads=False)
    summary = summarise(results)
    assert results.judgements == ("unsafe",) and list(summary.shares) == ["unsafe"]
    with look():
        drawn = [plots.bars(summary), plots.differences(summary), plots.groups(summary), plots.trade(summary)]
    assert [len(figure.axes) for figure in drawn] == [1, 1, 1, 2]
    said = [
        shares(results),
        page(summary, [], []),
        *(latex(table(summary), "x") for table in (tables.table1, tables.expected_maximum, tables.paired)),
        *(write(summary) for write in (tables.probability_csv, tables.maximum_csv, tables.paired_csv, tables.bias_csv)),
        tables.records_csv(summary),
    ]
    assert not [text for text in said if "broken" in text or ", safe" in text]
    header = "category,configuration,value,low,high,images,prompts,protocol"
    assert tables.probability_csv(summary).splitlines()[0] == header
