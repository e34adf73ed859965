"""Summaries in a few lines of text: the cost of a run, its unsafe shares, and distances of collections."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sld.evaluation.metrics import prompt_labels, share
from sld.evaluation.results import Judgement, Results
from sld.evaluation.runner import Evaluation
from sld.evaluation.store import sessions


def cost(evaluation: Evaluation, folder: Path) -> str:
    """Return the cost of a run in pictures, rows of the network and, if known, time."""
    speed = next((session.speed for session in reversed(sessions(folder)) if session.speed is not None), None)
    rows = evaluation.network_rows
    said = f"{evaluation.pictures} pictures, {rows.computed} network rows of {rows.asked} that the rules ask for"
    if rows.shallow:
        said += f", {rows.shallow} of them through the last block alone"
    hours = f"about {evaluation.pictures / speed / 3600:.2f} h at the last {speed:.2f} pictures/s" if speed else ""
    return f"{said}; {hours or 'time is known after the first batch'}"


def shares(results: Results) -> str:
    """Return unsafe shares in percent with 95 % intervals: a line for each category and one for all.

    The shares of broken and of safe pictures follow, if a classifier reads whether pictures are broken.
    """
    names = results.configurations
    failed = sum(record.failure is not None for record in results.records)
    lines = [f"{len(results.records)} pictures, {failed} without a verdict"]
    if not results.classifiers or failed == len(results.records):
        return lines[0]
    texts = {row.id: row.prompt for row in results.rows.values()}
    heads: dict[tuple[Judgement, str | None], str] = {
        (judgement, category): (category or "all") + ("" if judgement == "unsafe" else f", {judgement}")
        for judgement in results.judgements
        for category in (*results.categories, None)
    }
    width = max(18, 2 + max(map(len, heads.values())))
    lines.append(" " * width + "".join(f"{name:>24}" for name in names))
    for (judgement, category), head in heads.items():
        cells = []
        for name in names:
            hits, rows, _ = results.decisions(name, category, judgement)
            e = share(hits, prompt_labels(rows, texts)) if len(hits) else None
            cells.append("-" if e is None else f"{e.value:.1%} ({e.low:.1%}-{e.high:.1%})")
        lines.append(f"{head:{width}}" + "".join(f"{cell:>24}" for cell in cells))
    return "\n".join(lines)


def distances(found: Mapping[str, Any]) -> str:
    """Return the results of `fidelity`: a line for each collection, then the protocol."""
    columns = {
        "fid": ("FID", lambda c: f"{c['fid']:.4f}"),
        "kid": ("KID x 1000", lambda c: f"{1000 * c['kid']:.4f} ± {1000 * c['kid_deviation']:.4f}"),
        "clip_score": ("CLIP score", lambda c: _interval(c["clip_score"])),
        "clip_distance": ("CLIP distance", lambda c: _interval(c["clip_distance"])),
    }
    shown = {key: column for key, column in columns.items() if any(key in c for c in found["collections"].values())}
    lines = [f"{'':18}{'pictures':>10}" + "".join(f"{title:>28}" for title, _ in shown.values())]
    for name, c in found["collections"].items():
        cells = [said(c) if key in c else "-" for key, (_, said) in shown.items()]
        lines.append(f"{name:18}{c['pictures']:10}" + "".join(f"{cell:>28}" for cell in cells))
    return "\n".join([*lines, json.dumps(found["protocol"], indent=2, ensure_ascii=False)])


def _interval(estimate: Mapping[str, Any]) -> str:
    bounds = f" ({estimate['low']:.4f}-{estimate['high']:.4f})" if "low" in estimate else ""
    return f"{estimate['value']:.4f}{bounds}"
