"""The measuring script: what it is asked for, and what a killed run leaves.

Mutants seen to fail here: pictures of a log made again, the device in the log's first line, several processes on a GPU,
a last row of a sheet that is not full.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from PIL import Image

from sld.embedded import embedded_checkpoint
from sld.testbed import quality
from sld.testbed.art import ArtError
from sld.testbed.cells import Cell, cells
from sld.testbed.prompts import Prompt
from sld.testbed.quality import BATCH, DEVICE_BATCH, main, missing, parser, plan_of, recorded, write_sheet

CELL = Cell("implicit", (Prompt("a fox in an alley", "fox", "alley", None, "weapons"),), "off")
MODEL = ["--checkpoint", str(embedded_checkpoint())]
needs_weights = pytest.mark.skipif(not embedded_checkpoint().is_file(), reason="weights/mini.safetensors is not here")


def result(k: int) -> dict[str, Any]:
    return {"cell": CELL.name, "k": k, "subject": "fox", "place": "alley", "props": []}


def test_cells_of_a_family_share_their_prompts_and_no_two_have_one_name():
    everything = cells()
    assert len({cell.name for cell in everything}) == len(everything)
    for cell in everything:
        assert all(other.prompts == cell.prompts for other in everything if other.family == cell.family)


def test_only_missing_pictures_are_made():
    records = [result(k) for k in range(BATCH)]
    assert list(missing([CELL], BATCH + 3, records, BATCH)) == [(CELL, (BATCH, BATCH + 1, BATCH + 2))]
    assert list(missing([CELL], BATCH, records, BATCH)) == []
    assert [len(ks) for _, ks in missing([CELL], BATCH + 3, [], BATCH)] == [BATCH, 3]


def test_a_log_keeps_whole_lines_and_belongs_to_one_run(tmp_path):
    log, run = tmp_path / "q.jsonl", {"scale": 7.5, "steps": 50}
    assert recorded(log, run) == []
    with log.open("a") as file:
        file.write('{"k": 0}\n{"k": 1')
    assert recorded(log, run) == [{"k": 0}]
    assert log.read_text() == '{"scale": 7.5, "steps": 50}\n{"k": 0}\n'
    with pytest.raises(ValueError, match=r"q.jsonl holds results with scale 7.5, not 5.0: remove it"):
        recorded(log, {**run, "scale": 5.0})


@pytest.mark.parametrize(("count", "width", "height"), [(3, 192, 64), (8, 512, 64), (21, 512, 128)])
def test_a_sheet_has_whole_rows(count, width, height, tmp_path):
    write_sheet(torch.zeros(count, 3, 64, 64), tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (width, height)


@needs_weights
def test_what_was_measured_before_is_not_made_again_and_the_rates_are_of_the_pictures_that_are_asked_for(
    tmp_path, capsys, monkeypatch
):
    out, sheets = tmp_path / "made" / "q.json", tmp_path / "sheets"
    command = [*MODEL, "--cells", "harmless,alone", "--presets", "off,strong", "--steps", "1", "--processes", "1"]
    command += ["--batch", "2", "--out", str(out)]
    main([*command, "--n", "3", "--sheets", str(sheets)])
    rates = json.loads(out.read_text())["cells"]
    assert {name: cell["unsafe"]["of"] for name, cell in rates.items()} == dict.fromkeys(
        ("alone/off", "harmless/off", "harmless/strong"), 3
    )
    assert "less" in rates["harmless/strong"] and "less" not in rates["harmless/off"]
    assert {sheet.name for sheet in sheets.iterdir()} == {"alone-off.png", "harmless-off.png", "harmless-strong.png"}
    assert capsys.readouterr().out.startswith("cell ")

    monkeypatch.setattr(quality, "judge", lambda job: pytest.fail(f"made again: {job.cell.name}"))
    monkeypatch.setattr(quality, "usable", lambda device: torch.device(device))
    main([*command, "--n", "2", "--device", "cuda"])
    assert all(cell["unsafe"]["of"] == 2 for cell in json.loads(out.read_text())["cells"].values())


@needs_weights
def test_a_gpu_has_one_process_and_larger_batches(monkeypatch):
    plans = [plan_of(parser().parse_args(MODEL))]
    monkeypatch.setattr(quality, "usable", lambda device: torch.device(device))
    plans += [plan_of(parser().parse_args([*MODEL, "--device", "cuda", *more])) for more in ([], ["--batch", "7"])]
    assert [(plan.processes, plan.batch) for plan in plans] == [(2, BATCH), (1, DEVICE_BATCH), (1, 7)]
    with pytest.raises(ValueError, match="leave out --processes on cuda"):
        plan_of(parser().parse_args([*MODEL, "--device", "cuda", "--processes", "2"]))


@needs_weights
@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--cells", "implict"], "--cells: there is no implict; there are alone, "),
        (["--presets", "off,stong"], "--presets: there is no stong; there are off, "),
        (["--cells", "alone", "--presets", "max"], "no cell of alone has a preset of max"),
        (["--n", "0"], "--n must be at least 1, got 0"),
        (["--n", "1", "--fidelity"], "--n must be at least 2, got 1"),
        (["--batch", "0"], "--batch must be at least 1, got 0"),
        (["--steps", "0"], "--steps must be at least 1, got 0"),
        (["--sampler", "dim"], "did you mean 'ddim'?"),
        (["--guidance-scale", "nan"], "guidance_scale must be a finite number"),
        (["--device", "cuda:99"], "the device 'cuda:99' cannot be used here"),
        (["--detector", "nowhere.safetensors"], "nowhere.safetensors: there is no such file"),
        (["--checkpoint", "nowhere.safetensors"], "nowhere.safetensors"),
    ],
)
def test_what_cannot_be_measured_is_said_before_anything_is_made(arguments, problem, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main([*MODEL, *arguments])
    said = capsys.readouterr().err.splitlines()[-1]
    assert stopped.value.code == 2 and problem in said
    assert not list(tmp_path.iterdir())


@needs_weights
def test_renders_to_compare_with_are_tried_before_the_first_picture(tmp_path, monkeypatch, capsys):
    def absent(k: int) -> None:
        raise ArtError("the emoji sprites are not here")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(quality, "fresh_render", absent)
    with pytest.raises(SystemExit):
        main([*MODEL, "--fidelity"])
    assert "the emoji sprites are not here" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
