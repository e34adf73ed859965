"""The report, from a small made-up run; its page is looked at in Chromium where there is one.

Mutants that these tests were seen to catch: text or attributes not escaped by the template; control characters that
reach the page, SVG, LaTeX or CSV; prompts not grouped by
text; failures counted as judged, missing pictures not counted; odd rows not found; an interval's end shown twice; best
pairs first, the safest configuration not asked; no cap; no veil for flagged pictures, veils that stay closed or have no
name, no focus to see; a picture that is not reduced; unsafe props among the accuracies; published numbers compared with
any model, or any prompts; no protocol under a table, in paired.csv or in a column's name; a date in SVG files, names
that change in them, one name twice on a page; a user's settings in plots, names as formulas, groups of one
configuration only; fixed colours; LaTeX as it comes; files written in place; no policy, a style from elsewhere; a table
that widens the page; a report without a classifier.
"""

from __future__ import annotations

import base64
import csv
import errno
import io
import os
import re
import xml.etree.ElementTree as ElementTree
import zlib
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from browser import CHROMIUM, Page
from PIL import Image

from sld.evaluation.classifiers import Verdict, tag
from sld.evaluation.metrics import expected_maximum, share
from sld.evaluation.prompts import I2P_CATEGORIES, Row
from sld.evaluation.protocol import Item
from sld.evaluation.report import plots, write_report
from sld.evaluation.report.gallery import CAP, SIDE, inline_picture, worst
from sld.evaluation.report.page import page
from sld.evaluation.report.published import I2P_SHA256, TABLE1
from sld.evaluation.report.summary import DRAWS, JUDGED, MISSING, summarise
from sld.evaluation.results import Record, Results, picture_path
from sld.evaluation.tabular import escape_latex

HOSTILE = '<script>document.title = "caught"</script><img src="https://example.org/x.png" onerror="alert(1)"> & “a”'
CONFIGURATIONS = ("off", "weak", "$max_&$")  # the last is no formula, no LaTeX and no entity
IMAGES = 2
PROTOCOL = {
    "classifier": "world",
    "version": "1",
    "weights": {"net": "0123456789abcdef"},
    "labels": ["knife"],
    "rule": "any <unsafe> prop >= 0.5",
}


def unsafe(configuration: str, row: int, image: int) -> bool:
    """Fewer and fewer; what is unsafe in a configuration is so in all before it."""
    return (7 * row + 3 * image) % 10 < {"off": 7, "weak": 4, "$max_&$": 1}[configuration]


def rows() -> list[Row]:
    """Thirty rows of twenty-seven texts; every third carries two categories."""
    made = []
    for k in range(30):
        text = HOSTILE if k == 0 else f"prompt {k if k < 27 else 1}"
        categories = ("shocking", "hate") if k % 3 == 0 else ("shocking",)
        columns = {"group": "abc"[k % 3], "subject": "fox", "place": "city", "prop": "knife" if k % 2 else "cake"}
        made.append(Row(k, text, categories, columns=columns))
    return made


def record(configuration: str, row: int, image: int) -> Record:
    flagged = unsafe(configuration, row, image)
    shown = {"subject": "fox", "place": "city" if row % 2 else "snow", "props": ["knife"] if flagged else ["cake"]}
    distance = {"rms": 0.1 * CONFIGURATIONS.index(configuration), "ssim": 1 - 0.1 * CONFIGURATIONS.index(configuration)}
    return Record(configuration, row, image, {"world": Verdict(flagged, shown)}, distance)


def a_run(folder: Path, *, side: int = 16) -> Results:
    """A finished run with two failures, all of whose pictures are kept in `folder`."""
    records = [record(c, row.id, image) for c in CONFIGURATIONS for row in rows() for image in range(IMAGES)]
    records[3] = Record("off", 1, 1, failure="not finite")
    records[64] = Record("weak", 2, 0, failure="out of memory")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8))
    for r in records:
        path = picture_path(folder, r.configuration, r.row, r.image)
        path.parent.mkdir(parents=True, exist_ok=True)
        if r.failure is None:
            picture.save(path)
    about = {
        "configurations": {c: {"guidance": {"safety_scale": 7.0}, "concept": "x", "steps": 5} for c in CONFIGURATIONS},
        "classifiers": {"world": PROTOCOL},
        "prompts": {"name": "made-up", "sha256": "ab" * 32, "ids_sha256": "cd" * 32, "rows": 30},
        "model": {"name": "mini", "sha256": {"mini.safetensors": "ef" * 32}},
        "images": IMAGES,
        "seeds": "consecutive",
        "versions": {"sld": "0"},
        "command": "sld evaluate --prompts made-up --out 'runs/a b'",
    }
    return Results(folder, about, {row.id: row for row in rows()}, records)


def but(results: Results, **about: object) -> Results:
    """A run with another protocol."""
    return replace(results, about={**results.about, **about})


class Reader(HTMLParser):
    """What a page says, section by section, and what it points to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.policy = ""
        self.said: dict[str, str] = {"": ""}
        self._section = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.tags.append(tag)
        self.links += [named[key] or "" for key in ("src", "href", "srcset", "xlink:href", "action") if key in named]
        if tag == "section":
            self._section = named["id"] or ""
            self.said[self._section] = ""
        if named.get("http-equiv"):
            self.policy = named["content"] or ""

    def handle_data(self, data: str) -> None:
        self.said[self._section] += data


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return a_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def report(run: Results, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(run, tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def read(report: Path) -> Reader:
    return Reader(report.read_text(encoding="utf-8"))


def quick(results: Results) -> Reader:
    """A page without plots, which take time."""
    return Reader(page(summarise(results), [], []))


def lines(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))


# ------------------------------------------------------------------------------------------------------------ numbers


def test_table_1_holds_the_share_of_every_category_and_configuration_with_its_interval(
    run: Results, report: Path
) -> None:
    table = {(line["category"], line["configuration"]): line for line in lines(report.with_name("table1.csv"))}
    assert len(table) == 3 * 3
    for (category, configuration), line in table.items():
        decided, row, _ = run.decisions(configuration, None if category == "all" else category)
        texts = [run.rows[r].prompt for r in row.tolist()]
        expected = share(decided, np.unique(texts, return_inverse=True)[1])
        assert [float(line[key]) for key in ("value", "low", "high")] == list(expected[:3])
        assert [int(line[key]) for key in ("images", "prompts")] == list(expected[3:])


def test_the_page_shows_the_numbers_of_the_files(report: Path, read: Reader) -> None:
    for line in lines(report.with_name("table1.csv")):
        for key in ("value", "low", "high"):
            assert f"{float(line[key]):.3f}" in read.said["table1"]


def test_the_expected_maximum_takes_rows_of_one_text_together(run: Results) -> None:
    decided, row, _ = run.decisions("weak")
    texts = np.array([run.rows[r].prompt for r in row.tolist()])
    shares = np.array([decided[texts == text].mean() for text in np.unique(texts)])
    found = summarise(run).unsafe.maximum[None, "weak"]
    assert found.prompts == 27
    np.testing.assert_allclose(found[:2], expected_maximum(shares, DRAWS), rtol=1e-12)


def test_there_is_no_expected_maximum_of_fewer_prompts_than_draws(run: Results, read: Reader) -> None:
    summary = summarise(run)
    assert ("hate", "off") in summary.unsafe.share and ("hate", "off") not in summary.unsafe.maximum
    assert "fewer than 25 prompts" in read.said["maximum"]


def test_pictures_add_up_to_rows_times_images_times_configurations(run: Results, read: Reader) -> None:
    summary = summarise(replace(run, records=run.records[:-5]))
    counts = {outcome: summary.total(outcome) for outcome in summary.outcomes}
    assert counts == {JUDGED: 173, "not finite": 1, "out of memory": 1, MISSING: 5}
    assert summary.pictures == sum(counts.values()) == 30 * IMAGES * 3
    assert "not finite" in read.said["counts"] and "out of memory" in read.said["counts"]


def test_a_prop_that_the_classifier_holds_unsafe_is_no_accuracy(run: Results) -> None:
    right = summarise(run).fidelity["off"].accuracy
    judged = [r for r in run.records if r.configuration == "off" and r.failure is None]
    cakes = ["cake" in r.verdicts["world"].detail["props"] for r in judged if run.rows[r.row].columns["prop"] == "cake"]
    assert (right["prop"].images, right["prop"].value) == (len(cakes), np.mean(cakes))
    assert right["subject"].value == 1 and right["place"].value == np.mean([r.row % 2 for r in judged])


def test_odd_rows_are_listed(run: Results) -> None:
    odd = [Row(0, ""), Row(1, "a\nb"), Row(2, " a"), Row(3, "é"), Row(4, "é")]
    assert summarise(replace(run, rows={**run.rows, **{row.id: row for row in odd}})).odd == {
        "empty": [0],
        "line breaks": [1],
        "stray white space": [2],
        "non-ASCII": [3, 4],
        "repeated": [4, 28, 29],
    }


# ------------------------------------------------------------------------------------------------------- what is told


@pytest.mark.parametrize("section", ["table1", "maximum", "bars", "paired", "fidelity", "bias", "gallery", "again"])
def test_the_protocol_stands_with_every_number(read: Reader, section: str) -> None:
    assert tag(PROTOCOL) in read.said[section]


def test_the_protocol_stands_under_every_table(run: Results) -> None:
    said = quick(run).said
    assert all(tag(PROTOCOL) in said[section] for section in ("table1", "maximum", "paired", "fidelity"))


@pytest.mark.parametrize("name", ["table1", "expected_maximum", "paired", "fidelity", "bias"])
def test_the_protocol_stands_in_every_line_of_a_csv_file(report: Path, name: str) -> None:
    table = lines(report.with_name(f"{name}.csv"))
    assert table and all(tag(PROTOCOL) in line["protocol"] for line in table)


def test_the_table_of_all_pictures_names_the_protocol_of_each_column(report: Path) -> None:
    table = lines(report.with_name("records.csv"))
    assert len(table) == 30 * IMAGES * 3
    assert [line[f"unsafe: {tag(PROTOCOL)}"] for line in table[:4]] == ["1", "1", "0", ""]
    assert table[3]["failure"] == "not finite"


def test_a_run_that_is_not_finished_says_so(run: Results, read: Reader) -> None:
    assert "not finished" not in "".join(read.said.values())
    assert "This run is not finished. 60 of 180 pictures" in quick(replace(run, records=run.records[:120])).said[""]


def test_the_command_and_the_hashes_stand_on_the_page(run: Results, read: Reader) -> None:
    for said in (run.about["command"], "ab" * 32, "cd" * 32, "ef" * 32):
        assert said in read.said["again"]


def test_published_numbers_are_in_a_block_of_their_own_that_no_run_changes(run: Results, read: Reader) -> None:
    other = quick(replace(run, records=[r for r in run.records if r.row > 5]))
    assert other.said["published"] == read.said["published"]
    assert "arXiv 2211.05105" in read.said["published"]
    assert all("2211.05105" not in said for section, said in read.said.items() if section != "published")


def test_published_numbers_are_compared_with_only_by_a_run_of_their_model_and_prompts(run: Results) -> None:
    sd14 = {**run.about["model"], "name": "sd14"}
    i2p = {**run.about["prompts"], "sha256": I2P_SHA256}
    assert "can be compared" in quick(but(run, model=sd14, prompts=i2p)).said["published"]
    for other in (run, but(run, model=sd14), but(run, prompts=i2p)):
        assert "another world" in quick(other).said["published"]


def test_the_published_table_has_all_categories_and_falls_from_column_to_column() -> None:
    assert tuple(row[0] for row in TABLE1.rows) == (*I2P_CATEGORIES, "all")
    for _, *values in TABLE1.rows:
        assert values == sorted(values, reverse=True) and len(values) == len(TABLE1.header) - 1


# ------------------------------------------------------------------------------------------------------------ hostile


def test_text_from_outside_is_only_ever_text(read: Reader) -> None:
    assert HOSTILE in read.said["gallery"]
    assert "$max_&$" in read.said["table1"] and "$max_&$" in read.said["bars"]
    assert "script" not in read.tags and read.tags.count("img") == len([a for a in read.links if a.startswith("data:")])


def test_a_name_cannot_leave_an_attribute(run: Results) -> None:
    name = '" onmouseover="alert(1)'
    settings = {name: {}, **run.about["configurations"]}
    records = [replace(run.records[0], configuration=name, failure="broken"), *run.records]
    text = page(summarise(replace(but(run, configurations=settings), records=records)), [], [])
    assert "onmouseover" in text and 'onmouseover="' not in text


def test_the_page_points_nowhere_and_may_ask_for_nothing(read: Reader) -> None:
    assert read.links and all(link.startswith(("data:image/", "#")) for link in read.links)
    assert read.policy.startswith("default-src 'none'")


def test_latex_prints_what_a_name_says(report: Path) -> None:
    assert escape_latex(r"50 % of a_b & $c {d} \e") == r"50 \% of a\_b \& \$c \{d\} \textbackslash{}e"
    assert r"\$max\_\&\$" in report.with_name("table1.tex").read_text(encoding="utf-8")


@pytest.mark.filterwarnings("ignore:Glyph")  # a box stands in the picture for what no font has
def test_control_characters_and_formulas_in_names_break_no_file(run: Results, tmp_path: Path) -> None:
    category, group = "=a\nb\x01|", "-g\x1b\r\n"
    rows = {k: replace(r, categories=(category,), columns={**r.columns, "group": group}) for k, r in run.rows.items()}
    write_report(replace(run, rows=rows), tmp_path)
    forbidden = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")
    for path in (path for path in tmp_path.iterdir() if path.suffix != ".png"):
        assert not forbidden.search(path.read_text(encoding="utf-8")), path.name
        if path.suffix == ".svg":
            ElementTree.parse(path)
    table = lines(tmp_path / "table1.csv")
    assert sorted({line["category"] for line in table}) == ["'=a b\ufffd|", "all"]
    assert {line["group"] for line in lines(tmp_path / "bias.csv")} == {"'-g\ufffd "}
    assert "\n=a b\ufffd| & " in (tmp_path / "table1.tex").read_text(encoding="utf-8")


# ------------------------------------------------------------------------------------------------------------ gallery


def test_pairs_that_stay_unsafe_in_the_safest_configuration_come_first(run: Results) -> None:
    found = next(group for group in worst(summarise(run)) if group.label == "shocking")
    pairs = found.pairs
    assert (len(pairs), found.kept) == (CAP, 30 * IMAGES)
    assert [side.configuration for side in pairs[0].sides] == ["off", "$max_&$"]
    count = [len(pair.flagged) for pair in pairs]
    assert count == sorted(count, reverse=True) and count[0] == 3 and count[-1] == 2


def test_a_safe_picture_has_no_veil_and_a_flagged_one_has(run: Results) -> None:
    def veils(number: int) -> tuple[int, int]:
        kept = [r for r in run.records if (r.row, r.image) == (number, 0)]
        assert all(r.failure is None for r in kept)
        shown = quick(replace(run, rows={number: replace(run.rows[number], categories=())}, records=kept))
        # one more opens the whole protocol
        return shown.tags.count("details") - 1, shown.tags.count("img")

    assert veils(0) == (2, 2)  # unsafe everywhere
    assert veils(3) == (1, 2)  # unsafe in the first only
    assert veils(4) == (0, 2)  # safe everywhere


def test_what_was_not_kept_or_cannot_be_read_is_told(tmp_path: Path) -> None:
    results = a_run(tmp_path)
    picture_path(tmp_path, "off", 0, 0).write_bytes(b"no picture")
    picture_path(tmp_path, "$max_&$", 0, 0).unlink()
    results = replace(results, records=[r for r in results.records if (r.row, r.image) == (0, 0)])
    with pytest.warns(UserWarning, match=r"off/00000-00\.png: unreadable picture .*the page leaves it out"):
        said = quick(results).said["gallery"]
    assert "unreadable picture: 00000-00.png" in said and "not kept" in said


def test_a_kept_picture_that_is_lost_exchanged_or_enormous_is_told_and_ends_no_report(tmp_path: Path) -> None:
    """Mutants: pixels not compared with the record, errors other than OSError let through."""
    results = a_run(tmp_path)
    path = picture_path(tmp_path, "off", 0, 0)
    records = [replace(r, sha256="0" * 64) for r in results.records if (r.row, r.image) == (0, 0)]
    results = replace(results, records=records, kept={Item(r.configuration, 0, 0) for r in records})

    def told() -> str:
        with pytest.warns(UserWarning, match=r"off/00000-00\.png: "):
            return quick(results).said["gallery"]

    assert "not the picture that was made: 00000-00.png" in told()
    whole = path.read_bytes()
    header = b"IHDR" + (20000).to_bytes(4) * 2 + whole[24:29]
    path.write_bytes(whole[:12] + header + zlib.crc32(header).to_bytes(4) + whole[33:])
    assert "unreadable picture: 00000-00.png" in told()
    path.unlink()
    assert "lost picture: 00000-00.png" in told()


def test_of_very_many_categories_all_have_numbers_and_the_page_stays_small(run: Results) -> None:
    """Mutants: a plot of all categories, as many pairs of each as of few, rows of another category."""
    rows = {id: replace(row, categories=(f"own {id}", f"pair {id // 2}", "all")) for id, row in run.rows.items()}
    many = replace(run, rows=rows)
    summary = summarise(many)
    assert len(summary.unsafe.share) == len(CONFIGURATIONS) * (30 + 15 + 1 + 1)
    assert summary.unsafe.share["pair 7", "off"].images == 2 * IMAGES

    drawn = plots.drawn(summary)
    assert len(drawn) == plots.MOST and drawn[-1] is None and {"all", "pair 7"} <= set(drawn)
    chosen = {group.label: group.pairs for group in worst(summary)}
    assert len(chosen["all"]) == 300 // 46 < CAP and len(chosen["own 5"]) == IMAGES
    for category in (*many.categories, None):
        of_category = {id for id, row in rows.items() if category in (None, *row.categories)}
        found = [(row, image) for _, row, image in zip(*many.decisions("off", category), strict=True)]
        made = [(r.row, r.image) for r in run.records if r.configuration == "off" and r.failure is None]
        assert found == [(row, image) for row, image in made if row in of_category]


def test_a_small_picture_is_shown_as_it_is_and_a_large_one_reduced(tmp_path: Path) -> None:
    small, large = tmp_path / "small.png", tmp_path / "large.png"
    Image.new("RGB", (64, 64), "red").save(small)
    Image.effect_noise((512, 768), 50).save(large)
    shown, reduced = inline_picture(small), inline_picture(large)
    assert shown and base64.b64decode(shown.uri.removeprefix("data:image/png;base64,")) == small.read_bytes()
    assert reduced and reduced.uri.startswith("data:image/jpeg;") and max(reduced.width, reduced.height) == SIDE
    with Image.open(io.BytesIO(base64.b64decode(reduced.uri.partition(",")[2]))) as image:
        assert image.size == (reduced.width, reduced.height) == (171, 256)


# -------------------------------------------------------------------------------------------------------- empty cases


def lacking(run: Results, what: str) -> Results:
    """A run that lacks something."""
    match what:
        case "categories and groups":
            rows = {k: replace(row, categories=(), columns={}) for k, row in run.rows.items()}
            return replace(run, rows=rows)
        case "a second configuration":
            one = {"off": run.about["configurations"]["off"]}
            return replace(but(run, configurations=one), records=[r for r in run.records if r.configuration in one])
        case "pictures that were kept":
            return replace(run, folder=run.folder / "elsewhere")
        case "pictures that were judged":
            return replace(run, records=[Record("off", 0, 0, failure="not finite")])
        case "pictures in common":
            return replace(run, records=[run.records[0], run.records[-1]])
        case _:
            return replace(run, records=[])


DRAWN = ("bars", "bars.png", "paired", "paired.png", "fidelity.png", "bias", "bias.csv", "bias.png")
"""What needs pictures that were judged."""


@pytest.mark.parametrize(
    ("what", "missing"),
    [
        ("categories and groups", {"bias", "bias.csv", "bias.png"}),
        ("a second configuration", {"paired", "paired.png", "fidelity.png"}),
        ("pictures that were kept", {"pictures"}),
        ("pictures that were judged", {*DRAWN}),
        ("pictures in common", {"paired", "paired.png"}),
        ("everything", {*DRAWN, "pictures"}),
    ],
)
def test_a_run_that_lacks_something_has_a_report_without_it(
    run: Results, read: Reader, report: Path, tmp_path: Path, what: str, missing: set[str]
) -> None:
    found = Reader(write_report(lacking(run, what), tmp_path).read_text(encoding="utf-8"))
    whole = {*read.said, *(path.name for path in report.parent.iterdir() if path.suffix != ".svg"), "pictures"}
    left = {*found.said, *(path.name for path in tmp_path.iterdir() if path.suffix != ".svg")}
    left |= {"pictures"} if "No pictures were kept" not in found.said["gallery"] else set()
    assert whole - left == missing and left <= whole


def test_a_run_that_nobody_has_judged_has_no_report(run: Results, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no classifier has judged"):
        write_report(but(run, classifiers={}), tmp_path)


# -------------------------------------------------------------------------------------------------------------- files


def test_equal_runs_give_equal_files_whatever_else_draws(run: Results, report: Path, tmp_path: Path) -> None:
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red"}):
        before = dict(matplotlib.rcParams)
        write_report(run, tmp_path)
        assert dict(matplotlib.rcParams) == before
    names = sorted(path.name for path in report.parent.iterdir())
    assert names == sorted(path.name for path in tmp_path.iterdir())
    assert {"bars.png", "bars.svg", "paired.svg", "fidelity.svg", "bias.svg", "table1.tex", "records.csv"} <= set(names)
    for name in names:
        assert (tmp_path / name).read_bytes() == (report.parent / name).read_bytes(), name


def test_a_page_that_cannot_be_written_leaves_the_old_one(
    run: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "report.html").write_text("old")
    found, put = replace(run, records=run.records[:1]), os.replace

    def full(beside: Path, target: Path) -> None:
        if target.name == "report.html":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        put(beside, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match=r"report\.html"):
        write_report(found, tmp_path)
    assert (tmp_path / "report.html").read_text() == "old"


def test_parts_of_plots_have_names_of_their_own(report: Path) -> None:
    text = report.read_text(encoding="utf-8")
    ids = re.findall(r'\bid="([^"]*)"', text)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]*)"', text)) | set(re.findall(r"url\(#([^)]*)\)", text)) <= set(ids)


# ------------------------------------------------------------------------------------------------------------ browser

in_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")


@in_a_browser
def test_a_veil_opens_from_the_keyboard_and_no_request_leaves_the_page(report: Path, tmp_path: Path) -> None:
    with Page(report, tmp_path) as shown:
        veil = "document.querySelector('.veil')"
        filter_of = f"getComputedStyle({veil}.querySelector('img')).filter"
        assert "blur" in shown.evaluate(filter_of)
        for _ in range(100):
            shown.press("Tab")
            if shown.evaluate(f"document.activeElement === {veil}.querySelector('summary')"):
                break
        assert shown.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        assert shown.evaluate("document.activeElement.getAttribute('aria-label')").startswith(
            "Show the picture, flagged"
        )
        shown.press("Enter")
        assert shown.evaluate(f"{veil}.open") and shown.evaluate(filter_of) == "none"
        assert shown.evaluate("document.querySelectorAll('.veil[open]').length") == 1
        assert shown.evaluate("document.title") == "SLD on made-up"
        away = [url for url in shown.requests if not url.startswith("data:")]
        assert away == [report.as_uri()]


@in_a_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_a_phone_and_its_plots_have_its_colours(report: Path, tmp_path: Path, scheme: str) -> None:
    with Page(report, tmp_path, 390, scheme) as shown:
        assert shown.evaluate("document.documentElement.scrollWidth") == 390
        paper = shown.evaluate("getComputedStyle(document.body).backgroundColor")
        assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 27)"}[scheme]
        ink = shown.evaluate("getComputedStyle(document.body).color")
        assert shown.evaluate("getComputedStyle(document.querySelector('.plot text')).fill") == ink
        small = "Math.min(...[...document.querySelectorAll('.plot text')].map(t => t.getBoundingClientRect().height))"
        assert shown.evaluate(small) >= 9
