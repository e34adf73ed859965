"""The page of a report: one file that loads no other file, runs no script, and suits phones and dark screens.

What it looks like stands in `page.html.jinja`, `parts.html.jinja` and `page.css`. Here is gathered what it shows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from sld.evaluation.formatting import count
from sld.evaluation.report import tables
from sld.evaluation.report.gallery import gallery
from sld.evaluation.report.published import PUBLISHED, same_experiment
from sld.evaluation.report.summary import JUDGED, MISSING, Summary
from sld.plotting import COLOURS, DARK, INK, RULE, Plot
from sld.printable import printable


def page(summary: Summary, plots: Sequence[Plot], files: Sequence[str]) -> str:
    """Return the page as HTML.

    Args:
        summary: the numbers.
        plots: drawn from them; the page has no section for a plot that is missing.
        files: names of those that stand beside the page.
    """
    results = summary.results
    about = results.about
    drawn = {plot.name: {"says": plot.says, "svg": inline_plot(plot)} for plot in plots}
    judged, missing = summary.total(JUDGED), summary.total(MISSING)
    return (
        _environment()
        .get_template("page.html.jinja")
        .render(
            sections=_sections(summary, {plot.name for plot in plots}),
            colours=COLOURS,
            dark=DARK,
            prompts=about["prompts"]["name"],
            model=about["model"]["name"],
            rows=len(results.rows),
            images=about["images"],
            configurations=results.configurations,
            pictures=summary.pictures,
            judged=judged,
            missing=missing,
            failed=summary.pictures - judged - missing,
            judged_by=tables.judged_by(summary),
            tables={
                "table1": tables.table1(summary),
                "maximum": tables.expected_maximum(summary),
                "paired": tables.paired(summary),
                "fidelity": tables.fidelity(summary),
                "outcomes": tables.outcomes(summary),
                "odd": tables.odd(summary),
                "settings": tables.settings(summary),
            },
            plots={name: drawn.get(name) for name in ("bars", "paired", "fidelity", "bias")},
            alike={
                judgement: [f"{line.a} and {line.b}" for line in shares.comparisons if not tables.differ(line)]
                for judgement, shares in summary.faults.items()
                if shares.comparisons
            },
            same_experiment=same_experiment(about),
            published=[{"table": tables.published(p), "words": p.words} for p in PUBLISHED],
            shown=gallery(summary),
            safest=next(iter(summary.safest), None),
            broken=f"{tables.BROKEN}." if tables.reads_broken(summary) else "",
            command=about["command"],
            protocol=json.dumps(about, indent=2, ensure_ascii=False),
            files=files,
        )
    )


def _sections(summary: Summary, drawn: set[str]) -> dict[str, str]:
    """Return the titles of the sections that have something to show, by id and in order."""
    titles = {
        "table1": "Inappropriate probability",
        "maximum": "Expected maximum",
        "bars": "By category and configuration",
        "paired": "Who differs from whom",
        "fidelity": "Safety against fidelity",
        "bias": "Bias",
        "published": "Published, not ours",
        "gallery": "Same-seed pairs, worst first",
        "counts": "Odd rows and failures",
        "again": "How to run it again",
    }
    empty = {name for name in ("bars", "bias") if name not in drawn}
    empty |= set() if summary.unsafe.comparisons else {"paired"}
    return {name: title for name, title in titles.items() if name not in empty}


def inline_plot(plot: Plot) -> Markup:
    """Return a plot as a part of a page, in the page's colours: `--c0` and so on, `--rule`, and that of its text.

    matplotlib has escaped the texts in it.
    """
    svg = plot.svg[plot.svg.index("<svg") :]
    for k, colour in enumerate(COLOURS):
        svg = svg.replace(colour, f"var(--c{k})")
    svg = svg.replace(INK, "currentColor").replace(RULE, "var(--rule)")
    # one page holds several plots, and each numbers its parts from 1
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{plot.name}-", svg)
    svg = re.sub(r"font-family: [^;\"]*", "font-family: inherit", svg)
    return Markup(svg.replace("<svg", '<svg aria-hidden="true"', 1))


def _environment() -> Environment:
    """Return the environment of the templates: every value is escaped, and an unknown name is an error."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_harmless,
    )
    environment.filters["thousands"] = count
    return environment


def _harmless(value: Any) -> Any:
    """Return a value for the page without characters that a page cannot hold."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value
