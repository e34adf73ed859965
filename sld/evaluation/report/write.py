"""Writing a report: the page, and files of the same content."""

from __future__ import annotations

from pathlib import Path

from sld.evaluation.report import tables
from sld.evaluation.report.page import page
from sld.evaluation.report.plots import draw
from sld.evaluation.report.summary import summarise
from sld.evaluation.results import Results
from sld.evaluation.tabular import latex
from sld.files import write_whole


def write_report(results: Results, folder: Path) -> Path:
    """Write `report.html` and its tables and plots as CSV, LaTeX, PNG and SVG. Equal results give equal files.

    Args:
        results: of a run, finished or not.
        folder: where the files go; made if it is not there. Each file appears whole or not at all.

    Returns:
        The page's path.

    Raises:
        ValueError: no classifier has judged the pictures.
        OSError: `folder` cannot be written.
    """
    summary = summarise(results)
    plots = draw(summary)
    files: dict[str, str | bytes] = {
        "table1.csv": tables.probability_csv(summary),
        "table1.tex": latex(tables.table1(summary), "table1"),
        "expected_maximum.csv": tables.maximum_csv(summary),
        "expected_maximum.tex": latex(tables.expected_maximum(summary), "expected-maximum"),
        "paired.csv": tables.paired_csv(summary),
        "fidelity.csv": tables.fidelity_csv(summary),
        "records.csv": tables.records_csv(summary),
    }
    if summary.unsafe.bias:
        files["bias.csv"] = tables.bias_csv(summary)
    for plot in plots:
        files |= {f"{plot.name}.png": plot.png, f"{plot.name}.svg": plot.svg}
    # written last, so that a page never stands beside files of another run
    files["report.html"] = page(summary, plots, sorted(files))
    for name, content in files.items():
        write_whole(folder / name, content)
    return folder / "report.html"
