"""The test bed's commands, as a user calls them.

Mutants seen to fail here: unknown names in a file passed over, order of --presets lost, the lock not taken, a report
not written.
"""

import json
import shlex

import pytest
from small import one_thread  # noqa: F401 (used by every test of the module)

from sld.cli import main
from sld.evaluation.results import read_results
from sld.evaluation.store import locked, read_protocol

QUICK = ["--first", "2", "--images", "1", "--steps", "2", "--sampler", "ddim"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "mini"
    main(["evaluate", *QUICK, "--presets", "off,max,negative", "--keep", "all", "--out", str(folder)])
    return folder


def test_evaluate_makes_judges_and_reports(run):
    results = read_results(run)

    assert results.configurations == ("off", "max", "negative") and len(results.records) == 6
    assert all(record.failure is None for record in results.records)
    assert (run / "report" / "report.html").stat().st_size > 10_000


def test_the_protocol_on_disk_says_all_that_decides(run):
    about = read_protocol(run)

    assert about["prompts"]["name"] == "mini-i2p" and about["prompts"]["ids"] == "0-1"
    assert about["configurations"]["max"]["guidance"]["safety_scale"] == 5000
    assert about["configurations"]["negative"]["negative"] == about["configurations"]["max"]["concept"]
    assert about["classifiers"]["embedded"]["threshold"] == 0.5
    assert len(about["model"]["sha256"]["mini.safetensors"]) == 64 and about["versions"]["torch"]


def test_the_table_ends_the_output(run, capsys):
    main(["evaluate", *QUICK, "--presets", "off,max,negative", "--keep", "all", "--out", str(run)])

    out = capsys.readouterr().out
    assert "6 pictures, 0 without a verdict" in out and out.splitlines()[-2].startswith("all ")


def test_a_second_run_on_the_folder_is_refused(run, capsys):
    with locked(run), pytest.raises(SystemExit) as exit_:
        main(["evaluate", *QUICK, "--presets", "off,max,negative", "--keep", "all", "--out", str(run)])

    assert exit_.value.code == 2 and "another run works in" in capsys.readouterr().err


def test_show_prints_protocol_and_cost_and_makes_nothing(tmp_path, capsys):
    main(["evaluate", *QUICK, "--presets", "off,max", "--show", "--out", str(tmp_path / "run")])

    text, _, cost = capsys.readouterr().out.rpartition("}\n")
    assert json.loads(text + "}")["images"] == 1
    assert cost.startswith("4 pictures, 20 network rows")  # 2 rows x 1 image x 2 evaluations x (2 + 3) conditions
    assert not (tmp_path / "run").exists()


def test_a_file_gives_settings_and_configurations_and_flags_override_it(tmp_path, capsys):
    (tmp_path / "run.toml").write_text(
        'presets = ["late", "off"]\nsteps = 4\nfirst = 3\nimages = 2\n'
        '[configurations.late]\npreset = "strong"\nwarmup_steps = 20\nsampler = "euler"\n'
    )
    command = ["evaluate", "--file", str(tmp_path / "run.toml"), "--first", "1", "--show", "--out", str(tmp_path / "r")]
    main(command)

    about = json.loads(capsys.readouterr().out.rpartition("}\n")[0] + "}")
    late = about["configurations"]["late"]
    assert list(about["configurations"]) == ["late", "off"]
    assert (late["guidance"]["warmup_steps"], late["sampler"], late["steps"]) == (20, "euler", 4)
    assert about["images"] == 2 and about["prompts"]["rows"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--presets", "off,strnog"], "did you mean 'strong'"),
        (["--presets", "off,off"], "named twice"),
        (["--protocol", "autors"], "did you mean 'authors'"),
        (["--prompts", "mini-i2q"], "did you mean 'mini-i2p'"),
        (["--categories", "violenc"], "violence"),
        (["--ids", "1-x"], "row ids are numbers"),
        (["--columns", "prompt"], "columns are pairs"),
        (["--images", "0"], "images must be at least 1"),
        (["--batch-size", "0"], "batch size must be at least 1"),
        (["--keep", "some"], "keep must be"),
        (["--sampler", "dimm"], "ddim"),
        (["--classifier", "q17"], "q16"),
        (["--embed", "/nowhere"], "/nowhere"),
    ],
)
def test_what_cannot_be_is_an_error_before_anything_is_made(tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit) as exit_:
        main(["evaluate", *QUICK, *arguments, "--out", str(tmp_path / "run")])

    assert exit_.value.code == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_an_unknown_name_in_a_file_is_an_error(tmp_path, capsys):
    (tmp_path / "run.toml").write_text("image = 2\n")

    with pytest.raises(SystemExit):
        main(["evaluate", *QUICK, "--file", str(tmp_path / "run.toml"), "--out", str(tmp_path / "run")])
    assert "did you mean 'images'" in capsys.readouterr().err


def test_a_checkpoint_needs_a_judge(tmp_path, capsys):
    from sld.pipeline import embedded_checkpoint

    with pytest.raises(SystemExit):
        main(["evaluate", "--checkpoint", str(embedded_checkpoint()), "--out", str(tmp_path / "run")])
    assert "say who judges" in capsys.readouterr().err


def test_score_adds_a_classifier_and_report_takes_the_chosen_ones(run, capsys, monkeypatch):
    main(["score", str(run), "--classifier", "judges:bright"])
    added = [name for name in read_results(run).classifiers if name != "embedded"]
    main(["report", str(run), "--classifiers", added[0], "--out", str(run / "bright")])

    assert len(added) == 1 and (run / "bright" / "report.html").exists()
    assert "embedded v" not in (run / "bright" / "table1.csv").read_text()


def test_the_noted_command_makes_the_same_run(run, tmp_path, monkeypatch):
    command = shlex.join(["sld", "evaluate", *QUICK, "--presets", "off", "--out", str(tmp_path / "run")])
    monkeypatch.setattr("sys.argv", shlex.split(command))
    main(None)

    assert read_results(tmp_path / "run").about["command"] == command


def test_prompts_says_what_a_set_is(capsys):
    main(["prompts", "mini-harmless"])

    assert "mini-harmless" in capsys.readouterr().out


def test_report_of_no_run_is_an_error(tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["report", str(tmp_path)])
    assert exit_.value.code == 2 and "holds no run" in capsys.readouterr().err
