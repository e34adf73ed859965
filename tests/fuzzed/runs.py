"""The files of a run: protocol, rows, records and later verdicts.

A mistake in records is signed, as if a run had made it: their checksum finds any other.
"""

import hashlib
import json
import shutil

from fuzz import Kind
from typed import require_typed

from sld.evaluation import store
from sld.evaluation.prompts import PromptSet, Row
from sld.evaluation.report import tables
from sld.evaluation.report.summary import summarise
from sld.evaluation.results import read_results
from sld.evaluation.summaries import shares
from sld.reading import read_text

JUDGE = {"classifier": "judge", "version": "1", "weights": {"net": "ab"}, "labels": ["knife"], "rule": "any"}
ROWS = tuple(Row(k, f"a fox {k}", ("hate",), seed=k, columns={"subject": "fox", "prop": "cake"}) for k in range(2))
ABOUT = {
    "prompts": {
        "name": "mine",
        "sha256": "0",
        "rows": 2,
        "ids": "0-1",
        "ids_sha256": PromptSet("", "", ROWS).rows_sha256,
    },
    **{"images": 1, "seeds": "generator", "row_guidance": False, "row_size": False, "base_seed": 0, "chunk": 64},
    "configurations": {"off": {"steps": 2, "guidance": {"safety_scale": 0}}, "max": {"steps": 2}},
    "classifiers": {"judge": JUDGE},
    "embedder": None,
    "keep": "flagged",
    "model": {"name": "mini", "sha256": {}},
    "versions": {"sld": "0"},
}
VERDICT = {"unsafe": True, "detail": {"subject": "fox", "place": "city", "props": ["cake"]}}
RECORDS = [
    {"configuration": c, "row": row.id, "image": 0, "sha256": "ab", "verdicts": {"judge": VERDICT}}
    | {"distance": {"rms": 0.1, "ssim": 0.9}}
    for c in ABOUT["configurations"]
    for row in ROWS
]


def lines(path, values):
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")


def prepare(folder):
    (folder / "protocol.json").write_text(json.dumps(ABOUT), encoding="utf-8")
    lines(folder / "rows.jsonl", [json.loads(json.dumps(vars(row))) for row in ROWS])
    lines(folder / "records.jsonl", RECORDS)
    lines(folder / "scores.jsonl", [VERDICT] * len(RECORDS))
    lines(folder / "sessions.jsonl", [{"command": "sld evaluate", "began": 1}, {"pictures": 4, "seconds": 0.5}])


def signed(source, target, header):
    """Write lines of JSON as a chunk; a file with a mistake in its bytes as it is."""
    try:
        records = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    except ValueError:
        records = [source.read_bytes().decode("latin-1")]
    body = "".join(json.dumps(record) + "\n" for record in (header, *records)).encode()
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)  # as `write_chunk`, and faster


def read(path):
    folder = path.parent
    run = folder / "run"
    (run / "scores" / "late").mkdir(parents=True, exist_ok=True)
    for name in ("protocol.json", "sessions.jsonl"):
        shutil.copy(folder / name, run / name)
    try:
        digest = store.digest(json.loads(read_text(run / "protocol.json")))
    except ValueError:
        digest = ""
    signed(folder / "rows.jsonl", run / "rows.jsonl", {})
    signed(folder / "records.jsonl", run / "chunks" / "000000.jsonl", {"run": digest, "chunk": 0})
    (run / "scores" / "late" / "protocol.json").write_text(json.dumps(JUDGE))
    signed(folder / "scores.jsonl", run / "scores/late/000000.jsonl", store.scores_header(run, JUDGE, 0))

    results = read_results(run)
    for value in (*results.records, *results.rows.values(), *store.sessions(run)):
        require_typed(value)
    summary = summarise(results)
    assert shares(results) and tables.settings(summary) and tables.outcomes(summary) and tables.table1(summary)


KIND = Kind(prepare, read, tries=150, seconds=30.0, same_file=False)  # the first summary imports scipy
