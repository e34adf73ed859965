"""The report of a sweep: a tidy table, plots, contact sheets, and a page in Markdown that shows them."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from sld.ablation.plots import PLOTS, Board, called, draw
from sld.ablation.points import differing
from sld.ablation.sheets import SHEETS, sheets
from sld.ablation.table import METRICS, Findings, Line, lines, tidy, write_table
from sld.evaluation.classifiers.base import tag
from sld.evaluation.formatting import DASH, interval, number, p_value
from sld.evaluation.report.tables import BROKEN
from sld.evaluation.results import Judgement
from sld.evaluation.tabular import NOTHING, Cell, Table, escape_markdown, markdown
from sld.files import write_whole


def write_report(findings: Findings, folder: Path, metrics: Sequence[str] = (), kinds: Sequence[str] = ()) -> Table:
    """Write `index.md`, `table.csv`, `table.parquet` and all plots as PNG and SVG. Equal results give equal files.

    Args:
        findings: of a sweep.
        folder: where the files go. Each appears whole or not at all.
        metrics: some of `table.NAMES`; empty for all.
        kinds: some of KINDS; empty for all.

    Returns:
        The table that the page shows.
    """
    found = lines(findings, metrics)
    write_table(tidy(findings, found), folder)
    board = Board(findings, found)
    plots = draw(board, [kind for kind in kinds if kind != SHEETS]) if kinds != [SHEETS] else []
    for plot in plots:
        write_whole(folder / f"{plot.name}.png", plot.png)
        write_whole(folder / f"{plot.name}.svg", plot.svg)
    pictures = []
    for k, sheet in enumerate(sheets(findings) if not kinds or SHEETS in kinds else ()):
        file = io.BytesIO()
        sheet.save(file, format="PNG")
        write_whole(folder / f"sheet-{k}.png", file.getvalue())
        pictures.append(f"sheet-{k}.png")
    table = overview(findings, found)
    about = findings.results.about
    parts = [
        f"# Ablation on {escape_markdown(about['prompts']['name'])}",
        escape_markdown(_sentence(findings)),
        markdown(table),
        *(f"![{escape_markdown(plot.name)}]({plot.name}.png)\n\n{escape_markdown(plot.says)}." for plot in plots),
        f"Not drawn, because all points agree: {'; '.join(map(called, board.alike))}." if board.alike else "",
        *_folded(_sheets_say(findings), *(f"![]({name})" for name in pictures)),
        _settings(findings),
        *_folded("The whole protocol", f"```json\n{json.dumps(about, indent=2, ensure_ascii=False)}\n```"),
        "`table.csv` and `table.parquet` have all numbers, by category and place too.",
    ]
    write_whole(folder / "index.md", "\n\n".join(part for part in parts if part) + "\n")
    return table


def _sentence(findings: Findings) -> str:
    results = findings.results
    about = results.about
    made = sum(record.failure is None for record in results.records)
    each = "1 image" if about["images"] == 1 else f"{about['images']} images"
    whole = len(results.rows) * about["images"] * len(findings.points)
    judges = " or ".join(map(tag, about["classifiers"].values())) or "no classifier"
    return (
        f"{len(findings.points)} points, {len(results.rows)} prompts, {each} each, on the model "
        f"“{about['model']['name']}”: {whole} pictures, {whole - made} of them failed or missing. Judged by: {judges}. "
        f"The baseline is “{findings.points[0].label}”; all points start from the same noise."
    )


def _sheets_say(findings: Findings) -> str:
    more = "; broken ones have a dashed frame" if "broken" in findings.results.judgements else ""
    return f"Contact sheets, which show unsafe pictures, in a frame{more}"


def overview(findings: Findings, found: Sequence[Line]) -> Table:
    """Return the table of the page: a line for each point, over all rows of the prompt set."""
    whole = {(line.point, line.metric): line for line in found if line.by == "all"}
    shown = list(dict.fromkeys(line.metric for line in found))
    compared = [name for name in shown if name in get_args(Judgement)]
    header, rows = [""], [[Cell(point.label)] for point in findings.points]
    for name in shown:
        says = METRICS[name].says if name in METRICS else "expected maximum"
        header += [says, *(["difference" if name == "unsafe" else f"difference of {says}"] if name in compared else [])]
        for row, point in zip(rows, findings.points, strict=True):
            line = whole.get((point.name, name))
            row += [_cell(line), *([_difference(line)] if name in compared else [])]
    of = "unsafe shares" if compared == ["unsafe"] else "the share before it"
    read = f"{BROKEN}. " if {"broken", "safe"} & {*shown} else ""
    return Table(
        "Every point on all rows of the set",
        header,
        rows,
        (
            f"In parentheses: 95 % intervals, clustered by prompt. Difference: of {of} to the baseline, paired "
            "by prompt and noise; p of the exact sign-flip test on prompts, not corrected for the number of points. "
            f"{read}Right subject, place and prop: as the classifier reads the picture, where the prompt names one. "
            "Distances are to the baseline's picture of the same noise.",
        ),
    )


def _cell(line: Line | None) -> Cell:
    if line is None:
        return NOTHING
    return Cell(
        number(line.value), interval(line.low, line.high) if line.low is not None and line.high is not None else ""
    )


def _difference(line: Line | None) -> Cell:
    if line is None or line.difference is None or line.difference_low is None or line.difference_high is None:
        return NOTHING
    said = "" if line.p is None else f", p {p_value(line.p)}"
    return Cell(number(line.difference), f"{interval(line.difference_low, line.difference_high)}{said}")


def _settings(findings: Findings) -> str:
    """Return the fields in which points differ, as a table in Markdown."""
    keys = differing(findings.points)
    rows = [[Cell(p.label), *(_plain(p.columns.get(key)) for key in keys)] for p in findings.points]
    return markdown(Table("Settings in which points differ", ("", *keys), rows))


def _plain(value: object) -> Cell:
    return Cell(DASH if value is None else str(value) or "(empty)")


def _folded(title: str, *parts: str) -> list[str]:
    return [f"<details><summary>{title}</summary>", *parts, "</details>"] if parts else []


KINDS = (*PLOTS, SHEETS)
"""Names of the plots that a sweep can ask for, contact sheets among them."""
