"""One reader per kind of file: whatever editors and spreadsheets write is read, or named with its file and the remedy.

Mutants seen to fail here: str.splitlines for lines, a byte order mark kept, UTF-16 not looked for, zero bytes let
through, keys of objects given twice, half a character let through or written raw, fields of a .tsv unquoted, `sep=`
read as a header, a table of semicolons read as one column.
"""

from __future__ import annotations

import codecs
import json
from pathlib import Path

import pytest

from sld.cli.generate import GenerateOptions
from sld.cli.parser import parse_arguments
from sld.reading import (
    json_lines,
    lines,
    parse_csv,
    parse_json,
    parse_json_lines,
    parse_tsv,
    read_json,
    read_text,
    read_toml,
)

SEPARATORS = "\u2028 \u2029 \x85 \x0b \x0c \x1c \x1d \x1e"
"""Characters at which `str.splitlines` ends a line."""


def written(folder: Path, content: bytes, name: str = "a.txt") -> Path:
    (folder / name).write_bytes(content)
    return folder / name


@pytest.mark.parametrize(
    "content",
    [
        "a fox, für ❤\n".encode(),
        codecs.BOM_UTF8 + "a fox, für ❤\n".encode(),
        "a fox, für ❤\n".encode("utf-16"),
        codecs.BOM_UTF16_BE + "a fox, für ❤\n".encode("utf-16-be"),
        "a fox, für ❤\n".encode("utf-32"),
    ],
    ids=["utf-8", "utf-8 with a mark", "utf-16 of this machine", "utf-16-be", "utf-32"],
)
def test_a_text_is_the_same_in_every_unicode_encoding(tmp_path, content):
    assert read_text(written(tmp_path, content)) == "a fox, für ❤\n"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"caf\xe9 in Paris", "is not UTF-8: invalid continuation byte at byte 3"),
        ("猫".encode("shift-jis"), "is not UTF-8: "),
        ("a fox".encode("utf-16-le"), "UTF-16 without a byte order mark"),
        ("a fox".encode("utf-16")[:-1], "is not UTF-16-LE: truncated data"),
    ],
)
def test_another_encoding_is_named_with_the_remedy(tmp_path, content, problem):
    path = written(tmp_path, content)
    with pytest.raises(ValueError) as caught:
        read_text(path)
    assert str(caught.value).startswith(f"{path} ")
    assert problem in str(caught.value) and "save it as UTF-8" in str(caught.value)


def test_a_line_ends_with_a_line_end_and_with_nothing_else():
    assert lines(f"a\r\n\r\nb{SEPARATORS}\rc\n") == ["a", "", f"b{SEPARATORS}", "c"]
    assert lines("") == [] and lines("a") == ["a"] and lines("\n\n") == ["", ""]


@pytest.mark.parametrize("text", [SEPARATORS, "a\r\nb", "\ud83d", '"\\', "猫\ud800"])
def test_lines_of_json_come_back_as_they_were(text):
    values = [{"prompt": text, text: [text]}, text, {"more": None}]
    content = json_lines(values)
    assert [json.loads(line) for line in lines(content.decode())] == values
    if text.isprintable() or text == SEPARATORS:
        assert parse_json_lines(content.decode()) == values


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "is no JSON: "),
        ('{"a": 1, "a": 2}', "the key 'a' stands twice"),
        (r'{"prompt": "\ud83d"}', "half of a character"),
        ("[" * 100_000, "is no JSON that can be read"),
        ("9" * 5000, "is no JSON that can be read"),
        ("[-Infinity]", "-Infinity is no number"),
        ("version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
    ],
    ids=["cut", "twice", "half", "deep", "long", "infinite", "pointer"],
)
def test_a_json_file_that_cannot_be_read_is_named(tmp_path, text, problem):
    path = written(tmp_path, text.encode(), "a.json")
    with pytest.raises(ValueError) as caught:
        read_json(path)
    assert str(caught.value).startswith(f"{path} ") and problem in str(caught.value)
    assert "\n" not in str(caught.value)


def test_infinities_of_other_programs_are_read_where_asked_for(tmp_path):
    """As diffusers' lambda_min_clipped. Seen to fail: refused there; a key twice let through with them."""
    path = written(tmp_path, codecs.BOM_UTF8 + b'{"a": [-Infinity, NaN]}', "a.json")
    assert str(read_json(path, infinities=True)) == "{'a': [-inf, nan]}"
    with pytest.raises(ValueError, match="the key 'a' stands twice"):
        parse_json('{"a": Infinity, "a": 1}', infinities=True)


def test_a_whole_character_from_two_escapes_is_read():
    assert parse_json(r'"\ud83d\ude00"') == "\N{GRINNING FACE}"


def test_toml_is_read_with_a_mark_and_any_line_ends(tmp_path):
    content = codecs.BOM_UTF8 + b'a = 1\rb = "x"\r\n'
    assert read_toml(written(tmp_path, content, "a.toml")) == {"a": 1, "b": "x"}


@pytest.mark.parametrize("text", ["a = ", "a = " + "[" * 10_000, "a = 1\na = 2"], ids=["cut", "deep", "twice"])
def test_what_is_no_toml_is_named(tmp_path, text):
    path = written(tmp_path, text.encode(), "a.toml")
    with pytest.raises(ValueError, match=r"a\.toml is no TOML: "):
        read_toml(path)


def test_fields_of_a_tsv_stand_as_they_are_and_those_of_a_csv_are_quoted():
    assert parse_tsv('Prompt\tNote\n"STOP" on a sign\tx\n"STOP"\t"\n') == [
        {"Prompt": '"STOP" on a sign', "Note": "x"},
        {"Prompt": '"STOP"', "Note": '"'},
    ]
    assert parse_csv('sep=,\r\na,b\r\n"x, ""y""",2\r\n') == [{"a": 'x, "y"', "b": "2"}]
    assert parse_csv("a,b\rx,2\r") == [{"a": "x", "b": "2"}]


@pytest.mark.parametrize(
    ("parse", "text", "problem"),
    [
        (
            parse_csv,
            "id;prompt\n0;a fox, red\n",
            "separated by semicolons, and in a .csv by commas: save it with commas",
        ),
        (parse_csv, "sep=;\nid;prompt\n0;a\n", "separated by semicolons"),
        (parse_csv, 'id;prompt\n0;"a";b\n', "separated by semicolons"),
        (parse_csv, "id\tprompt\n0\ta fox, red\n", "separated by tabs.* or rename it to .tsv"),
        (parse_csv, "id|prompt\n0|a\n", "separated by bars"),
        (parse_tsv, "id,prompt\n0,a\n", "separated by commas, and in a .tsv by tabs.* or rename it to .csv"),
        (parse_tsv, 'prompt\tn\n"say ""hi"""\t1\n', "row 0 is quoted as in CSV.*with commas as .csv"),
        (parse_tsv, "prompt\tn\na\n", "row 0 has 1 fields, the header 2"),
    ],
)
def test_a_table_of_another_dialect_is_named(parse, text, problem):
    with pytest.raises(ValueError, match=problem):
        parse(text)


def test_every_command_reads_a_file_of_settings_alike(tmp_path):
    """`--file`, sweeps and sidecars go through the same reader. Mutant seen to fail: tomllib on bytes with a mark."""
    from sld.cli.entry import COMMANDS

    path = written(tmp_path, codecs.BOM_UTF8 + b'prompts = "mini-i2p"\nfirst = 1\n[points.x]\nsteps = 3\n', "a.toml")
    _, sweep = parse_arguments("sld", "", "", COMMANDS, ["ablate", str(path)])
    assert sweep.run.selection.first == 1 and sweep.points == {"x": {"steps": 3}}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", codecs.BOM_UTF8 + b"a bear, red\r\na fox\r\n"),
        ("a", "a bear, red\na fox".encode("utf-16")),
        ("a.csv", b'sd_seed,Prompt\n1,"a bear, red"\n2,a fox\n'),
        ("a.tsv", b"prompt\tn\na bear, red\t1\na fox\t2\n"),
        ("a.jsonl", b'{"prompt": "a bear, red"}\n"a fox"\n'),
        ("a.json", b'["a bear, red", {"prompt": "a fox"}]'),
    ],
)
def test_generate_reads_the_prompts_that_a_run_reads(tmp_path, name, content):
    """Mutant seen to fail: a reader of its own, which takes the mark for a part of the first prompt."""
    from sld.cli.generate import _prompts_of

    path = written(tmp_path, content, name)
    assert _prompts_of(path) == ["a bear, red", "a fox"]
    assert GenerateOptions(prompts_file=path).prompts_file == path
