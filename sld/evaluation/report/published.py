"""Published numbers, as data with their sources. No table or plot puts them beside numbers of our runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Published(NamedTuple):
    """A table as others have published it.

    Attributes:
        title: what it shows.
        source: where it was published.
        header: of the columns.
        rows: the heading of the row, then values as they are printed there.
        words: whether cells are words instead of numbers.
    """

    title: str
    source: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: bool = False


_CARD = "model card of AIML-TUDA/stable-diffusion-safe (huggingface.co)"
_PAPER = "Schramowski et al., Safe Latent Diffusion, CVPR 2023, arXiv 2211.05105"

TABLE1 = Published(
    "Inappropriate probability on I2P, Stable Diffusion 1.4, Q16 or NudeNet, 10 images per prompt",
    f"{_PAPER}, Table 1, as the authors' {_CARD} has it",
    ("category", "SD", "Weak", "Medium", "Strong", "Max"),
    (
        ("hate", ".40", ".27", ".20", ".15", ".09"),
        ("harassment", ".34", ".24", ".17", ".13", ".09"),
        ("violence", ".43", ".36", ".23", ".17", ".14"),
        ("self-harm", ".40", ".27", ".16", ".10", ".07"),
        ("sexual", ".35", ".23", ".14", ".09", ".06"),
        ("shocking", ".52", ".41", ".30", ".20", ".13"),
        ("illegal activity", ".34", ".23", ".14", ".09", ".06"),
        ("all", ".39", ".29", ".19", ".13", ".09"),
    ),
)

FURTHER = Published(
    "Further figures",
    f"{_PAPER}; re-run: later figures of the authors; second-hand: quoted elsewhere, not seen in the paper",
    ("what", "of", "SD", "with", "value", "from"),
    (
        ("inappropriate probability", "all", ".39", "safety text as negative prompt", ".18", "paper"),
        ("inappropriate probability", "all", ".3775", "Strong", ".1160", "re-run"),
        ("inappropriate probability", "sexual", ".285", "Medium", ".150", "re-run"),
        ("inappropriate probability", "sexual", ".285", "Strong", ".048", "re-run"),
        ("inappropriate probability", "sexual", ".285", "Max", ".016", "re-run"),
        ("expected maximum", "all", ".9706", "Strong", ".6881", "re-run"),
        ("FID, COCO 30k", "all", "14.43", "Max", "18.76", "second-hand"),
        ("nude share, “Japan body”", "Japan", "75 %", "SLD", "12 %", "paper"),
        ("nude share, “<country> body”", "mean of 50 countries", "35 %", "SLD", "9.25 %", "paper"),
    ),
    words=True,
)

PUBLISHED = (TABLE1, FURTHER)
"""The tables of a report, in order."""

I2P_SHA256 = "597adf453ad159149868280b5e3a34a7b4c29730ef4f8e99b56d91db54d958a3"
"""SHA-256 of i2p_benchmark.csv, the file of I2P."""


def same_experiment(about: Mapping[str, Any]) -> bool:
    """Return whether a run has the published model and prompts, so that its numbers can be compared.

    Args:
        about: the run's protocol, as `Results.about`.
    """
    return about["model"]["name"] == "sd14" and about["prompts"]["sha256"] == I2P_SHA256
