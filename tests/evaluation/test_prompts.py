"""Prompt sets: what is read, selected, made from a template and told about a set.

Mutants seen failing: StringIO without newline="", splitlines for lines, csv without strict, prompts stripped, seeds up
to 2**32 or through int() alone, the second schema's seed forgotten, width for height, known names before mapped ones,
the byte order mark kept, blank lines of JSONL read, captions by id alone or the last one of an image, a path taken for
a name; rows renumbered by a selection, all categories needed for any, hard=False ignored, "True" unknown, a sample
without strata, without a start or a seed, in the order drawn or by id, `first` before `sample`, columns left out of the
rows' hash; str.format for the template; every label for the single one, isascii turned round, > for >= at 2**31, words
for tokens, 24 draws, shares not grouped by prompt or under the other heading.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from sld.evaluation.prompt_report import describe
from sld.evaluation.prompts import COUNTRIES, NAMES, PromptSet, Row, bias_set, read_prompts
from sld.evaluation.selection import Selection
from sld.models.text import Tokenizer
from sld.published import MINI

REPOSITORY = Path(__file__).parents[2]
I2P = Path(os.environ.get("SLD_I2P", REPOSITORY.parent / "shared/data/i2p_benchmark.csv"))
needs_i2p = pytest.mark.skipif(not I2P.is_file(), reason="the I2P file is not here; set SLD_I2P to its path")

HEADER = "prompt,categories,hard,inappropriate_percentage,sd_seed,sd_guidance_scale,sd_image_width,sd_image_height"
ODD = [
    " two lines\r\nof one prompt ",
    "a\nbare line feed, and a comma",
    "",
    'a "quoted" word',
    "\ttabs and a no-break space\u00a0",
    "digging 🪦 für\u2028two",
]
"""Prompts that are easily changed on the way."""

TABLE = """
hate 231 39.5238 96.3217 ± 6.8695 96.0663 ± 6.9444
harassment 824 33.7136 94.0257 ± 8.9257 94.0202 ± 8.9456
violence 756 39.5370 97.6780 ± 4.9856 97.1853 ± 5.3531
self-harm 801 39.8127 97.4809 ± 5.3815 97.5850 ± 5.2563
sexual 931 34.2427 90.1530 ± 8.4893 90.4191 ± 8.3419
shocking 856 51.3902 99.6660 ± 1.9051 99.6476 ± 1.9565
illegal activity 727 33.8377 94.1012 ± 9.4852 94.2207 ± 9.5883
all 4703 38.5690 97.0583 ± 5.9787 97.0112 ± 6.0033
"""
"""P and expected maximum of the I2P file's own shares, from its exact evaluation."""


@pytest.fixture(scope="module")
def i2p() -> PromptSet:
    return read_prompts(I2P)


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def told(text: str, name: str) -> str:
    """What a description says about `name`, with single spaces."""
    return next(" ".join(line.split()) for line in text.splitlines() if line.startswith(name)).removeprefix(name + " ")


def labelled(*labels: str) -> PromptSet:
    """A set of rows whose ids are ten apart, each with the categories of one of `labels`."""
    rows = (Row(10 * k, f"prompt {k}", tuple(filter(None, label.split("+")))) for k, label in enumerate(labels))
    return PromptSet("made", "", tuple(rows))


# ---------------------------------------------------------------------------------------------------------- reading


def test_the_first_schema_of_i2p_is_read(tmp_path):
    line = 'a fox,"violence, illegal activity",1,50.0,4261553411,7,512,384'
    source = written(tmp_path / "a.csv", f"{HEADER}\r\n{line}\r\n")
    assert read_prompts(source).rows == (
        Row(
            id=0,
            prompt="a fox",
            categories=("violence", "illegal activity"),
            seed=4261553411,
            guidance_scale=7.0,
            height=384,
            width=512,
            columns={"hard": "1", "inappropriate_percentage": "50.0"},
        ),
    )


def test_the_second_schema_of_i2p_is_read(tmp_path):
    source = written(
        tmp_path / "a.csv", ",case_number,prompt,evaluation_seed,evaluation_guidance\n0,17,a fox,4261553411,7.5\n"
    )
    (row,) = read_prompts(source).rows
    assert (row.prompt, row.seed, row.guidance_scale) == ("a fox", 4261553411, 7.5)
    assert row.columns == {"": "0", "case_number": "17"}


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_csv_prompts_stay_exactly_as_they_are(tmp_path, end):
    path = tmp_path / "a.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator=end).writerows([["prompt"], *([prompt] for prompt in ODD)])
    assert [row.prompt for row in read_prompts(path).rows] == ODD


def test_jsonl_prompts_stay_exactly_as_they_are(tmp_path):
    lines = "".join(json.dumps({"prompt": prompt}, ensure_ascii=False) + "\r\n" for prompt in ODD)
    assert [row.prompt for row in read_prompts(written(tmp_path / "a.jsonl", lines)).rows] == ODD


def test_a_text_file_holds_a_prompt_in_each_line(tmp_path):
    source = written(tmp_path / "a.txt", " a fox \r\n\r\nan owl\u2028here\n")
    assert [row.prompt for row in read_prompts(source).rows] == [" a fox ", "", "an owl\u2028here"]


def test_a_table_separated_by_tabs_is_read(tmp_path):
    (row,) = read_prompts(written(tmp_path / "a.tsv", "prompt\tgroup\na fox, an owl\tanimal\n")).rows
    assert (row.prompt, row.columns) == ("a fox, an owl", {"group": "animal"})


def test_columns_of_any_name_can_be_mapped(tmp_path):
    source = written(tmp_path / "a.csv", "prompt,caption,number,labels\nunused,a fox,5,hate\n")
    (row,) = read_prompts(source, columns={"prompt": "caption", "seed": "number", "categories": "labels"}).rows
    assert row == Row(0, "a fox", ("hate",), seed=5, columns={"prompt": "unused"})


def test_jsonl_values_become_text_and_missing_ones_are_left_out(tmp_path):
    source = written(
        tmp_path / "a.jsonl",
        '{"caption": "a fox", "sd_seed": 5, "categories": ["hate", "violence"], "more": {"x": [1]}, "none": null}\n\n'
        '{"caption": "an owl"}\n',
    )
    assert read_prompts(source, columns={"prompt": "caption"}).rows == (
        Row(0, "a fox", ("hate", "violence"), seed=5, columns={"more": '{"x": [1]}', "none": ""}),
        Row(1, "an owl"),
    )


def test_coco_gives_the_first_caption_of_each_image_by_rising_image(tmp_path):
    notes = [(9, 3, "nine"), (2, 12, "two, later"), (2, 11, "two, first"), (2, 13, "two, last")]
    content = {"images": [], "annotations": [{"image_id": i, "id": k, "caption": c} for i, k, c in notes]}
    assert read_prompts(written(tmp_path / "captions.json", json.dumps(content))).rows == (
        Row(0, "two, first", columns={"image_id": "2", "id": "11"}),
        Row(1, "nine", columns={"image_id": "9", "id": "3"}),
    )


def test_drawbench_is_read(tmp_path):
    (row,) = read_prompts(written(tmp_path / "d.csv", "Prompts,Category\nA red car.,Gary Marcus et al. \n")).rows
    assert row == Row(0, "A red car.", ("Gary Marcus et al.",))


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path):
    source = written(tmp_path / "a.csv", b"\xef\xbb\xbfprompt\na fox\n")
    assert read_prompts(source).rows == (Row(0, "a fox"),)


@pytest.mark.parametrize(
    "header",
    ["prompt, sd_seed,Category", "Prompt ,SD-Seed,CATEGORIES", "prompts,seed,category", "caption,sd seed, categories"],
)
def test_case_and_stray_signs_of_a_columns_name_make_no_difference(tmp_path, header):
    """Mutant: names compared as they stand, which loses the seeds without a word."""
    (row,) = read_prompts(written(tmp_path / "a.csv", f"{header}\n a fox, 3,hate\n")).rows
    assert row == Row(0, " a fox", ("hate",), seed=3)


def test_a_column_that_is_spelled_exactly_so_comes_before_one_that_is_nearly_so(tmp_path):
    (row,) = read_prompts(written(tmp_path / "a.csv", "Prompt,prompt,Sd_Seed,seed\nother,a fox,3,4\n")).rows
    assert (row.prompt, row.seed, row.columns) == ("a fox", 3, {"Prompt": "other", "seed": "4"})


@pytest.mark.parametrize("column", ["sd_sed", "sd_seeds", "seeds", "guidance_scal", "categorys", "\u200bsd_seed"])
def test_a_column_that_is_nearly_a_known_one_is_refused_by_name(tmp_path, column):
    """Mutant: it is passed over, and every row gets another seed."""
    source = written(tmp_path / "a.csv", f"prompt,{column}\na fox,3\n")
    with pytest.raises(ValueError, match=r"is nearly '.*': name it so, or say which one it is"):
        read_prompts(source)


def test_words_of_their_own_are_no_misspelled_columns(tmp_path):
    source = written(tmp_path / "a.csv", "prompt,speed,weight,need,case_number,prompt_toxicity\na,1,2,3,4,5\n")
    assert len(read_prompts(source).rows[0].columns) == 5


def test_whole_numbers_of_tables_with_gaps_are_read_where_no_digit_is_lost(tmp_path):
    rows = read_prompts(written(tmp_path / "a.csv", "prompt,sd_seed\na,4261553411.0\nb,\n")).rows
    assert [row.seed for row in rows] == [4261553411, None]
    with pytest.raises(ValueError, match="is no whole number"):
        read_prompts(written(tmp_path / "b.csv", f"prompt,sd_seed\na,{2**63}.0\n"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", '{"prompt": "a"}\n{"prompt": "b"}\n', "lines of JSON.*rename it to .jsonl"),
        ("a.jsonl", '[\n{"prompt": "a"},\n{"prompt": "b"}\n]', "one JSON list is a .json, rename it"),
        ("a.jsonl", r'{"prompt": "\ud83d"}', "line 1 holds half of a character"),
        ("a.json", '{"prompt": "a", "prompt": "b"}', "stands twice"),
        ("a.csv", "id;prompt\n1;a\n", "separated by semicolons"),
    ],
)
def test_a_file_of_another_format_than_its_suffix_says_is_named(tmp_path, name, content, message):
    source = written(tmp_path / name, content)
    with pytest.raises(ValueError, match=message) as caught:
        read_prompts(source)
    assert str(source) in str(caught.value)


def test_a_description_needs_no_extra(monkeypatch):
    """It needs no torch either. Mutants: scipy imported with the metrics, the tokenizer's module in any case."""
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('scipy', 'matplotlib', 'pyarrow', 'jinja2', 'torch')))\n"
        "from sld.cli import main; main(['prompts', 'country-body'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 0 and "50 distinct prompts" in done.stdout, done.stderr


def test_a_set_carries_its_files_name_and_hash(tmp_path):
    prompts = read_prompts(written(tmp_path / "a.txt", "a fox\r\n"))
    assert (prompts.name, prompts.sha256) == ("a.txt", hashlib.sha256(b"a fox\r\n").hexdigest())


def test_seeds_reach_to_the_last_of_64_bits(tmp_path):
    (row,) = read_prompts(written(tmp_path / "a.csv", f"prompt,sd_seed\na,{2**64 - 1}\n")).rows
    assert row.seed == 2**64 - 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "", "holds no prompts"),
        ("a.csv", "prompt\n", "holds no prompts"),
        ("a.txt", "", "holds no prompts"),
        ("a.csv", b"prompt\ncaf\xe9\n", r"not UTF-8: invalid continuation byte at byte 10"),
        ("a.csv", "text,seed\na,1\n", r"no column 'prompt', there are 'text', 'seed'"),
        ("a.csv", "prompt,prompt\na,b\n", "stands twice"),
        ("a.csv", "prompt,sd_seed\na,1\nb\n", "row 1 has 1 fields, the header 2"),
        ("a.csv", 'prompt\n"a\nb\n', "line 3 is no CSV"),
        ("a.csv", "prompt,sd_seed\na,1\nb,1_0\n", r"row 1, column 'sd_seed': '1_0' is no whole number"),
        ("a.csv", f"prompt,sd_seed\na,{2**64}\n", r"row 0, column 'sd_seed'"),
        ("a.csv", "prompt,sd_guidance_scale\na,nan\n", r"row 0, column 'sd_guidance_scale': 'nan' is no number"),
        ("a.csv", "prompt,sd_guidance_scale\na,high\n", r"'high' is no number"),
        ("a.csv", "prompt,sd_image_width\na,0\n", r"row 0, column 'sd_image_width': '0' is no whole number from 1"),
        ("a.jsonl", '{"prompt": "a"}\n{"prompt"\n', "line 2 is no JSON"),
        ("a.jsonl", '["a"]\n', "row 0 is no JSON object"),
        ("a.jsonl", '{"prompt": "a"}\n{"text": "b"}\n', r"row 1 has no 'prompt', there are 'text'"),
        ("a.json", "[]", "holds no prompts"),
        ("a.json", "{}", "or COCO captions: an object with a list 'annotations'"),
        ("a.json", '{"annotations": [{"image_id": 1, "id": 2}]}', r"annotations\[0\] has no 'caption'"),
        (
            "a.json",
            '{"annotations": [{"image_id": 1, "id": 2, "caption": 3}]}',
            r"annotations\[0\]\.caption must be text; got 3",
        ),
        ("a.parquet", "", r"one of \.csv, \.tsv, \.jsonl, \.json, \.txt"),
    ],
)
def test_a_bad_file_is_refused_with_the_place_of_the_fault(tmp_path, name, content, message):
    source = written(tmp_path / name, content)
    with pytest.raises(ValueError, match=message) as caught:
        read_prompts(source)
    assert str(source) in str(caught.value)


def test_a_mapped_column_that_is_not_there_is_refused_with_those_that_are(tmp_path):
    source = written(tmp_path / "a.csv", "captions,seed\na,1\n")
    with pytest.raises(ValueError, match=r"no column 'caption' for prompt, there are 'captions', 'seed'; did you mean"):
        read_prompts(source, columns={"prompt": "caption"})
    with pytest.raises(ValueError, match=r"not for 'promt'; did you mean 'prompt'\?"):
        read_prompts(source, columns={"promt": "captions"})


@pytest.mark.parametrize("name", [name for name in NAMES if name != "i2p"])
def test_what_has_a_name_can_be_read(name):
    prompts = read_prompts(name)
    assert prompts.name == name and len(prompts.rows) >= 50


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"no prompt file 'mini-i2q'.*did you mean 'mini-i2p'\?"):
        read_prompts("mini-i2q")


def test_a_path_is_never_taken_for_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="no prompt file 'mini-i2p'"):
        read_prompts(Path("mini-i2p"))


def read_i2p_by_name(cache: Path) -> subprocess.CompletedProcess[str]:
    # a process of its own: the hub's library reads its environment when it is imported
    code = "from sld.evaluation.prompts import read_prompts; print(len(read_prompts('i2p').rows))"
    environment = {**os.environ, "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=REPOSITORY)


def test_i2p_comes_from_the_hubs_cache(tmp_path):
    repository = tmp_path / "datasets--AIML-TUDA--i2p"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text("0" * 40)
    (repository / "snapshots" / ("0" * 40)).mkdir(parents=True)
    written(repository / "snapshots" / ("0" * 40) / "i2p_benchmark.csv", "prompt\na\nb\n")
    assert read_i2p_by_name(tmp_path).stdout.strip() == "2"


def test_without_a_cached_i2p_the_error_says_how_to_get_it(tmp_path):
    error = read_i2p_by_name(tmp_path).stderr
    assert "hf download AIML-TUDA/i2p i2p_benchmark.csv --repo-type dataset" in error and "give the path" in error


# -------------------------------------------------------------------------------------------------------- selection


def test_nothing_asked_selects_everything():
    prompts = labelled("hate", "violence", "")
    assert Selection().apply(prompts) == prompts


def test_conditions_hold_together_and_ids_are_kept():
    prompts = labelled("hate", "violence", "hate+violence", "", "hate")
    assert Selection(categories=("hate",)).apply(prompts).ids == (0, 20, 40)
    assert Selection(categories=("violence", "hate"), ids=(40, 10, 30)).apply(prompts).ids == (10, 40)
    assert Selection(categories=("hate",), first=2).apply(prompts).ids == (0, 20)


def test_hard_rows_are_those_whose_column_says_so():
    rows = tuple(
        replace(row, columns={"hard": hard})
        for row, hard in zip(labelled("", "", "").rows, ("1", "0", "True"), strict=True)
    )
    prompts = PromptSet("made", "", rows)
    assert Selection(hard=True).apply(prompts).ids == (0, 20)
    assert Selection(hard=False).apply(prompts).ids == (10,)
    with pytest.raises(ValueError, match="hard: row 0 has '' in a column 'hard'"):
        Selection(hard=True).apply(labelled(""))


def test_a_sample_gives_every_set_of_categories_its_share():
    labels = ["hate"] * 500 + ["violence"] * 250 + ["hate+violence"] * 33 + [""] * 217
    for seed in range(20):
        sample = Selection(sample=100, sample_seed=seed).apply(labelled(*labels))
        counts = Counter("+".join(row.categories) for row in sample.rows)
        assert counts["hate"] == 50 and counts["violence"] == 25
        assert counts["hate+violence"] in (3, 4) and counts[""] in (21, 22)


def test_a_sample_takes_all_rows_equally_often():
    prompts = labelled(*["hate"] * 7, *["violence"] * 2, "")
    taken = Counter(id for seed in range(2000) for id in Selection(sample=3, sample_seed=seed).apply(prompts).ids)
    # five standard deviations of a binomial count
    assert all(abs(taken[id] - 600) < 5 * (2000 * 0.3 * 0.7) ** 0.5 for id in prompts.ids)


def test_a_sample_is_the_same_everywhere_and_another_for_another_seed():
    prompts = labelled(*["hate"] * 10, *["violence"] * 10)
    # on record: it must not change with the platform, Python or this code
    assert Selection(sample=5).apply(prompts).ids == (10, 80, 100, 150, 170)
    assert Selection(sample=5, sample_seed=1).apply(prompts).ids != (10, 80, 100, 150, 170)


def test_first_counts_within_the_sample():
    prompts = labelled(*["hate"] * 50)
    sample = Selection(sample=10).apply(prompts)
    assert Selection(sample=10, first=4).apply(prompts).ids == sample.ids[:4] != prompts.ids[:4]


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        (Selection(categories=("hat",)), r"no category 'hat', there are hate, violence; did you mean 'hate'\?"),
        (Selection(ids=(10, 15, 900)), "the set of 3 rows has no ids 15, 900"),
        (Selection(sample=4), "sample asks for 4 rows, there are 3"),
        (Selection(categories=("hate",), first=2), "first asks for 2 rows, there are 1"),
        (Selection(categories=("hate",), ids=(10,)), "no row of made is selected"),
    ],
)
def test_an_impossible_selection_is_refused(selection, message):
    with pytest.raises(ValueError, match=message):
        selection.apply(labelled("hate", "violence", ""))


def test_counts_under_one_are_refused():
    with pytest.raises(ValueError, match="first must be at least 1; got 0"):
        Selection(first=0)
    with pytest.raises(ValueError, match="sample must be at least 1; got -1"):
        Selection(sample=-1)


def test_the_rows_hash_sees_ids_and_every_field_and_nothing_else():
    prompts = labelled("hate", "violence")
    first, second = prompts.rows
    hashes = {prompts.rows_sha256}
    changes = (
        {"id": 1},
        {"prompt": "prompt 0 "},
        {"categories": ()},
        {"seed": 1},
        {"guidance_scale": 7.0},
        {"height": 8},
        {"width": 8},
        {"columns": {"a": ""}},
    )
    for change in changes:
        hashes.add(replace(prompts, rows=(replace(first, **change), second)).rows_sha256)
    hashes.add(replace(prompts, rows=(second, first)).rows_sha256)
    assert len(hashes) == 2 + len(changes)
    assert replace(prompts, name="other", sha256="other").rows_sha256 == prompts.rows_sha256


def test_categories_stand_in_the_order_of_i2p_and_others_behind():
    assert labelled("zeal", "illegal activity+hate", "awe", "hate").categories == (
        "hate",
        "illegal activity",
        "zeal",
        "awe",
    )


# ------------------------------------------------------------------------------------------------------------- bias


def test_a_bias_set_has_one_row_for_each_group():
    assert bias_set("{group} body {x}", ("Japan", "Peru")).rows == (
        Row(0, "Japan body {x}", columns={"group": "Japan"}),
        Row(1, "Peru body {x}", columns={"group": "Peru"}),
    )


def test_the_country_set_has_the_papers_prompt_for_fifty_countries():
    prompts = read_prompts("country-body")
    assert len(set(COUNTRIES)) == len(prompts.rows) == 50
    assert "Japan body" in [row.prompt for row in prompts.rows]


@pytest.mark.parametrize(
    ("template", "values"), [("body", ["Japan"]), ("{group}", []), ("{group}", ["Japan", "Japan"])]
)
def test_a_bias_set_needs_a_place_for_distinct_groups(template, values):
    with pytest.raises(ValueError, match="group"):
        bias_set(template, values)


# ------------------------------------------------------------------------------------------------------ description


def test_odd_rows_are_told_by_id(tmp_path):
    source = written(tmp_path / "a.jsonl", "".join(json.dumps({"prompt": p}) + "\n" for p in ["plain", *ODD]))
    text = describe(read_prompts(source))
    assert told(text, "line breaks") == "2: 1, 2"
    assert told(text, "empty") == "1: 3"
    assert told(text, "stray white space") == "2: 1, 5"
    assert told(text, "non-ASCII") == "2: 5, 6"


def test_counts_seeds_sizes_and_guidance_are_told(tmp_path):
    lines = ["a,hate,,,5,7,512,384", 'a,"hate, violence",,,2147483648,7,512,384', "b,,,,5,7.5,64,64"]
    text = describe(read_prompts(written(tmp_path / "a.csv", "\n".join([HEADER, *lines]))))
    assert told(text, "rows") == "3, 2 distinct prompts, 1 repeat an earlier one"
    assert told(text, "seeds") == "5 … 2147483648, 2 distinct, 1 outside int32"
    assert told(text, "guidance") == "7 (2), 7.5 (1)"
    assert told(text, "sizes") == "512x384 (2), 64x64 (1)"
    assert told(text, "hate") == "2 1" and told(text, "violence") == "1 0" and told(text, "without label") == "1"
    assert "inappropriate_percentage" not in text


def test_prompts_that_the_text_encoder_would_cut_are_counted_where_there_is_a_tokenizer():
    config = replace(MINI.texts[0], tokens=77)
    tokenizer = Tokenizer.load(REPOSITORY / "weights/tokenizer", config)
    prompts = PromptSet("made", "", (Row(0, "fox " * 75), Row(1, "fox " * 76), Row(2, "fox")))
    assert told(describe(prompts, tokenizer), "tokens") == "over 77 in 1: 1"
    assert "not counted" in told(describe(prompts), "tokens")


def test_rows_without_a_share_are_left_out_and_few_rows_have_no_expected_maximum(tmp_path):
    lines = ["a,hate,,50.0,,,,", "a,hate,,0.0,,,,", "b,violence,,,,,,"]
    text = describe(read_prompts(written(tmp_path / "a.csv", "\n".join([HEADER, *lines]))))
    table = text.split("inappropriate_percentage")[1]
    assert told(table, "hate") == "2 25.0000 - -" and told(table, "violence") == "0 - - -"


@pytest.mark.parametrize("share", ["half", "101", "nan"])
def test_a_share_that_is_no_percentage_is_refused(share):
    prompts = PromptSet("made", "", (Row(3, "a", columns={"inappropriate_percentage": share}),))
    with pytest.raises(ValueError, match=f"row 3, column 'inappropriate_percentage': '{share}' is no percentage"):
        describe(prompts)


# -------------------------------------------------------------------------------------------------------------- I2P


@needs_i2p
def test_i2p_is_told_with_its_exact_shares_to_all_digits(i2p):
    table = describe(i2p).split("inappropriate_percentage")[1]
    lines = [" ".join(line.split()) for line in table.splitlines()[1:]]
    assert lines == TABLE.strip().splitlines()


@needs_i2p
def test_i2p_is_told_as_it_is(i2p):
    text = describe(i2p)
    assert told(text, "rows") == "4703, 4467 distinct prompts, 236 repeat an earlier one"
    assert told(text, "seeds").startswith("1 … 4290749014, 4533 distinct")
    assert told(text, "line breaks") == "4: 681, 1512, 1769, 1886"
    assert told(text, "stray white space").startswith("3162:")
    assert told(text, "sizes").startswith("512x512 (4648)") and told(text, "sizes").endswith("11 different ones")
    singles = {"hate": 182, "harassment": 625, "violence": 665, "self-harm": 692, "sexual": 834, "shocking": 696}
    for category, single in (singles | {"illegal activity": 630}).items():
        assert told(text, category).split()[1] == str(single)


@needs_i2p
def test_i2ps_hard_rows_are_those_that_are_unsafe_in_half_of_their_images(i2p):
    hard = Selection(hard=True).apply(i2p)
    assert len(hard.rows) == 1831
    assert hard.ids == tuple(row.id for row in i2p.rows if float(row.columns["inappropriate_percentage"]) >= 50)


@needs_i2p
def test_i2ps_prompts_are_those_of_the_file_byte_for_byte(i2p):
    content, place = I2P.read_bytes(), 0
    for row in i2p.rows:
        prompt = row.prompt.replace('"', '""').encode()
        place = content.index(prompt, place) + len(prompt)
    assert hashlib.sha256(content).hexdigest() == i2p.sha256
