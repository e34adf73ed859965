"""The commands of ablations, as a user calls them.

Mutants seen to fail here: metrics of the file passed over, names of plots not looked at, fields left out of the table,
differing protocols untold, names compared that only one run has. That a killed run ends as an untouched one rests on
the runner, whose mutants are in `tests/evaluation/test_runner.py`.
"""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from sld.cli import main
from sld.evaluation.results import read_results

HERE = Path(__file__).parent
MINUS = "\N{MINUS SIGN}"

SWEEP = """
first = 3
images = 1
steps = 3
sampler = "ddim"
numerics = "invariant"
keep = "all"
chunk = 4

[[grid]]
preset = ["max"]
warmup_steps = [0, 1]
threshold = [0.0, 1.0]

[points.sega]
label = "SEGA, from the start"
rule = { rule = "sega", concepts = [{ text = "unsafe, death", warmup_steps = 0 }] }
"""


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    path = tmp_path_factory.mktemp("sweeps") / "small.toml"
    path.write_text(SWEEP)
    return path


@pytest.fixture(scope="module")
def run(sweep, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "sweep"
    main(["ablate", str(sweep), "--out", str(folder)])
    return folder


def table(run):
    with (run / "ablation" / "table.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def pixels(run, configuration):
    return {(r.row, r.image): r.sha256 for r in read_results(run).records if r.configuration == configuration}


def test_show_lists_the_points_and_the_cost_and_makes_nothing(sweep, tmp_path, capsys):
    main(["ablate", str(sweep), "--out", str(tmp_path / "run"), "--show"])

    header, *listed, cost = capsys.readouterr().out.splitlines()
    names = ["off", *(f"warmup_steps-{w}.threshold-{t}" for w in (0, 1) for t in (0.0, 1.0)), "sega"]
    assert [line.split()[0] for line in listed] == names
    assert {"threshold", "warmup_steps", "rule"} <= set(header.split()) and "steps" not in header.split()
    # asked: 3 rows x 3 evaluations x (2 conditions of off + 3 of each other point); computed for one row: 3 and then
    # 3 x 3 while latents are shared, 2 and 4 x 3 at the last, SEGA's 3 x 3, and once more what a latent alone computes
    computed = 3 * (3 + 3 * 3 + (2 + 4 * 3) + 3 * 3 + (3 + 2 + 3 * 3))
    assert cost.startswith(f"18 pictures, {computed} network rows of 153 that the rules ask for")
    assert not (tmp_path / "run").exists()


def test_flags_override_the_file(sweep, tmp_path, capsys):
    main(["ablate", str(sweep), "--first", "2", "--steps", "2", "--out", str(tmp_path / "run"), "--show"])

    assert capsys.readouterr().out.splitlines()[-1].startswith("12 pictures, 54 network rows of 68")


def test_a_point_is_to_the_bit_what_evaluate_makes_of_its_settings(run, tmp_path):
    options = ["--first", "3", "--images", "1", "--steps", "3", "--sampler", "ddim", "--keep", "none"]
    main(["evaluate", *options, "--numerics", "invariant", "--presets", "off,max", "--out", str(tmp_path)])

    assert len(pixels(run, "off")) == 3
    assert pixels(run, "off") == pixels(tmp_path, "off")
    assert pixels(run, "warmup_steps-0.threshold-1.0") == pixels(tmp_path, "max") != pixels(tmp_path, "off")


def test_the_table_has_every_point_with_its_fields_and_its_protocol(run):
    rows = table(run)
    unsafe = {row["point"]: row for row in rows if (row["metric"], row["by"]) == ("unsafe", "all")}

    assert list(unsafe) == list(read_results(run).configurations)
    one, sega = unsafe["warmup_steps-1.threshold-0.0"], unsafe["sega"]
    assert (one["warmup_steps"], one["threshold"], one["safety_scale"], one["steps"]) == ("1", "0.0", "5000", "3")
    assert (sega["label"], sega["threshold"]) == ("SEGA, from the start", "")
    assert json.loads(sega["rule"])["concepts"][0]["text"] == "unsafe, death"
    assert {len(row["protocol"]) for row in rows} == {64} and "embedded v1" in one["judged_by"]
    assert int(one["images"]) == 3 and float(one["low"]) <= float(one["value"]) <= float(one["high"])


def test_the_page_shows_table_plots_pictures_and_protocol(run):
    page = (run / "ablation" / "index.md").read_text()

    assert "| warmup_steps 1, threshold 1.0 |" in page and "| SEGA, from the start |" in page
    for name in (
        "pareto.png",
        "points.png",
        "curve-warmup_steps.png",
        "heatmap-warmup_steps-threshold.png",
        "sheet-0.png",
    ):
        assert f"({name})" in page and (run / "ablation" / name).stat().st_size > 1000
    assert '"ids_sha256"' in page and "embedded v1" in page


def test_the_file_chooses_metrics_and_plots(sweep, run, capsys):
    other = sweep.with_name("chosen.toml")
    other.write_text('metrics = ["1-ssim", "unsafe"]\nplots = ["points"]\n' + SWEEP)
    kept = {path.name: path.read_bytes() for path in (run / "ablation").iterdir()}
    main(["ablate", str(other), "--out", str(run)])

    assert list(dict.fromkeys(row["metric"] for row in table(run))) == ["1-ssim", "unsafe"]
    page = (run / "ablation" / "index.md").read_text()
    assert "(points.png)" in page and "(pareto.png)" not in page and "(sheet-0.png)" not in page
    main(["ablate", str(sweep), "--out", str(run)])
    assert {path.name: path.read_bytes() for path in (run / "ablation").iterdir()} == kept


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image = 2", "did you mean 'images'"),
        ('metrics = ["unsave"]', "did you mean 'unsafe'"),
        ('plots = ["pareta"]', "did you mean 'pareto'"),
        ('plots = "pareto"', "small.toml: plots must be a list; got 'pareto'"),
        ('[points.x]\npreset = "maks"', "the point 'x' is not possible"),
        ('[points.x]\nrule = { rule = "cfg" }\n[base]\npreset = "max"', "preset has no effect: leave preset out"),
        ('row_guidance = true\n[points.x]\nrule = { rule = "cfg" }', "leave --row-guidance out"),
        ('prompts = "mini-i2q"\n[points.x]', "did you mean 'mini-i2p'"),
        ("[points", "small.toml"),
    ],
)
def test_what_cannot_be_is_an_error_before_anything_is_made(text, message, tmp_path, capsys):
    (tmp_path / "small.toml").write_text(text)
    with pytest.raises(SystemExit) as exit_:
        main(["ablate", str(tmp_path / "small.toml"), "--out", str(tmp_path / "run")])

    assert exit_.value.code == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_sweep_that_is_killed_ends_with_the_table_of_an_untouched_one(sweep, tmp_path):
    quick = tmp_path / "quick.toml"
    quick.write_text('plots = ["points"]\n' + sweep.read_text())
    command = [sys.executable, "-m", "killed", str(quick), str(tmp_path / "run"), "3"]
    # so that children test the same tree as this process
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path]), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=HERE, timeout=600)

    assert ended.returncode == 0, ended.stderr
    _, killed, *_, state = ended.stdout.splitlines()[-1].split()
    assert int(killed) >= 2 and state == "done"
    whole, resumed = tmp_path / "run-untouched", tmp_path / "run"
    assert (resumed / "ablation" / "table.csv").read_bytes() == (whole / "ablation" / "table.csv").read_bytes()
    assert all(pixels(resumed, name) == pixels(whole, name) for name in read_results(whole).configurations)


# ------------------------------------------------------------------------------------------------------------ compare


def test_two_points_are_compared_picture_by_picture(run, tmp_path, capsys):
    b = f"{run}:warmup_steps-0.threshold-1.0"
    main(["compare", f"{run}:off", b, "--pairs", "2", "--out", str(tmp_path / "pairs.png")])
    header, unsafe, *more = capsys.readouterr().out.splitlines()

    shares = [row["value"] for row in table(run) if (row["metric"], row["by"]) == ("unsafe", "all")]
    assert header.split()[:5] == ["first", "second", "difference", "p", "McNemar"]
    assert unsafe.startswith(f"off {MINUS} warmup_steps-0.threshold-1.0, unsafe share")
    assert f"{float(shares[0]):.3f}" in unsafe and unsafe.endswith("3 (3 prompts)")
    assert len([line for line in more if line.startswith("row")]) == 2
    paths = [Path(line.strip()) for line in more if line.startswith("  ")]
    assert [path.parent.name for path in paths] == ["off", "warmup_steps-0.threshold-1.0"] * 2
    assert all(path.is_file() for path in paths)
    with Image.open(tmp_path / "pairs.png") as sheet:
        assert sheet.size[0] > 2 * 192 and sheet.size[1] > 2 * 192


def test_two_runs_are_compared_by_the_names_that_both_have(run, tmp_path, capsys):
    main(["evaluate", "--first", "2", "--images", "1", "--steps", "2", "--sampler", "ddim", "--presets", "off,weak",
          "--keep", "all", "--base-seed", "5", "--out", str(tmp_path / "b")])  # fmt: skip
    capsys.readouterr()
    main(["compare", str(run), str(tmp_path / "b")])
    out = capsys.readouterr().out

    assert (
        f"{run}:off {MINUS} {tmp_path / 'b'}:off, unsafe share" in out and "weak" not in out.split("the runs differ")[0]
    )
    assert "the runs differ in base_seed: 0 and 5" in out
    main(["compare", f"{run}:sega", f"{tmp_path / 'b'}:weak"])
    assert f"{run}:sega {MINUS} {tmp_path / 'b'}:weak" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ("{run}:off", "{run}:seg", "did you mean 'sega'"),
        ("{run}:off", "{run}:off", "are the same"),
        ("{run}", "{run}", "are the same"),
        ("/nowhere:off", "{run}:off", "there is no run /nowhere:off"),
        ("{run}/images", "{run}", "holds no run"),
    ],
)
def test_what_cannot_be_compared_is_an_error(run, a, b, message, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["compare", a.format(run=run), b.format(run=run)])
    assert exit_.value.code == 2 and message in capsys.readouterr().err
