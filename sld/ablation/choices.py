"""What a sweep can ask for by name. Importing this loads no torch.

`tests/test_choices.py` compares these names with those of the things.
"""

from __future__ import annotations

from typing import Annotated

from sld.data import OneOf

METRICS = ("unsafe", "subject", "place", "prop", "rms", "1-ssim", "clip", "maximum")
"""What is measured; `sld.ablation.table.NAMES`."""

PLOTS = ("pareto", "points", "curves", "heatmaps", "sheets")
"""What is drawn; `sld.ablation.report.KINDS`."""

Metric = Annotated[str, OneOf(METRICS)]
Plot = Annotated[str, OneOf(PLOTS)]
