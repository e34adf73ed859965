"""Tables as LaTeX, Markdown, CSV and text: whatever stands in a cell, it stays one cell and is only text.

Mutants seen to fail here: each line break, control character, pipe, backslash, bracket and formula let through; numbers
taken for formulas; only values escaped and no headings.
"""

import csv
import io
import re

import pytest

from sld.evaluation.tabular import Cell, Table, csv_text, escape_markdown, latex, markdown, plain_text

HOSTILE = [
    "a\nb",
    "a\r\n\r\nb",
    "a\x00\x1b[31mb",
    "a|b",
    "a\\|b",
    "a & b \\\\ c",
    "[a] *b* `c` _d_ ~e~",
    "<script>&lt;",
    "=1+1",
    "\u2028a\x85b",
]


def table(text):
    return Table(
        text, ("", text, "n"), [(Cell(text), Cell(text, text), Cell("1")), (Cell("x"), Cell("y"), Cell("2"))], (text,)
    )


def cells(line):
    """The cells of a line of a Markdown table, as a reader of GitHub's Markdown takes it apart."""
    return [part.strip() for part in re.findall(r"((?:\\.|[^|\\])*)\|", line.removeprefix("|"))]


def shown(source):
    """What Markdown source with backslashes shows."""
    return re.sub(r"\\(.)", r"\1", source)


@pytest.mark.parametrize("text", HOSTILE)
def test_markdown_keeps_every_cell_in_its_place(text):
    caption, grid, note = markdown(table(text)).split("\n\n")
    lines = grid.split("\n")
    assert len(lines) == 4 and len({len(cells(line)) for line in lines}) == 1
    said = shown(cells(lines[2])[0])
    assert said == re.sub(r"[\r\n\u2028\x85]+", " ", text).replace("\x00", "\ufffd").replace("\x1b", "\ufffd").strip()
    assert len(caption.splitlines()) == len(note.splitlines()) == 1


def test_markdown_shows_texts_as_they_are():
    assert escape_markdown("warm_up 0.5, p < 0.001, 12 % & more (95 %)") == "warm_up 0.5, p < 0.001, 12 % & more (95 %)"
    assert escape_markdown("<b> &amp; [x](y) *z* _w_ `v`") == r"\<b> \&amp; \[x\](y) \*z\* \_w\_ \`v\`"


@pytest.mark.parametrize("text", HOSTILE)
def test_latex_keeps_every_cell_in_its_place(text):
    source = latex(table(text), "name")
    assert not re.search(r"[^\n -~\u00a0-\uffff]", source) and "\n\n" not in source
    rows = source.partition("\\midrule\n")[2].partition("\\bottomrule")[0].splitlines()
    assert len(rows) == 2
    for row in rows:
        assert len(re.findall(r"(?<!\\) & ", row)) == 2 and row.endswith(r" \\")
        assert not row.startswith(("[", "*"))  # arguments of the line break before


@pytest.mark.parametrize("text", HOSTILE)
def test_a_terminal_shows_a_line_for_each_row(text):
    lines = plain_text(table(text)).split("\n")
    assert len(lines) == 3 and not any(re.search(r"[\x00-\x1f\x7f-\x9f]", line) for line in lines)


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"])
def test_csv_has_no_formulas(text):
    written = csv_text([{"a": text, text: "b"}], ("a", text))
    head, row = csv.reader(io.StringIO(written, newline=""))
    said = f"'{text.replace(text[0], ' ', 1) if text[0].isspace() else text}"
    assert head == ["a", said] and row == [said, "b"]


def test_csv_keeps_numbers_and_other_texts():
    rows = [{"a": -0.1, "b": "x-1=2", "c": None}, {"a": 1 / 3, "b": 'say "a,\r\nb"'}]
    written = csv_text(rows, ("a", "b", "c"))
    assert list(csv.reader(io.StringIO(written, newline=""))) == [
        ["a", "b", "c"],
        ["-0.1", "x-1=2", ""],
        [repr(1 / 3), 'say "a, b"', ""],
    ]
    assert "\x00" not in csv_text([{"a": "b\x00"}], ("a",))


def test_csv_refuses_a_value_without_a_column():
    with pytest.raises(ValueError, match="no columns: b"):
        csv_text([{"a": 1, "b": 2}], ("a",))
