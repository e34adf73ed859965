"""What a run has found, for people to read: one HTML page, and the same as CSV, LaTeX, PNG and SVG files.

Nothing here knows how pictures are made or judged, and no number is computed anywhere but in `summary`.
"""

from sld.evaluation.report.write import write_report

__all__ = ["write_report"]
