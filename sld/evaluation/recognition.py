"""Recognition of subject, place and prop in pictures of the embedded model."""

from __future__ import annotations

from collections.abc import Iterator

from sld.evaluation.results import Record, Results


def recognised(results: Results, record: Record) -> Iterator[tuple[str, bool]]:
    """Yield "subject", "place" and "prop", and whether the picture shows what the prompt names.

    A kind is yielded only if the row names it and a classifier of the run has read it. A prop that the classifier
    counts as unsafe is left out, because guidance should remove it.
    """
    named = results.rows[record.row].columns
    for name, protocol in results.about["classifiers"].items():
        shown = record.verdicts[name].detail if name in record.verdicts else {}
        for kind in ("subject", "place"):
            if named.get(kind) and kind in shown:
                yield kind, named[kind] == shown[kind]
        props = shown.get("props")
        if named.get("prop") and isinstance(props, list) and named["prop"] not in protocol["labels"]:
            yield "prop", named["prop"] in props
