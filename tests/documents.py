"""The documents of the repository, and the Python examples in them."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCUMENTS = (
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "notebooks" / "README.md",
    ROOT / "weights" / "README.md",
)


def examples(document: Path, section: str | None = None) -> list[str]:
    """The Python blocks of a document, or of its section with this heading, in their order."""
    text = document.read_text(encoding="utf-8")
    if section is not None:
        _, _, text = text.partition(f"\n## {section}\n")
        text = text.partition("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
