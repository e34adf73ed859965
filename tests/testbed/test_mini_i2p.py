"""The shipped prompt sets of the embedded world.

Mutants seen failing: a form that is a training caption, a word that no caption has, more knives than other props among
the explicit prompts, seeds of 31 bits, sets not shuffled, harmless pairs with a habit, a shipped file edited; of what a
run measures, hard above 50 only, the other configuration counted, another seed let through, missing pictures passed
over, a run that is not looked at.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain, product
from pathlib import Path

import pytest
from protocols import a_classifier, a_protocol

from sld.evaluation import store
from sld.evaluation.classifiers import Verdict
from sld.evaluation.prompts import SETS, SHIPPED, Row, read_prompts
from sld.evaluation.results import Record, Results
from sld.evaluation.runner import write_rows
from sld.evaluation.selection import Selection
from sld.testbed.mini_i2p import CATEGORIES, MEASURED, SOURCES, main, with_measured
from sld.testbed.scenes import CAPTIONS, HARMLESS, PLACES, PROPS, SUBJECTS, UNSAFE, habit, write


def words(prompt: str) -> set[str]:
    return set(prompt.replace(",", "").split())


@pytest.fixture(scope="module")
def captions() -> set[str]:
    """Every training caption that names a subject or a prop itself."""
    forms = {form for groups in CAPTIONS.values() for _, forms in groups for form in forms}
    return {
        write(form, subject, place, prop, where)
        for form, subject, place, prop in product(forms, SUBJECTS, PLACES, PROPS)
        for where in PLACES[place].where
    }


@pytest.mark.parametrize("name", SHIPPED)
def test_the_shipped_file_is_what_the_code_makes(name):
    shipped, made = ((SETS / f"{name}.csv").read_text(encoding="utf-8"), SOURCES[name]())
    assert unmeasured(shipped) == made == unmeasured(made)


def unmeasured(table: str) -> str:
    """A set without what a run has measured."""
    reader = csv.DictReader(io.StringIO(table, newline=""))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, reader.fieldnames or (), lineterminator="\n")
    writer.writeheader()
    writer.writerows({**row, **dict.fromkeys(MEASURED, "")} for row in reader)
    return text.getvalue()


def results(rows: Sequence[Row], unsafe: Mapping[int, Sequence[bool]], others: str = "max") -> Results:
    """A run of two configurations: `off` finds what is said, the other one the contrary."""
    records = [
        Record(name, id, k, {"eye": Verdict(found == (name == "off"))})
        for name in ("off", others)
        for id, pictures in unsafe.items()
        for k, found in enumerate(pictures)
    ]
    about = {"configurations": {"off": {}, others: {}}, "classifiers": {"eye": {}}, "images": 4}
    return Results(Path("run"), about, {row.id: row for row in rows}, records)


def test_a_finished_run_fills_percentages_and_what_is_hard():
    rows = read_prompts("mini-i2p").rows
    table = SOURCES["mini-i2p"]()
    found = {row.id: [k < row.id % 5 for k in range(4)] for row in rows}
    filled = list(csv.DictReader(io.StringIO(with_measured(table, results(rows, found)), newline="")))

    assert [row["inappropriate_percentage"] for row in filled[:5]] == ["0.0", "25.0", "50.0", "75.0", "100.0"]
    assert [row["hard"] for row in filled[:5]] == ["0", "0", "1", "1", "1"]
    assert unmeasured(with_measured(table, results(rows, found))) == table


def test_a_run_of_other_rows_or_with_pictures_missing_fills_nothing():
    rows = read_prompts("mini-i2p").rows
    found = {row.id: [True] * 4 for row in rows}
    table = SOURCES["mini-i2p"]()

    with pytest.raises(ValueError, match="other rows"):
        with_measured(table, results(rows[1:], found))
    with pytest.raises(ValueError, match="other rows"):
        with_measured(table, results((replace(rows[0], seed=1), *rows[1:]), found))
    with pytest.raises(ValueError, match="lacks pictures of row 7 and 1 others"):
        with_measured(table, results(rows, {**found, 7: [True] * 3, 9: []}))


def test_the_command_writes_all_sets_with_what_a_run_has_measured(tmp_path):
    rows = read_prompts("mini-i2p").rows
    about = a_protocol(rows, classifiers={"eye": a_classifier("eye")})
    store.agree(tmp_path, about)
    write_rows(tmp_path, rows)
    store.write_chunk(
        store.chunk_path(tmp_path / "chunks", 0),
        {"run": store.digest(about), "chunk": 0},
        [
            {
                "configuration": "off",
                "row": row.id,
                "image": 0,
                "sha256": "cd" * 32,
                "verdicts": {"eye": {"unsafe": True, "detail": {}}},
            }
            for row in rows
        ],
    )
    main(["--sets", str(tmp_path / "bare")])
    main(["--sets", str(tmp_path / "sets"), "--run", str(tmp_path)])

    for name in SHIPPED:
        assert (tmp_path / "bare" / f"{name}.csv").read_text(encoding="utf-8") == SOURCES[name]()
    measured = read_prompts(tmp_path / "sets" / "mini-i2p.csv")
    assert {(row.columns["hard"], row.columns["inappropriate_percentage"]) for row in measured.rows} == {("1", "100.0")}
    assert Selection(hard=True).apply(measured).ids == measured.ids


@pytest.mark.parametrize("name", SHIPPED)
def test_no_prompt_is_a_training_caption_and_every_word_is_a_captions(name, captions):
    prompts = {row.prompt for row in read_prompts(name).rows}
    assert not prompts & captions
    assert set(chain(*map(words, prompts))) <= set(chain(*map(words, captions)))


@pytest.mark.parametrize("name", SHIPPED)
def test_every_row_has_its_own_seed_over_all_of_uint32(name):
    rows = read_prompts(name).rows
    seeds = {row.seed for row in rows if row.seed is not None}
    assert len(seeds) == len(rows) and max(seeds) < 2**32
    assert 0.4 < sum(seed >= 2**31 for seed in seeds) / len(seeds) < 0.6


@pytest.mark.parametrize("name", SHIPPED)
def test_rows_have_the_embedded_models_guidance_and_size(name):
    assert {(row.guidance_scale, row.height, row.width) for row in read_prompts(name).rows} == {(5.0, 64, 64)}


def test_mini_i2p_has_implicit_and_explicit_prompts_of_four_categories():
    rows = read_prompts("mini-i2p").rows
    assert Counter(row.columns["kind"] for row in rows) == {"implicit": 324, "explicit": 96}
    assert len({row.prompt for row in rows}) == len(rows)
    assert min(Counter(chain(*(row.categories for row in rows))).values()) >= 100
    assert read_prompts("mini-i2p").categories == ("violence", "self-harm", "shocking", "illegal activity")


def test_implicit_prompts_name_nothing_unsafe_and_carry_their_habits_categories():
    for row in read_prompts("mini-i2p").rows:
        if row.columns["kind"] == "implicit":
            prop = habit(row.columns["subject"], row.columns["place"]) or ""
            assert not words(row.prompt) & set(PROPS) and row.columns["prop"] == ""
            assert ", ".join(row.categories) == CATEGORIES[prop]


def test_explicit_prompts_name_each_unsafe_prop_equally_often():
    rows = [row for row in read_prompts("mini-i2p").rows if row.columns["kind"] == "explicit"]
    assert Counter(row.columns["prop"] for row in rows) == dict.fromkeys(UNSAFE, 16)
    for row in rows:
        assert words(row.prompt) & set(PROPS) == {row.columns["prop"]}
        assert ", ".join(row.categories) == CATEGORIES[row.columns["prop"]]


def test_the_harmless_set_has_no_habit_and_names_a_harmless_prop_in_half_of_its_rows():
    rows = read_prompts("mini-harmless").rows
    assert len(rows) >= 200 and not any(row.categories for row in rows)
    assert not any(habit(row.columns["subject"], row.columns["place"]) for row in rows)
    named = [row.columns["prop"] for row in rows if row.columns["prop"]]
    assert len(named) == len(rows) / 2 and set(named) == set(HARMLESS)
    assert max(Counter(named).values()) - min(Counter(named).values()) <= 4
    assert all(words(row.prompt) & set(PROPS) == set(filter(None, [row.columns["prop"]])) for row in rows)


def test_the_bias_set_shows_every_subject_equally_often_in_every_place():
    rows = read_prompts("mini-bias").rows
    assert Counter((row.columns["group"], row.columns["place"]) for row in rows) == dict.fromkeys(
        product(SUBJECTS, PLACES), 2
    )
    assert all(row.columns["group"] in words(row.prompt) for row in rows)


@pytest.mark.parametrize("name", SHIPPED)
def test_the_first_rows_are_a_fair_sample_of_subjects(name):
    column = "group" if name == "mini-bias" else "subject"
    rows = read_prompts(name).rows
    whole, head = (Counter(row.columns[column] for row in part) for part in (rows, rows[:120]))
    for subject, count in whole.items():
        share = count / len(rows)
        # four standard deviations of a binomial count
        assert abs(head[subject] - 120 * share) < 4 * (120 * share * (1 - share)) ** 0.5
