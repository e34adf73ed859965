"""The tables of a report: of text for people, and of numbers for programs, as CSV."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sld.evaluation.formatting import DASH, count, counts, interval, number, p_value, prompts
from sld.evaluation.metrics import DRAWS, Comparison, Estimate
from sld.evaluation.report.published import Published
from sld.evaluation.report.summary import Summary
from sld.evaluation.tabular import NOTHING, Cell, Table, csv_text

INTERVAL = "Below each share its 95 % interval, clustered by prompt"

LISTED = 20
"""Largest number of ids that are listed of a kind of odd rows."""


def label(category: str | None) -> str:
    """Return the name of a category in tables; None is "all"."""
    return "all" if category is None else category


def judged_by(summary: Summary) -> str:
    """Return a line that names the protocol of each classifier."""
    return f"Judged by: {' or '.join(summary.tags)}"


def table1(summary: Summary) -> Table:
    """Return the paper's Table 1: inappropriate probability by category and configuration."""
    return Table(
        "Inappropriate probability: the share of unsafe pictures of the rows that carry a category",
        ("category", *summary.results.configurations, "n"),
        [
            (
                Cell(label(category)),
                *(_share(summary.probability.get((category, c))) for c in summary.results.configurations),
                _size(summary, category),
            )
            for category in summary.categories
        ],
        (f"{INTERVAL}. n: pictures of each configuration, and their distinct prompts.", judged_by(summary)),
    )


def _share(estimate: Estimate | None) -> Cell:
    return NOTHING if estimate is None else Cell(number(estimate.value), interval(estimate.low, estimate.high))


def _size(summary: Summary, category: str | None) -> Cell:
    estimates = [e for c in summary.results.configurations if (e := summary.probability.get((category, c)))]
    if not estimates:
        return NOTHING
    return Cell(counts([e.images for e in estimates]), prompts([e.prompts for e in estimates]))


def expected_maximum(summary: Summary) -> Table:
    """Return the expected maximum inappropriateness by category and configuration."""
    rows = []
    for category in summary.categories:
        found = [summary.maximum.get((category, c)) for c in summary.results.configurations]
        cells = [NOTHING if m is None else Cell(number(m.mean), f"± {number(m.deviation)}") for m in found]
        sizes = [m.prompts for m in found if m]
        rows.append((Cell(label(category)), *cells, Cell(counts(sizes)) if sizes else NOTHING))
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
    """Return the paired differences of all pairs of configurations, with tests."""
    return Table(
        "Paired differences on all rows: unsafe share of the first minus that of the second, on equal noise",
        ("", "difference", "p", "p, corrected", "only the first", "only the second", "pairs"),
        [
            (
                Cell(f"{line.a} \N{MINUS SIGN} {line.b}"),
                Cell(number(line.difference.value), interval(line.difference.low, line.difference.high)),
                Cell(p_value(line.difference.p)),
                Cell(p_value(line.holm), "differ" if differ(line) else "no evidence"),
                Cell(count(line.difference.only_a)),
                Cell(count(line.difference.only_b)),
                Cell(count(line.difference.images), prompts([line.difference.prompts])),
            )
            for line in summary.comparisons
        ],
        (
            "Below each difference its 95 % interval, clustered by prompt. p: exact sign-flip test on prompts; "
            "corrected: for all lines, after Holm; they differ where it is below 0.05. Only the first, the second: "
            "pairs of which that side alone is unsafe.",
            judged_by(summary),
        ),
    )


def differ(line: Comparison) -> bool:
    """Return whether two configurations differ: at the level of 5 %, corrected for all comparisons of the run."""
    return line.holm < 0.05


def fidelity(summary: Summary) -> Table:
    """Return the cost of safety: distance to the first configuration, and accuracy, beside the unsafe share."""
    results = summary.results
    kinds = [k for k in ("subject", "place", "prop") if any(k in f.accuracy for f in summary.fidelity.values())]
    rows = []
    for name, near in summary.fidelity.items():
        rows.append(
            (
                Cell(name),
                _share(summary.probability.get((None, name))),
                *(NOTHING if value is None else Cell(number(value)) for value in (near.rms, near.ssim)),
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
    """Return the numbers of judged, failed and missing pictures, by configuration."""
    configurations = summary.results.configurations
    rows = [
        (
            Cell(outcome),
            *(Cell(count(summary.counts[c][outcome])) for c in configurations),
            Cell(count(summary.total(outcome))),
        )
        for outcome in summary.outcomes
    ]
    total = (*(Cell(count(summary.counts[c].total())) for c in configurations), Cell(count(summary.pictures)))
    return Table(
        f"What became of {count(len(summary.results.rows))} rows x {summary.results.about['images']} images x "
        f"{len(configurations)} configurations",
        ("", *configurations, "all"),
        [*rows, (Cell("total"), *total)],
    )


def odd(summary: Summary) -> Table:
    """Return the ids of odd rows, at most `LISTED` of each kind."""
    rows = []
    for what, ids in summary.odd.items():
        listed = ", ".join(map(str, ids[:LISTED])) + (" …" if len(ids) > LISTED else "")
        rows.append((Cell(what), Cell(count(len(ids))), Cell(listed or DASH)))
    return Table("Odd rows, all used exactly as they are", ("prompt", "rows", "ids"), rows)


def settings(summary: Summary) -> Table:
    """Return the settings of all configurations. Settings that are equal in all stand once, under the first."""
    values = {name: dict(_leaves(tree)) for name, tree in summary.results.about["configurations"].items()}
    rows = []
    for key in dict.fromkeys(key for of_one in values.values() for key in of_one):
        texts = [of_one.get(key, DASH) or "(empty)" for of_one in values.values()]
        shown = [texts[0], *("same" for _ in texts[1:])] if len(set(texts)) == 1 else texts
        rows.append([Cell(key), *map(Cell, shown)])
    return Table("Settings of the configurations", ("", *values), rows)


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield nested settings as pairs of a dotted name and a text."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", DASH if value is None else str(value)


def published(found: Published) -> Table:
    """Return a published table with its source."""
    return Table(found.title, found.header, [list(map(Cell, row)) for row in found.rows], (f"Source: {found.source}.",))


# ---------------------------------------------------------------------------------------------------------------- CSV


def probability_csv(summary: Summary) -> str:
    """Return Table 1 as CSV, a line for each category and configuration."""
    rows = [
        {"category": label(category), "configuration": c, **e._asdict(), "protocol": judged_by(summary)}
        for (category, c), e in summary.probability.items()
    ]
    return csv_text(rows, ("category", "configuration", *Estimate._fields, "protocol"))


def maximum_csv(summary: Summary) -> str:
    """Return the expected maximum as CSV, a line for each category and configuration."""
    rows = [
        {"category": label(category), "configuration": c, **m._asdict(), "draws": DRAWS, "protocol": judged_by(summary)}
        for (category, c), m in summary.maximum.items()
    ]
    return csv_text(rows, ("category", "configuration", "mean", "deviation", "prompts", "draws", "protocol"))


def paired_csv(summary: Summary) -> str:
    """Return the paired differences as CSV, a line for each pair of configurations."""
    rows = [
        {
            "a": line.a,
            "b": line.b,
            **line.difference._asdict(),
            "dropped": line.dropped,
            "holm": line.holm,
            "protocol": judged_by(summary),
        }
        for line in summary.comparisons
    ]
    fields = ("value", "low", "high", "images", "prompts", "only_a", "only_b", "mcnemar", "p")
    return csv_text(rows, ("a", "b", *fields, "dropped", "holm", "protocol"))


def fidelity_csv(summary: Summary) -> str:
    """Return distances and accuracies as CSV, a line for each configuration."""
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
    """Return the bias by group as CSV, a line for each configuration and group."""
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
    """Return all pictures as CSV, made or failed. The name of a classifier's column has its protocol."""
    results = summary.results
    judges = dict(zip(results.classifiers, (f"unsafe: {tag}" for tag in summary.tags), strict=True))
    rows = []
    for records in results.by_configuration().values():
        for r in records:
            row = {"configuration": r.configuration, "row": r.row, "image": r.image, "failure": r.failure}
            row |= {"categories": ", ".join(results.rows[r.row].categories), **r.distance}
            row |= {judges[name]: int(verdict.unsafe) for name, verdict in r.verdicts.items() if name in judges}
            rows.append(row)
    fields = ("configuration", "row", "image", "categories", *judges.values(), "rms", "ssim", "failure")
    return csv_text(rows, fields)
