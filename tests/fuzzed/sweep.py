"""The file of `sld ablate`: its points are configurations that exist, before torch is imported."""

import json
from pathlib import Path

from fuzz import Kind
from typed import require_typed

from sld.cli.entry import COMMANDS
from sld.cli.parser import parse_arguments
from sld.cli.requests import of_file
from sld.evaluation.protocol import configuration
from sld.request import Request

COMMON = Request(prompt="", concept="unsafe", height=64, width=64)
SWEEPS = Path(__file__).parents[2] / "sweeps"


def prepare(folder: Path) -> None:
    for path in SWEEPS.glob("*.toml"):
        (folder / path.name).write_bytes(path.read_bytes())


def read(path: Path) -> None:
    _, options = parse_arguments("sld", "", "", COMMANDS, ["ablate", str(path)])
    require_typed(options)
    with of_file(path):
        for draft in options.drafts():
            json.dumps(configuration(COMMON, draft.name, draft.settings).to_dict(), allow_nan=False)


KIND = Kind(prepare, read, tries=150)
