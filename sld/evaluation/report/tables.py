"""The tables of a report: of text for people, and of numbers for programs, as CSV."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from sld.evaluation.formatting import DASH, count, counts, interval, number, p_value, prompts
from sld.evaluation.metrics import DRAWS, Bias, Comparison, Estimate, PairedDifference
from sld.evaluation.report.published import Published
from sld.evaluation.report.summary import Shares, Summary
from sld.evaluation.results import Judgement
from sld.evaluation.tabular import NOTHING, Cell, Table, csv_text

INTERVAL = "Below each share its 95 % interval, clustered by prompt"

BROKEN = (
    "Broken: the picture, or a part of it, shows nothing that its world can show, as the classifier reads it. Safe: "
    "neither unsafe nor broken"
)

LISTED = 20
"""Largest number of ids that are listed of a kind of odd rows."""


def label(category: str | None) -> str:
    """Return the name of a category in tables; None is "all"."""
    return "all" if category is None else category


def judged_by(summary: Summary) -> str:
    """Return a line that names the protocol of each classifier."""
    return f"Judged by: {' or '.join(summary.tags)}"


def heading(text: str, judgement: Judgement) -> Cell:
    """Return the heading of a row: "hate" if it counts unsafe pictures, else "hate, broken" or "hate, safe"."""
    return Cell(text if judgement == "unsafe" else f"{text}, {judgement}")


def reads_broken(summary: Summary) -> bool:
    """Return whether a classifier of the run reads if pictures are broken."""
    return "broken" in summary.shares


def table1(summary: Summary) -> Table:
    """Return the paper's Table 1: inappropriate probability by category and configuration.

    The shares of broken and of safe pictures stand below, where broken ones are read.
    """
    more = "; below, those of broken and of safe pictures" if reads_broken(summary) else ""
    return Table(
        f"Inappropriate probability: the share of unsafe pictures of the rows that carry a category{more}",
        ("category", *summary.results.configurations, "n"),
        [
            (
                heading(label(category), judgement),
                *(_share(shares.share.get((category, c))) for c in summary.results.configurations),
                _size(summary, shares, category),
            )
            for judgement, shares in summary.shares.items()
            for category in summary.categories
        ],
        (
            f"{INTERVAL}. n: pictures of each configuration, and their distinct prompts.",
            *((f"{BROKEN}.",) if reads_broken(summary) else ()),
            judged_by(summary),
        ),
    )


def _share(estimate: Estimate | None) -> Cell:
    return NOTHING if estimate is None else Cell(number(estimate.value), interval(estimate.low, estimate.high))


def _size(summary: Summary, shares: Shares, category: str | None) -> Cell:
    estimates = [e for c in summary.results.configurations if (e := shares.share.get((category, c)))]
    if not estimates:
        return NOTHING
    return Cell(counts([e.images for e in estimates]), prompts([e.prompts for e in estimates]))


def expected_maximum(summary: Summary) -> Table:
    """Return the expected maximum inappropriateness by category and configuration, then that of broken pictures."""
    rows = []
    for judgement, shares in summary.faults.items():
        for category in summary.categories:
            found = [shares.maximum.get((category, c)) for c in summary.results.configurations]
            cells = [NOTHING if m is None else Cell(number(m.mean), f"± {number(m.deviation)}") for m in found]
            sizes = [m.prompts for m in found if m]
            rows.append((heading(label(category), judgement), *cells, Cell(counts(sizes)) if sizes else NOTHING))
    more = "; below, the same of broken pictures" if reads_broken(summary) else ""
    return Table(
        f"Expected maximum inappropriateness: the largest unsafe share among {DRAWS} prompts drawn at random{more}",
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
    both = reads_broken(summary)
    return Table(
        "Paired differences on all rows: unsafe share of the first minus that of the second, on equal noise"
        + ("; below, the same of broken pictures" if both else ""),
        ("", "difference", "p", "p, corrected", "only the first", "only the second", "pairs"),
        [
            (
                heading(f"{line.a} \N{MINUS SIGN} {line.b}", judgement),
                Cell(number(line.difference.value), interval(line.difference.low, line.difference.high)),
                Cell(p_value(line.difference.p)),
                Cell(p_value(line.holm), "differ" if differ(line) else "no evidence"),
                Cell(count(line.difference.only_a)),
                Cell(count(line.difference.only_b)),
                Cell(count(line.difference.images), prompts([line.difference.prompts])),
            )
            for judgement, shares in summary.faults.items()
            for line in shares.comparisons
        ],
        (
            "Below each difference its 95 % interval, clustered by prompt. p: exact sign-flip test on prompts; "
            f"corrected: for all lines{' of unsafe or of broken pictures' if both else ''}, after Holm; they differ "
            "where it is below 0.05. Only the first, the second: pairs of which that side alone is "
            f"unsafe{', or broken' if both else ''}.",
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
                *(_share(shares.share.get((None, name))) for shares in summary.shares.values()),
                *(NOTHING if value is None else Cell(number(value)) for value in (near.rms, near.ssim)),
                *(_share(near.accuracy.get(kind)) for kind in kinds),
            )
        )
    first = results.configurations[0]
    read = ["Right subject, place and prop: as the classifier reads the picture, where the prompt names one."]
    return Table(
        f"Safety against fidelity: unsafe share, and the distance to the same-seed picture of “{first}”",
        ("", *summary.shares, "RMS", "SSIM", *kinds),
        rows,
        (
            f"Means over all rows. RMS of pixels in [0, 1], 0 is equal; SSIM, 1 is equal. {INTERVAL}.",
            *((f"{BROKEN}.",) if reads_broken(summary) else ()),
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


def _csv(
    summary: Summary,
    found: Mapping[Judgement, Shares],
    keys: Sequence[str],
    fields: Sequence[str],
    read: Callable[[Shares], Mapping[tuple[str | None, ...], Mapping[str, Any]]],
) -> str:
    """Return numbers of judgements as CSV. Columns of broken and safe pictures stand behind those of unsafe ones.

    Args:
        summary: of the run.
        found: which judgements have columns.
        keys: columns that say of what a line is.
        fields: columns of each judgement; see `_column`.
        read: returns the values of `keys`, and those of `fields`, of each line.
    """
    lines: dict[tuple[str | None, ...], dict[str, Any]] = {}
    for judgement, shares in found.items():
        for key, values in read(shares).items():
            line = lines.setdefault(key, dict(zip(keys, map(label, key), strict=True)))
            line |= {_column(judgement, field): values[field] for field in fields}
    columns = [_column(judgement, field) for judgement in found for field in fields]
    return csv_text(
        ({**line, "protocol": judged_by(summary)} for line in lines.values()), (*keys, *columns, "protocol")
    )


def _column(judgement: Judgement, field: str) -> str:
    """Return the name of a column: "value" and "low" of unsafe pictures, "broken" and "broken_low" of broken ones."""
    if judgement == "unsafe":
        return field
    return judgement if field == "value" else f"{judgement}_{field}"


def probability_csv(summary: Summary) -> str:
    """Return Table 1 as CSV, a line for each category and configuration."""
    return _csv(
        summary,
        summary.shares,
        ("category", "configuration"),
        Estimate._fields,
        lambda shares: {key: e._asdict() for key, e in shares.share.items()},
    )


def maximum_csv(summary: Summary) -> str:
    """Return the expected maximum as CSV, a line for each category and configuration."""
    return _csv(
        summary,
        summary.faults,
        ("category", "configuration"),
        ("mean", "deviation", "prompts", "draws"),
        lambda shares: {key: {**m._asdict(), "draws": DRAWS} for key, m in shares.maximum.items()},
    )


def paired_csv(summary: Summary) -> str:
    """Return the paired differences as CSV, a line for each pair of configurations."""
    return _csv(
        summary,
        summary.faults,
        ("a", "b"),
        (*PairedDifference._fields, "dropped", "holm"),
        lambda shares: {
            (line.a, line.b): {**line.difference._asdict(), "dropped": line.dropped, "holm": line.holm}
            for line in shares.comparisons
        },
    )


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
    return _csv(
        summary,
        summary.faults,
        ("configuration", "group"),
        ("share", "share_low", "share_high", "images", "prompts", "excess", "excess_low", "excess_high"),
        lambda shares: {(name, str(b.group)): _bias(b) for name, groups in shares.bias.items() for b in groups},
    )


def _bias(found: Bias) -> dict[str, Any]:
    return {
        "share": found.share.value,
        "share_low": found.share.low,
        "share_high": found.share.high,
        "images": found.share.images,
        "prompts": found.share.prompts,
        "excess": found.excess,
        "excess_low": found.low,
        "excess_high": found.high,
    }


def records_csv(summary: Summary) -> str:
    """Return all pictures as CSV, made or failed. The name of a classifier's column has its protocol."""
    results = summary.results
    tags = dict(zip(results.classifiers, summary.tags, strict=True))
    readers = {name for r in results.records for name, verdict in r.verdicts.items() if verdict.broken is not None}
    judges = [f"unsafe: {tag}" for tag in tags.values()] + [f"broken: {tags[name]}" for name in tags if name in readers]
    rows = []
    for records in results.by_configuration().values():
        for r in records:
            row = {"configuration": r.configuration, "row": r.row, "image": r.image, "failure": r.failure}
            row |= {"categories": ", ".join(results.rows[r.row].categories), **r.distance}
            for name, verdict in r.verdicts.items():
                if name in tags:
                    row[f"unsafe: {tags[name]}"] = int(verdict.unsafe)
                if name in tags and verdict.broken is not None:
                    row[f"broken: {tags[name]}"] = int(verdict.broken)
            rows.append(row)
    fields = ("configuration", "row", "image", "categories", *judges, "rms", "ssim", "failure")
    return csv_text(rows, fields)
