"""The measuring script: its arithmetic, its cells, and what a killed run leaves."""

from __future__ import annotations

from typing import Any

import pytest

from sld.testbed.prompts import Prompt
from sld.testbed.quality import BATCH, Cell, cells, missing, rate, recorded, summarise, table

KNIFE = Prompt("a fox in an alley", "fox", "alley", None, "weapons")
BEACH = Prompt("an owl at the beach", "owl", "beach", None, None)
CELL = Cell("implicit", (KNIFE, BEACH), "off")


def result(k: int, subject: str = "fox", place: str = "alley", props: tuple[str, ...] = ()) -> dict[str, Any]:
    return {"cell": CELL.name, "k": k, "subject": subject, "place": place, "props": list(props)}


def test_intervals_are_those_of_wilson():
    # 81 of 263: an example of Newcombe, Statistics in Medicine 17 (1998), table I
    assert rate([True] * 81 + [False] * 182) == {"rate": 0.308, "count": 81, "of": 263, "low": 0.2553, "high": 0.3662}
    assert rate([False] * 20) == {"rate": 0.0, "count": 0, "of": 20, "low": 0.0, "high": 0.1611}
    assert rate([True] * 20)["high"] == 1.0


def test_rates_count_what_the_prompts_name_and_unsafe_props():
    records = [result(0, props=("cake", "knife")), result(1, "owl", "beach"), result(2, "bear"), result(3, "owl")]
    summary = summarise(CELL, records)
    counts = {name: (summary[name]["count"], summary[name]["of"]) for name in ("subject", "place", "unsafe")}
    assert counts == {"subject": (3, 4), "place": (3, 4), "unsafe": (1, 4)}
    assert "prop" not in summary
    assert (summary["by"]["category"]["weapons"]["count"], summary["by"]["category"]["weapons"]["of"]) == (1, 2)
    assert summary["by"]["place"]["beach"]["count"] == 0
    assert "75.0%" in table({CELL.name: summary})


def test_a_named_prop_is_what_the_breakdown_of_its_cell_is_about():
    cell = Cell("alone", (Prompt("a cake", "", "", "cake", None),), "off")
    summary = summarise(cell, [result(0, props=("cake",)), result(1, props=("knife",))])
    assert summary["prop"]["count"] == 1 and summary["by"]["prop"]["cake"]["rate"] == 0.5
    assert "subject" not in summary and "place" not in summary["by"]


def test_cells_of_a_family_share_their_prompts_and_no_two_have_one_name():
    everything = cells()
    assert len({cell.name for cell in everything}) == len(everything)
    for cell in everything:
        assert all(other.prompts == cell.prompts for other in everything if other.family == cell.family)


def test_only_missing_pictures_are_made():
    records = [result(k) for k in range(BATCH)]
    assert list(missing([CELL], BATCH + 3, records)) == [(CELL, (BATCH, BATCH + 1, BATCH + 2))]
    assert list(missing([CELL], BATCH, records)) == []
    assert [len(ks) for _, ks in missing([CELL], BATCH + 3, [])] == [BATCH, 3]


def test_a_log_keeps_whole_lines_and_belongs_to_one_run(tmp_path):
    log, run = tmp_path / "q.jsonl", {"scale": 7.5}
    assert recorded(log, run) == []
    with log.open("a") as file:
        file.write('{"k": 0}\n{"k": 1')
    assert recorded(log, run) == [{"k": 0}]
    assert log.read_text() == '{"scale": 7.5}\n{"k": 0}\n'
    with pytest.raises(ValueError, match="remove it"):
        recorded(log, {"scale": 5.0})
