"""The sidecar of a picture, which `sld generate --again` reads."""

import json
from pathlib import Path

from fuzz import Kind
from typed import require_typed

from sld.cli.sidecars import read_sidecar
from sld.guidance import PRESETS, PerpNeg, SafeLatentConcepts
from sld.guidance.perp_neg import Negative
from sld.request import Request

REQUEST = Request(
    prompt="a fox",
    concept="unsafe",
    height=64,
    width=64,
    negative="dark",
    guidance=PRESETS["max"],
    sampler="ddim",
    eta=0.5,
)
RULES = (
    None,
    SafeLatentConcepts.alike(("drugs", "death"), PRESETS["strong"], "sum"),
    PerpNeg((Negative(text="blood"),)),
)


def prepare(folder: Path) -> None:
    for k, rule in enumerate(RULES):
        request = Request(**{**vars(REQUEST), "rule": rule}).to_dict()
        sidecar = {"request": request, "model": "mini", "sha256": {"mini.safetensors": "0" * 64}, "batch": 2}
        (folder / f"{k}.json").write_text(json.dumps(sidecar))


def read(path: Path) -> None:
    require_typed(read_sidecar(path).request)


KIND = Kind(prepare, read)
