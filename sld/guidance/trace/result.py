"""A trace as a value, its file, and its table."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sld.files import whole
from sld.guidance.trace.measures import QUANTILES, Measures
from sld.printable import spreadsheet_text

EVERYWHERE = "everywhere"
"""Name of the first region of every trace, the whole image."""


@dataclass(frozen=True, eq=False)
class Trace:
    """The measures of a run, with the names of regions and concepts.

    Attributes:
        measures: on the CPU, with a first axis s, evaluations.
        regions: names, EVERYWHERE first.
        concepts: texts of the concepts; the condition's name where there was no text.
    """

    measures: Measures
    regions: tuple[str, ...]
    concepts: tuple[str, ...]

    def save(self, path: str | Path, about: Mapping[str, Any] | None = None) -> None:
        """Write one safetensors file, whole or not at all.

        Args:
            path: the file; replaced if it exists.
            about: values that JSON can hold, kept in the file's header; `load` returns them.
        """
        names = {"regions": self.regions, "concepts": self.concepts, "quantiles": QUANTILES, "about": about or {}}
        header = {name: json.dumps(value, ensure_ascii=False) for name, value in names.items()}
        tensors = {name: tensor.contiguous() for name, tensor in self.measures._asdict().items()}
        with whole(path) as beside:
            save_file(tensors, beside, metadata=header)

    @classmethod
    def load(cls, path: str | Path) -> tuple[Trace, dict[str, Any]]:
        """Read a saved trace, and the `about` that it was saved with.

        Raises:
            ValueError: the file is unreadable or holds something else.
        """
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
                header = {name: json.loads(text) for name, text in (file.metadata() or {}).items()}
        except (OSError, SafetensorError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is not a saved trace: {error}") from error
        if set(tensors) != set(Measures._fields) or not {"regions", "concepts"} <= set(header):
            raise ValueError(f"{path} is a safetensors file, but not one that Trace.save wrote")
        return cls(Measures(**tensors), tuple(header["regions"]), tuple(header["concepts"])), header.get("about", {})

    def tidy(self) -> Iterator[dict[str, Any]]:
        """Return all numbers but the maps, one by one, evaluation by evaluation; those not measured are left out.

        Yields:
            evaluation, image, region, concept, measure and value. Where a measure has no region or no concept, the
            field is empty. Gap quantiles are named as "gap q0.05", cosines of directions as "cosine with d" and
            "cosine with" another concept.
        """
        m = self.measures
        columns: list[tuple[str, str, str, Tensor]] = []
        for n, region in enumerate(self.regions):
            for name in ("would", "applied", "cosine", "nu"):
                columns.append((region, "", name, getattr(m, name)[:, :, n]))
            for k, concept in enumerate(self.concepts):
                columns.append((region, concept, "active", m.active[:, :, n, k]))
                columns.append((region, concept, "saturated", m.saturated[:, :, n, k]))
                for j, q in enumerate(QUANTILES):
                    columns.append((region, concept, f"gap q{q}", m.gap[:, :, n, k, j]))
        for k, concept in enumerate(self.concepts, start=1):
            for j, other in enumerate(("d", *self.concepts[: k - 1])):
                columns.append(("", concept, f"cosine with {other}", m.conflict[:, :, k, j]))
        for i in range(len(m.would)):
            for image in range(m.would.shape[1]):
                for region, concept, name, values in columns:
                    value = float(values[i, image])
                    if value == value:
                        yield {
                            "evaluation": i,
                            "image": image,
                            "region": region,
                            "concept": concept,
                            "measure": name,
                            "value": value,
                        }

    def write_csv(self, path: str | Path) -> None:
        """Write what `tidy` yields as a CSV table, whole or not at all.

        Texts are written by `sld.printable.spreadsheet_text`, so that no concept is run as a formula.
        """
        with whole(path) as beside, beside.open("w", newline="", encoding="utf-8") as file:
            columns: list[str] = ["evaluation", "image", "region", "concept", "measure", "value"]
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            for row in self.tidy():
                writer.writerow({k: spreadsheet_text(v) if isinstance(v, str) else v for k, v in row.items()})
