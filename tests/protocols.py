"""The protocol of a made-up run, with all that readers of runs ask for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sld.evaluation.prompts import PromptSet, Row


def a_protocol(rows: Sequence[Row], **own: Any) -> dict[str, Any]:
    """One picture of each row under "off", judged by nobody; `own` values take the place of these."""
    known = {"name": "made-up", "sha256": "ab" * 32, "ids_sha256": PromptSet("", "", tuple(rows)).rows_sha256}
    return {
        "prompts": {**known, "rows": len(rows)},
        "configurations": {"off": {}},
        "classifiers": {},
        "embedder": None,
        "model": {"name": "mini"},
        "images": 1,
        "chunk": len(rows),
        "keep": "none",
        "seeds": "consecutive",
        "base_seed": 0,
        "row_guidance": False,
        "row_size": False,
        **own,
    }


def a_classifier(name: str) -> dict[str, Any]:
    """The protocol of a classifier without weights."""
    return {"classifier": name, "version": "1", "weights": {}, "labels": [], "rule": "by hand"}
