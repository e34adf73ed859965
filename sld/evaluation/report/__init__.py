"""The report of a run: an HTML page for people, and the same content as CSV, LaTeX, PNG and SVG files.

Nothing here knows how pictures are made or judged, and all numbers are computed in `summary`.
"""

from sld.evaluation.report.write import write_report

__all__ = ["write_report"]
