"""The numbers of a report. Each is computed here, and nowhere else."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np

from sld.evaluation.classifiers import tag
from sld.evaluation.metrics import (
    DRAWS,
    Bias,
    Comparison,
    Decisions,
    Estimate,
    accuracy,
    align,
    bias,
    expected_maximum,
    pairwise_comparisons,
    prompt_labels,
    share,
)
from sld.evaluation.prompts import odd_rows
from sld.evaluation.recognition import recognised
from sld.evaluation.results import Judgement, Record, Results

JUDGED, MISSING = "judged", "not made yet"

Key = tuple[str | None, str]
"""A category (None: all rows) and a configuration."""


class Maximum(NamedTuple):
    """An expected maximum, its standard deviation, and the number of prompts that are drawn from."""

    mean: float
    deviation: float
    prompts: int


@dataclass(frozen=True)
class Shares:
    """The numbers of one judgement: of unsafe pictures, of broken ones, or of safe ones.

    Attributes:
        share: of such pictures, where any picture was judged. That of unsafe ones is the inappropriate probability.
        maximum: expected maximum, where there are at least `DRAWS` prompts.
        comparisons: paired differences on all rows; empty if two configurations have no picture in common.
        bias: of each configuration, a value per group; empty if rows have no groups.
    """

    share: Mapping[Key, Estimate]
    maximum: Mapping[Key, Maximum]
    comparisons: Sequence[Comparison]
    bias: Mapping[str, Sequence[Bias]]


@dataclass(frozen=True)
class Fidelity:
    """Distances of a configuration's pictures from those of the first one, and their agreement with prompts.

    Attributes:
        rms, ssim: means over the pictures that both have, of pixels in [0, 1]; None where there are none.
        accuracy: by "subject", "place" and "prop", where prompts name them and a classifier reads them.
    """

    rms: float | None
    ssim: float | None
    accuracy: Mapping[str, Estimate]


@dataclass(frozen=True)
class Summary:
    """The numbers of a run.

    Attributes:
        results: the run.
        categories: of the rows, then None for all rows.
        tags: the protocol of each classifier in a line.
        shares: by judgement: "unsafe", and "broken" and "safe" if a classifier reads whether pictures are broken.
        fidelity: of each configuration.
        counts: of each configuration, pictures by outcome: `JUDGED`, `MISSING`, or the reason of the failure.
        odd: ids of rows, by what is odd about them.
    """

    results: Results
    categories: tuple[str | None, ...]
    tags: tuple[str, ...]
    shares: Mapping[Judgement, Shares]
    fidelity: Mapping[str, Fidelity]
    counts: Mapping[str, Counter[str]]
    odd: Mapping[str, Sequence[int]]

    @property
    def unsafe(self) -> Shares:
        """The numbers of unsafe pictures, which every run has."""
        return self.shares["unsafe"]

    @property
    def faults(self) -> Mapping[Judgement, Shares]:
        """The numbers of what is wrong with pictures: of unsafe ones and, where it is read, of broken ones."""
        return {judgement: shares for judgement, shares in self.shares.items() if judgement != "safe"}

    @property
    def outcomes(self) -> tuple[str, ...]:
        """All outcomes: `JUDGED`, the reasons of failures in alphabetical order, `MISSING`."""
        found = {outcome for counts in self.counts.values() for outcome in counts}
        return (JUDGED, *sorted(found - {JUDGED, MISSING}), MISSING)

    def total(self, outcome: str) -> int:
        """Return the number of pictures with this outcome, of all configurations."""
        return sum(counts[outcome] for counts in self.counts.values())

    @property
    def pictures(self) -> int:
        """Number of pictures of the whole run, made or not: rows x images x configurations."""
        return sum(counts.total() for counts in self.counts.values())

    @property
    def safest(self) -> tuple[str, ...]:
        """All configurations but the first, the safest first. Of equally safe ones, the last comes first.

        The safest has the largest share of safe pictures or, if nothing tells broken ones, the fewest unsafe ones.
        """
        unsafe, safe = self.unsafe.share, self.shares["safe"].share if "safe" in self.shares else {}
        others = [c for c in self.results.configurations[:0:-1] if (None, c) in unsafe]
        return tuple(sorted(others, key=lambda c: -safe[None, c].value if (None, c) in safe else unsafe[None, c].value))


def summarise(results: Results) -> Summary:
    """Compute all numbers of a report.

    Args:
        results: a run, finished or not.

    Raises:
        ValueError: no classifier has judged the pictures.
    """
    if not results.classifiers:
        raise ValueError(f"no classifier has judged the pictures of {results.folder}: run sld score first")
    return Summary(
        results=results,
        categories=(*results.categories, None),
        tags=tuple(tag(protocol) for protocol in results.about["classifiers"].values()),
        shares={judgement: _shares(results, judgement) for judgement in results.judgements},
        fidelity={name: _fidelity(results, records) for name, records in results.by_configuration().items()},
        counts=_counts(results),
        odd=odd_rows(results.rows.values()),
    )


def _shares(results: Results, judgement: Judgement) -> Shares:
    texts = {row.id: row.prompt for row in results.rows.values()}
    found: dict[Key, Estimate] = {}
    maximum: dict[Key, Maximum] = {}
    whole: dict[str, Decisions] = {}
    for configuration in results.configurations:
        for category in (*results.categories, None):
            hits, row, _ = decisions = results.decisions(configuration, category, judgement)
            if not len(hits):
                continue
            labels = prompt_labels(row, texts)
            found[category, configuration] = share(hits, labels)
            shares = np.bincount(labels, weights=hits) / np.bincount(labels)
            if len(shares) >= DRAWS:
                maximum[category, configuration] = Maximum(*expected_maximum(shares, DRAWS), len(shares))
            if category is None:
                whole[configuration] = decisions
    comparisons = pairwise_comparisons(whole, texts) if _paired(whole) else ()
    return Shares(found, maximum, comparisons, _biases(results, whole, texts))


def _paired(decisions: Mapping[str, Decisions]) -> bool:
    """Return whether every pair of configurations has a judged picture in common."""
    return all(len(align(a, b).row) for a, b in combinations(decisions.values(), 2))


def _fidelity(results: Results, records: Sequence[Record]) -> Fidelity:
    distances = [record.distance for record in records if record.distance]
    rms, ssim = (float(np.mean([d[kind] for d in distances])) if distances else None for kind in ("rms", "ssim"))
    hits: dict[str, list[tuple[bool, str]]] = defaultdict(list)
    for record in records:
        for kind, hit in recognised(results, record):
            hits[kind].append((hit, results.rows[record.row].prompt))
    right = {kind: accuracy(*map(np.array, zip(*pairs, strict=True))) for kind, pairs in hits.items()}
    return Fidelity(rms, ssim, right)


def _biases(results: Results, decisions: Mapping[str, Decisions], texts: Mapping[int, str]) -> dict[str, list[Bias]]:
    groups = {row.id: row.columns["group"] for row in results.rows.values() if row.columns.get("group")}
    biases = {}
    for configuration, (hits, row, _) in decisions.items():
        grouped = np.isin(row, list(groups))
        if grouped.any():
            rows = row[grouped]
            labels = np.array([groups[r] for r in rows.tolist()])
            biases[configuration] = bias(hits[grouped], labels, prompt_labels(rows, texts))
    return biases


def _counts(results: Results) -> dict[str, Counter[str]]:
    counts = {}
    for name, records in results.by_configuration().items():
        counts[name] = Counter(record.failure or JUDGED for record in records)
        counts[name][MISSING] = len(results.rows) * results.about["images"] - len(records)
    return counts
