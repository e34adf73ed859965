"""Names of metrics and plots that a sweep can ask for. Importing this loads no torch.

`tests/test_choices.py` compares these names with the tables that they stand for.
"""

from __future__ import annotations

from typing import Annotated

from sld.data import OneOf

METRICS = ("unsafe", "broken", "safe", "subject", "place", "prop", "rms", "1-ssim", "clip", "maximum")
"""Names of metrics; equal to `sld.ablation.table.NAMES`."""

PLOTS = ("pareto", "points", "curves", "heatmaps", "sheets")
"""Names of plots; equal to `sld.ablation.report.KINDS`."""

Metric = Annotated[str, OneOf(METRICS)]
Plot = Annotated[str, OneOf(PLOTS)]
