"""Tables: of text for people, in LaTeX and HTML, and of numbers for programs, in CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sld.evaluation.metrics import DRAWS, Contrast, Estimate
from sld.evaluation.report.summary import Summary, by_configuration

INTERVAL = "Below each share its 95 % interval, clustered by prompt"


class Text(NamedTuple):
    """A cell: what it says, and what is added in small print."""

    text: str
    small: str = ""


@dataclass(frozen=True)
class Table:
    """A table for people.

    Attributes:
        caption: what it shows.
        header: of the columns; the first is that of the rows' headings.
        rows: as many cells as the header has, the row's heading first.
        notes: what has to be known to compare its numbers with others.
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[Text]]
    notes: Sequence[str] = ()


DASH = "\N{EN DASH}"
NOTHING = Text(DASH)


def number(value: float) -> str:
    """With three digits behind the point, and a minus sign that is as wide as a digit."""
    return f"{value:.3f}".replace("-", "\N{MINUS SIGN}")


def p_value(p: float) -> str:
    """A p value for people."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def count(n: int) -> str:
    """A whole number, a narrow space between groups of three digits."""
    return f"{n:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def interval(low: float, high: float) -> str:
    """From low to high."""
    return f"{number(low)} to {number(high)}"


def label(category: str | None) -> str:
    """A category's name; that of all rows for None."""
    return "all" if category is None else category


def judged_by(summary: Summary) -> str:
    """The protocol tags of a run in a line."""
    return f"Judged by: {' or '.join(summary.tags)}"


def table1(summary: Summary) -> Table:
    """The paper's Table 1: inappropriate probability by category and configuration."""
    return Table(
        "Inappropriate probability: the share of unsafe pictures of the rows that carry a category",
        ("category", *summary.results.configurations, "n"),
        [
            (
                Text(label(category)),
                *(_share(summary.probability.get((category, c))) for c in summary.results.configurations),
                _size(summary, category),
            )
            for category in summary.categories
        ],
        (f"{INTERVAL}. n: pictures of each configuration, and their distinct prompts.", judged_by(summary)),
    )


def _share(estimate: Estimate | None) -> Text:
    return NOTHING if estimate is None else Text(number(estimate.value), interval(estimate.low, estimate.high))


def _size(summary: Summary, category: str | None) -> Text:
    estimates = [e for c in summary.results.configurations if (e := summary.probability.get((category, c)))]
    if not estimates:
        return NOTHING
    return Text(_span([e.images for e in estimates]), f"{_span([e.prompts for e in estimates])} prompts")


def _span(values: Sequence[int]) -> str:
    """A number, or from where to where where failures make a difference."""
    low, high = min(values), max(values)
    return count(low) if low == high else f"{count(low)} to {count(high)}"


def expected_maximum(summary: Summary) -> Table:
    """The paper's expected maximum inappropriateness by category and configuration."""
    rows = []
    for category in summary.categories:
        found = [summary.maximum.get((category, c)) for c in summary.results.configurations]
        cells = [NOTHING if m is None else Text(number(m.mean), f"± {number(m.deviation)}") for m in found]
        sizes = [m.prompts for m in found if m]
        rows.append((Text(label(category)), *cells, Text(_span(sizes)) if sizes else NOTHING))
    return Table(
        f"Expected maximum inappropriateness: the largest unsafe share among {DRAWS} prompts drawn at random",
        ("category", *summary.results.configurations, "prompts"),
        rows,
        (
            f"Exact mean and standard deviation (no interval), pictures grouped by the prompt's text; {DASH} where "
            f"there are fewer than {DRAWS} prompts.",
            judged_by(summary),
        ),
    )


def paired(summary: Summary) -> Table:
    """Who differs from whom."""
    return Table(
        "Paired differences on all rows: unsafe share of the first minus that of the second, on equal noise",
        ("", "difference", "p", "p, corrected", "only the first", "only the second", "pairs"),
        [
            (
                Text(f"{line.a} \N{MINUS SIGN} {line.b}"),
                Text(number(line.difference.value), interval(line.difference.low, line.difference.high)),
                Text(p_value(line.difference.p)),
                Text(p_value(line.holm), "differ" if differ(line) else "no evidence"),
                Text(count(line.difference.only_a)),
                Text(count(line.difference.only_b)),
                Text(count(line.difference.images), f"{count(line.difference.prompts)} prompts"),
            )
            for line in summary.contrasts
        ],
        (
            "Below each difference its 95 % interval, clustered by prompt. p: exact sign-flip test on prompts; "
            "corrected: for all lines, after Holm; they differ where it is below 0.05. Only the first, the second: "
            "pairs of which that side alone is unsafe.",
            judged_by(summary),
        ),
    )


def differ(line: Contrast) -> bool:
    """Whether two configurations differ at the level of 5 % of all lines together."""
    return line.holm < 0.05


def fidelity(summary: Summary) -> Table:
    """What safety costs."""
    results = summary.results
    kinds = [k for k in ("subject", "place", "prop") if any(k in f.accuracy for f in summary.fidelity.values())]
    rows = []
    for name, near in summary.fidelity.items():
        rows.append(
            (
                Text(name),
                _share(summary.probability.get((None, name))),
                *(NOTHING if value is None else Text(number(value)) for value in (near.rms, near.ssim)),
                *(_share(near.accuracy.get(kind)) for kind in kinds),
            )
        )
    first = results.configurations[0]
    read = ["Right subject, place and prop: as the classifier reads the picture, where the prompt names one."]
    return Table(
        f"Safety against fidelity: unsafe share, and the distance to the same-seed picture of “{first}”",
        ("", "unsafe", "RMS", "SSIM", *kinds),
        rows,
        (
            f"Means over all rows. RMS of pixels in [0, 1], 0 is equal; SSIM, 1 is equal. {INTERVAL}.",
            *(read if kinds else ()),
            judged_by(summary),
        ),
    )


def outcomes(summary: Summary) -> Table:
    """What became of each picture of the run."""
    configurations = summary.results.configurations
    rows = [
        (
            Text(outcome),
            *(Text(count(summary.counts[c][outcome])) for c in configurations),
            Text(count(summary.total(outcome))),
        )
        for outcome in summary.outcomes
    ]
    total = (*(Text(count(summary.counts[c].total())) for c in configurations), Text(count(summary.pictures)))
    return Table(
        f"What became of {count(len(summary.results.rows))} rows x {summary.results.about['images']} images x "
        f"{len(configurations)} configurations",
        ("", *configurations, "all"),
        [*rows, (Text("total"), *total)],
    )


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
}


def escape_latex(text: str) -> str:
    """Text as LaTeX prints it."""
    return "".join(_LATEX.get(character, character) for character in text)


def latex(table: Table, name: str) -> str:
    """A table in LaTeX, for a document with the package booktabs; its label is "tab:" and the name."""
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


def _latex_cell(cell: Text) -> str:
    text = escape_latex(cell.text)
    return rf"\shortstack[r]{{{text}\\{{\scriptsize {escape_latex(cell.small)}}}}}" if cell.small else text


# ---------------------------------------------------------------------------------------------------------------- CSV


def csv_text(rows: Iterable[Mapping[str, Any]], fields: Sequence[str]) -> str:
    """Rows as CSV with a header; None is an empty field, a number is written with all its digits."""
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, fields, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def probability_csv(summary: Summary) -> str:
    """Table 1, a line for each category and configuration."""
    rows = [
        {"category": label(category), "configuration": c, **e._asdict(), "protocol": judged_by(summary)}
        for (category, c), e in summary.probability.items()
    ]
    return csv_text(rows, ("category", "configuration", *Estimate._fields, "protocol"))


def maximum_csv(summary: Summary) -> str:
    """The expected maximum, a line for each category and configuration."""
    rows = [
        {"category": label(category), "configuration": c, **m._asdict(), "draws": DRAWS, "protocol": judged_by(summary)}
        for (category, c), m in summary.maximum.items()
    ]
    return csv_text(rows, ("category", "configuration", "mean", "deviation", "prompts", "draws", "protocol"))


def paired_csv(summary: Summary) -> str:
    """The paired differences, a line for each two configurations."""
    rows = [
        {
            "a": line.a,
            "b": line.b,
            **line.difference._asdict(),
            "dropped": line.dropped,
            "holm": line.holm,
            "protocol": judged_by(summary),
        }
        for line in summary.contrasts
    ]
    fields = ("value", "low", "high", "images", "prompts", "only_a", "only_b", "mcnemar", "p")
    return csv_text(rows, ("a", "b", *fields, "dropped", "holm", "protocol"))


def fidelity_csv(summary: Summary) -> str:
    """Distances and accuracies, a line for each configuration."""
    kinds = ("subject", "place", "prop")
    rows = []
    for name, near in summary.fidelity.items():
        row = {"configuration": name, "rms": near.rms, "ssim": near.ssim, "protocol": judged_by(summary)}
        for kind, e in near.accuracy.items():
            row |= {kind: e.value, f"{kind}_low": e.low, f"{kind}_high": e.high, f"{kind}_images": e.images}
        rows.append(row)
    columns = [f"{kind}{part}" for kind in kinds for part in ("", "_low", "_high", "_images")]
    return csv_text(rows, ("configuration", "rms", "ssim", *columns, "protocol"))


def bias_csv(summary: Summary) -> str:
    """The groups, a line for each configuration and group."""
    rows = [
        {
            "configuration": name,
            "group": b.group,
            "share": b.share.value,
            "share_low": b.share.low,
            "share_high": b.share.high,
            "images": b.share.images,
            "prompts": b.share.prompts,
            "excess": b.excess,
            "excess_low": b.low,
            "excess_high": b.high,
            "protocol": judged_by(summary),
        }
        for name, groups in summary.bias.items()
        for b in groups
    ]
    fields = ("share", "share_low", "share_high", "images", "prompts", "excess", "excess_low", "excess_high")
    return csv_text(rows, ("configuration", "group", *fields, "protocol"))


def records_csv(summary: Summary) -> str:
    """Every picture that was made or failed; the column of a classifier has its protocol for a name."""
    results = summary.results
    judges = dict(zip(results.classifiers, (f"unsafe: {tag}" for tag in summary.tags), strict=True))
    rows = []
    for records in by_configuration(results).values():
        for r in records:
            row = {"configuration": r.configuration, "row": r.row, "image": r.image, "failure": r.failure}
            row |= {"categories": ", ".join(results.rows[r.row].categories), **r.distance}
            row |= {judges[name]: int(verdict.unsafe) for name, verdict in r.verdicts.items() if name in judges}
            rows.append(row)
    fields = ("configuration", "row", "image", "categories", *judges.values(), "rms", "ssim", "failure")
    return csv_text(rows, fields)
