"""Configurations with a changed model, beside others in one run, on the same noise.

Mutants seen to fail here: the run's model for all configurations; changes of a configuration added to those of the run;
the model not recorded; batches that mix models; other numerics passed over; changes of a sweep's point passed over.
"""

import json
from dataclasses import replace

import pytest
import torch
from small import evaluation, files, go

import sld
from sld.checkpoints.parts import parts
from sld.cli import main
from sld.evaluation.results import read_results
from sld.evaluation.store import read_protocol
from sld.files import sha256

QUICK = ["--first", "2", "--images", "1", "--steps", "1", "--keep", "all"]

FILE = """
presets = ["off", "max", "erased", "both"]
[configurations.erased]
changes.unet = "{0}/esd.pt"
[configurations.both]
preset = "max"
changes = {{unet = "{0}/esd.pt", lora = []}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An erased UNet for the embedded model, and a run's file that names it."""
    folder = tmp_path_factory.mktemp("files")
    pipe = sld.load()
    part, state = parts(pipe.config)[0], {key: x * 1.02 for key, x in pipe.unet.state_dict().items()}
    torch.save(
        {m.theirs[0].removeprefix("model."): m.write(state) for m in part.key_maps("compvis")}, folder / "esd.pt"
    )
    (folder / "run.toml").write_text(FILE.format(folder))
    main(["evaluate", *QUICK, "--file", str(folder / "run.toml"), "--out", str(folder / "run")])
    return folder


def pictures(run):
    return {(r.configuration, r.row): r.sha256 for r in read_results(run).records}


def test_each_configuration_has_its_model_and_all_have_the_same_noise(folder, tmp_path):
    main(["evaluate", *QUICK, "--presets", "off,max", "--unet", str(folder / "esd.pt"), "--out", str(tmp_path)])

    together, erased = pictures(folder / "run"), pictures(tmp_path)
    assert len(set(together.values())) == 8
    for name, same in (("erased", "off"), ("both", "max")):
        assert [together[name, row] for row in (0, 1)] == [erased[same, row] for row in (0, 1)]


def test_the_protocol_says_what_is_changed_where(folder):
    about = read_protocol(folder / "run")["configurations"]

    recorded = {"changes": [{"unet": "esd.pt", "sha256": sha256(folder / "esd.pt")}]}
    assert about["erased"]["model"] == about["both"]["model"] == recorded
    assert "model" not in about["off"] and "model" not in about["max"]
    assert "esd.pt" in (folder / "run" / "report" / "report.html").read_text(encoding="utf-8")


def test_changes_of_a_configuration_replace_those_of_the_run(folder, tmp_path, capsys):
    """The table of `both` says that it has no LoRA; that of `erased` says nothing of it."""
    K = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
    torch.save(
        {f"{K}.lora_down.weight": torch.ones(2, 128), f"{K}.lora_up.weight": torch.ones(160, 2)}, tmp_path / "a.pt"
    )
    file = ["--file", str(folder / "run.toml"), "--lora", str(tmp_path / "a.pt")]
    main(["evaluate", *QUICK, *file, "--show", "--out", str(tmp_path / "run")])

    about = json.loads(capsys.readouterr().out.rpartition("}\n")[0] + "}")
    changed = {name: config.get("model", about["model"])["changes"] for name, config in about["configurations"].items()}
    found = {name: [next(iter(change)) for change in changes] for name, changes in changed.items()}
    assert found == {"off": ["lora"], "max": ["lora"], "erased": ["unet", "lora"], "both": ["unet"]}


@pytest.mark.parametrize(
    ("command", "table", "says"),
    [
        ("evaluate", 'changes.checkpoint = "a"', "unknown"),
        ("evaluate", "changes = 3", "changes"),
        ("ablate", 'changes.unet = "none.pt"', "all points have one model"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_made(command, table, says, tmp_path, capsys):
    kind = "configurations" if command == "evaluate" else "points"
    (tmp_path / "run.toml").write_text(f"[{kind}.erased]\n{table}\n")
    presets = ["--presets", "erased"] if command == "evaluate" else []
    file = [str(tmp_path / "run.toml")]
    with pytest.raises(SystemExit) as exit_:
        main(
            [command, *(["--file", *file] if command == "evaluate" else file), *presets, "--out", str(tmp_path / "run")]
        )

    assert exit_.value.code == 2 and says in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_in_python_a_model_has_the_latents_and_numerics_of_the_run():
    pipe = sld.load()

    with pytest.raises(ValueError, match=r"'max': its model has .* invariant numerics, and the run's has .* reference"):
        evaluation(pipe, models={"max": replace(pipe, numerics="invariant")})
    with pytest.raises(ValueError, match="'medium', which the run does not have"):
        evaluation(pipe, models={"medium": pipe})


def test_a_model_that_is_the_same_makes_the_same_run(tmp_path):
    pipe = sld.load(numerics="invariant")
    go(evaluation(pipe, rows=2), tmp_path / "a")
    go(evaluation(pipe, rows=2, models={"max": replace(pipe)}), tmp_path / "b")

    assert files(tmp_path / "a") == files(tmp_path / "b")
