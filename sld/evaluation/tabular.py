"""Tables of text, written as LaTeX, Markdown, CSV or columns for a terminal.

Texts in tables come from prompt sets, sweeps and users' names. So every format escapes them: a text cannot end a cell
or a row, run as a formula or break the file. HTML is written by the report's template.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sld.evaluation.formatting import DASH
from sld.printable import one_line, spreadsheet_text


class Cell(NamedTuple):
    """A cell of a table: its text, and an addition in small print."""

    text: str
    small: str = ""


NOTHING = Cell(DASH)
"""A cell without a value."""


@dataclass(frozen=True)
class Table:
    """A table for people.

    Attributes:
        caption: what it shows.
        header: of the columns; the first is that of the rows' headings.
        rows: as many cells as the header has, the row's heading first.
        notes: what a reader must know to compare the numbers with others.
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    notes: Sequence[str] = ()


# -------------------------------------------------------------------------------------------------------------- LaTeX

_LATEX = {character: f"\\{character}" for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\N{MINUS SIGN}": "$-$",
    "±": r"$\pm$",
    DASH: "--",
    "<": "$<$",
    ">": "$>$",
    "“": "``",
    "”": "''",
    "\N{NARROW NO-BREAK SPACE}": r"\,",
    # at the start of a row LaTeX would read these as arguments of the line break before it
    "[": "{[}",
    "*": "{*}",
}


def escape_latex(text: str) -> str:
    """Return a text as LaTeX source on one line, which prints the text as it is."""
    return "".join(_LATEX.get(character, character) for character in one_line(text))


def latex(table: Table, name: str) -> str:
    """Return a table as LaTeX source for a document with the package booktabs.

    Args:
        table: to write.
        name: of the label, after "tab:".
    """
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escape_latex(table.caption)}.}}",
        rf"\label{{tab:{name}}}",
        rf"\begin{{tabular}}{{l{'r' * (len(table.header) - 1)}}}",
        r"\toprule",
        f"{' & '.join(map(escape_latex, table.header))} \\\\",
        r"\midrule",
        *(f"{' & '.join(map(_latex_cell, row))} \\\\" for row in table.rows),
        r"\bottomrule",
        r"\end{tabular}",
        *(rf"\par\footnotesize {escape_latex(note)}" for note in table.notes),
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _latex_cell(cell: Cell) -> str:
    text = escape_latex(cell.text)
    return rf"\shortstack[r]{{{text}\\{{\scriptsize {escape_latex(cell.small)}}}}}" if cell.small else text


# ----------------------------------------------------------------------------------------------------------- Markdown

_MARKDOWN = re.compile(r"[\\`*|\[\]~]|<(?=[A-Za-z/!?])|&(?=#|\w+;)|(?<!\w)_|_(?!\w)")
"""Pattern of characters with a meaning in Markdown."""


def escape_markdown(text: str) -> str:
    """Return a text as Markdown source on one line, which shows the text as it is, in a table too."""
    return _MARKDOWN.sub(r"\\\g<0>", one_line(text))


def markdown(table: Table) -> str:
    """Return a table in Markdown, with small print in parentheses."""

    def row(cells: Iterable[str]) -> str:
        return f"| {' | '.join(cells)} |"

    lines = [
        row(map(escape_markdown, table.header)),
        row(["---", *("---:" for _ in table.header[1:])]),
        *(row(map(escape_markdown, map(_joined, cells))) for cells in table.rows),
    ]
    return "\n\n".join([f"**{escape_markdown(table.caption)}**", "\n".join(lines), *map(escape_markdown, table.notes)])


def _joined(cell: Cell) -> str:
    return f"{cell.text} ({cell.small})" if cell.small else cell.text


# ----------------------------------------------------------------------------------------------------------- terminal


def plain_text(table: Table) -> str:
    """Return a table in columns for a terminal, with small print in parentheses."""
    cells = [[one_line(text) for text in row] for row in (table.header, *(map(_joined, row) for row in table.rows))]
    widths = [max(len(row[k]) for row in cells) for k in range(len(table.header))]
    aligned = [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in cells
    ]
    return "\n".join(line.rstrip() for line in aligned)


# ---------------------------------------------------------------------------------------------------------------- CSV


def csv_text(rows: Iterable[Mapping[str, Any]], fields: Sequence[str]) -> str:
    """Return rows as CSV with a header.

    None is an empty field, a number has all its digits, and a text is on one line. A text that a spreadsheet would run
    as a formula gets an apostrophe before it, which marks a text in spreadsheets.

    Args:
        rows: values by field; a field that a row lacks is empty.
        fields: the columns in order.

    Raises:
        ValueError: a row has a field that is no column.
    """
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(map(_csv_cell, fields))
    for row in rows:
        if unknown := row.keys() - set(fields):
            raise ValueError(f"rows have fields that are no columns: {', '.join(sorted(unknown))}")
        writer.writerow(_csv_cell(row.get(field)) for field in fields)
    return file.getvalue()


def _csv_cell(value: Any) -> Any:
    return spreadsheet_text(value) if isinstance(value, str) else value
