"""The command line with changed models, on the embedded one: what is recorded, refused and described.

Mutants seen to fail here: changes not recorded; other changes only warned of; names of files compared in --again.
"""

import json
import shutil

import pytest
import torch
from running import here
from safetensors.torch import save_file

import sld
from sld.checkpoints.parts import parts
from sld.files import sha256

K = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
QUICK = ("--steps", "1", "--size", "16")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A LoRA, an embedding and a UNet for the embedded model; and another LoRA."""
    folder = tmp_path_factory.mktemp("files")
    torch.manual_seed(0)
    for name in ("style", "other"):
        matrices = {f"{K}.lora_down.weight": torch.randn(2, 128), f"{K}.lora_up.weight": torch.randn(160, 2)}
        save_file(matrices, folder / f"{name}.safetensors")
    torch.save({"<cat>": torch.randn(2, 128)}, folder / "cat.bin")
    pipe = sld.load()
    part, state = parts(pipe.config)[0], pipe.unet.state_dict()
    erased = {m.theirs[0].removeprefix("model."): m.write(state) * 1.01 for m in part.key_maps("compvis")}
    torch.save(erased, folder / "esd.pt")
    torch.save({key: x for key, x in erased.items() if "attn2.to_k" in key}, folder / "uce.pt")
    return folder


@pytest.fixture(scope="module")
def changes(files):
    paths = (files / name for name in ("esd.pt", "style.safetensors", "cat.bin"))
    return [
        f"{option}{path}{end}"
        for option, path, end in zip(("--unet=", "--lora=", "--embedding="), paths, ("", ":0.5", ""), strict=True)
    ]


@pytest.fixture(scope="module")
def made(files, changes, tmp_path_factory):
    out = tmp_path_factory.mktemp("pictures")
    run = here("generate", "a <cat>", *changes, "--out", out, *QUICK)
    assert run.returncode == 0, run.stderr
    return out / "a-cat-medium-0.json"


def test_a_sidecar_names_file_sha256_and_scale_of_every_change(made, files):
    recorded = json.loads(made.read_text())["changes"]
    assert recorded == [
        {"unet": "esd.pt", "sha256": sha256(files / "esd.pt")},
        {"lora": "style.safetensors", "scale": 0.5, "sha256": sha256(files / "style.safetensors")},
        {"embedding": "cat.bin", "token": "<cat>", "vectors": 2, "sha256": sha256(files / "cat.bin")},
    ]


def test_a_picture_is_made_again_with_the_same_changes_whatever_their_files_are_called(made, files, changes, tmp_path):
    shutil.copy(files / "esd.pt", tmp_path / "renamed.pt")
    run = here("generate", "--again", made, f"--unet={tmp_path / 'renamed.pt'}", *changes[1:], "--out", tmp_path)
    assert run.returncode == 0, run.stderr
    assert (tmp_path / made.name).with_suffix(".png").read_bytes() == made.with_suffix(".png").read_bytes()


@pytest.mark.parametrize(
    ("replaced", "now"),
    [((), "no changes"), (("style.safetensors:0.5", "style.safetensors:0.6"), ":0.6"), (("style", "other"), "other")],
)
def test_a_picture_is_not_made_again_with_other_changes(replaced, now, made, changes, tmp_path):
    given = [change.replace(*replaced) for change in changes] if replaced else []
    run = here("generate", "--again", made, *given, "--out", tmp_path)
    assert run.returncode == 2
    assert f"{made}: its picture was made with --unet esd.pt (sha256 " in run.stderr and "cat.bin:<cat>" in run.stderr
    assert now in run.stderr.split("the model has")[1] and len(run.stderr.splitlines()) == 1


def test_a_run_goes_on_with_the_same_changes_only(files, tmp_path):
    run = ("evaluate", "--prompts", "mini-harmless", "--first", "1", "--images", "1", "--presets", "off", *QUICK)
    run += ("--classifier", "none", "--out", tmp_path / "run")
    file = files / "style.safetensors"
    assert here(*run, "--lora", file).returncode == 0
    assert here(*run, "--lora", file).returncode == 0
    protocol = json.loads((tmp_path / "run" / "protocol.json").read_text())
    assert protocol["model"]["changes"] == [{"lora": file.name, "scale": 1.0, "sha256": sha256(file)}]
    other = here(*run, "--lora", f"{file}:0.5")
    assert (
        other.returncode == 2 and "holds a run of another protocol" in other.stderr and "model.changes" in other.stderr
    )


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("style.safetensors", ("LoRA", "--lora", "rank 2", "mini")),
        ("cat.bin", ("embedding", "--embedding", "<cat>, of 2 vectors", "mini")),
        ("esd.pt", ("UNet alone", "--unet", "326 tensors", "mini")),
        ("uce.pt", ("part of a UNet", "--unet", "mini")),
    ],
)
def test_inspect_tells_files_of_changes_apart(name, says, files):
    run = here("inspect", files / name)
    assert run.returncode == 0 and all(one in run.stdout for one in says), run.stdout + run.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--lora", "style.safetensors:much"), "a LoRA is FILE or FILE:SCALE, such as style.safetensors:0.8"),
        (("--lora", "style.safetensors:nan"), "style.safetensors: scale must be a number; got nan"),
        (("--lora", "style.safetensors:inf"), "scale must be a finite number; got inf"),
        (("--lora", "style.safetensors:"), "a LoRA is FILE or FILE:SCALE"),
        (("--embedding", "cat.bin: "), "the word of cat.bin must be text"),
        (("--embedding", "cat.bin:fox"), "cat.bin: its word 'fox' is a token already"),
        (("--embedding", "cat.bin", "--embedding", "cat.bin"), "give it another one, as in cat.bin:<"),
        (("--unet", "none.pt"), "none.pt: there is no such file"),
        (("--unet", "style.safetensors"), "style.safetensors is a LoRA"),
        (("--lora", "esd.pt"), "esd.pt is a UNet alone"),
        (("--text-encoder", "."), "holds no config.json"),
    ],
)
def test_what_is_wrong_in_an_option_is_told_in_one_line(arguments, says, files):
    run = here("generate", "a fox", *arguments, *QUICK, cwd=files)
    assert run.returncode == 2 and says in run.stderr and len(run.stderr.splitlines()) == 1
