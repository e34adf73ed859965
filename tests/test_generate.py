"""`sld generate` in a folder that holds pictures, and pictures that are none, on the embedded model.

Mutants seen to fail here: the same request made again, a picture that is not finite written, weights not looked through
for the cause, an interruption raised in the middle of an import.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
import torch
from running import here
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import sld
from sld.checkpoints import fetching
from sld.cli import pictures
from sld.embedded import embedded_checkpoint
from sld.explain import runs
from sld.finite import likely_cause
from sld.published import MINI
from sld.request import Request

QUICK = ("--steps", "1", "--size", "16")


def files(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def made(folder, *arguments):
    run = here("generate", *arguments, *QUICK, "--out", folder)
    assert run.returncode == 0, run.stderr
    return run


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("猫",), ("犬",)),
        (("a fox", "--concept", "death"), ("a fox", "--concept", "beer", "--negative", "dark", "--sampler", "pndm")),
        (("a fox?",), ("A fox!",)),
        (("a fox", "--compare"), ("a fox", "--compare", "--threshold", "0.5")),
    ],
    ids=["other script", "other settings", "other signs", "sheets"],
)
def test_a_second_command_replaces_no_picture_of_another_request(first, second, tmp_path):
    made(tmp_path, *first)
    before = files(tmp_path)
    run = made(tmp_path, *second)
    after = files(tmp_path)
    assert before.items() < after.items() and len(after) == 2 * len(before) and not run.stderr
    prompts = {json.loads(text)["request"]["prompt"] for name, text in after.items() if f"{name}".endswith("0.json")}
    assert prompts <= {first[0], second[0]}


def test_the_same_request_is_told_and_not_made_again_and_a_batch_is_made_as_a_whole(tmp_path, monkeypatch):
    asked = []
    run = pictures.run
    monkeypatch.setattr(pictures, "run", lambda pipe, batch, bar: asked.append(len(batch)) or run(pipe, batch, bar))
    seeds = ("a fox", "--seeds", "0-3", "--batch-size", "2", "--compare")
    first = made(tmp_path, *seeds)
    whole = files(tmp_path)
    assert asked == [2, 2, 2, 2] and not first.stderr

    again = made(tmp_path, *seeds)
    assert asked == [2, 2, 2, 2] and again.stdout == first.stdout and files(tmp_path) == whole
    assert "4 of 4 pictures are there from the same request" in again.stderr

    for ending in ("png", "json"):
        (tmp_path / f"a-fox-medium-2.{ending}").unlink()
    third = made(tmp_path, *seeds)
    assert asked == [2, 2, 2, 2, 2] and "3 of 4 pictures are there" in third.stderr
    assert files(tmp_path) == whole  # bit for bit, since its batch was made as a whole


def test_a_picture_that_is_asked_for_twice_is_made_once(tmp_path):
    run = made(tmp_path, "a fox", "a fox", "--seeds", "1,1")
    assert run.stdout.split() == [str(tmp_path / "a-fox-medium-1.png")] and len(files(tmp_path)) == 2


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """The embedded model with a token's embedding that is not a number: of "fox". Loading does not see it here."""
    source = embedded_checkpoint()
    weights = load_file(source)
    key = next(key for key in weights if key.endswith("token_embedding.weight"))
    (token,) = sld.load().tokenizers[0](["fox"])[0][1:2].tolist()
    weights[key][token] = float("nan")
    folder = tmp_path_factory.mktemp("broken")
    save_file(weights, folder / "broken.safetensors", safe_open(source, "pt").metadata())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fetching, "all_finite", lambda _: True)
        yield "--checkpoint", str(folder / "broken.safetensors"), "--tokenizer", str(source.with_name("tokenizer"))


CAUSE = "weights of the TextEncoder are not finite"


def test_of_pictures_those_that_are_not_finite_are_told_and_only_the_others_written(broken, tmp_path):
    run = here("generate", "a robot", "a fox", *broken, *QUICK, "--concept", "death", "--compare", "--out", tmp_path)
    (error,) = [line for line in run.stderr.splitlines() if "error" in line]

    assert run.returncode == 2 and "a picture is not finite, and not written (seed 0 of 'a fox')" in error
    assert CAUSE in error and "token_embedding.weight" in error
    assert [name for name in files(tmp_path) if name.endswith("png")] == [
        "0000-a-robot-compare.png",
        "0000-a-robot-medium-0.png",
    ]


def test_no_figure_is_drawn_of_a_picture_that_is_not_finite(broken, tmp_path):
    settings = (*broken, *QUICK, "--out", tmp_path / "x.png", "--trace", tmp_path / "x.csv")
    for *command, message in (
        ("explain", "a fox", "the picture is not finite"),
        ("conflicts", "a fox", "--concepts", "death; beer", "the picture is not finite"),
        ("conflicts", "a robot", "--concepts", "fox; death", "features of the concepts are not finite"),
    ):
        run = here(*command, *settings)
        assert run.returncode == 2 and message in run.stderr and CAUSE in run.stderr
    assert not files(tmp_path)


def test_from_python_a_picture_that_is_not_finite_is_an_error(broken):
    pipe = sld.load(broken[1], tokenizer=broken[3])
    with pytest.raises(ValueError, match=f"of 2 pictures, 1 .from 0. are not finite: {CAUSE}"):
        pipe(["a robot", "a fox"], [0, 0], steps=1, size=16, concept="death")
    with pytest.raises(ValueError, match=CAUSE):
        runs.explain(pipe, Request(prompt="a fox", concept="death", height=16, width=16, steps=1))


@pytest.mark.parametrize(
    ("dtype", "scale", "cause"),
    [
        (torch.float16, 7.5, "float16, where numbers end at 65504: take bfloat16 or float32"),
        (torch.bfloat16, 7.5, "bfloat16: take float32"),
        (torch.float32, 1e30, r"a guidance scale of 1e\+30 overflows"),
        (torch.float32, 7.5, "numbers overflowed on the way"),
    ],
)
def test_the_likely_cause_is_named(dtype, scale, cause):
    assert re.search(cause, likely_cause((object(), torch.nn.Linear(1, 1).to(dtype)), scale))


@pytest.mark.parametrize("command", ["generate a", "explain a", "conflicts a --concepts a;b", "evaluate --out r"])
def test_what_no_model_can_make_is_refused_before_torch_is_imported(command, tmp_path, monkeypatch):
    classifier = "--classifier none" * command.startswith("evaluate")
    for flags, message in (
        ("--size 63", "multiples of 4; got 63"),
        ("--size 99999", "the height must be in"),
        ("--space nonsense", "--space must be raw or eps; got 'nonsense'"),
        ("--guidance-scale 1e30", "--guidance-scale must be in"),
        (f"--checkpoint x.safetensors {classifier} --size 63", "multiples of 2; got 63"),
    ):
        monkeypatch.setitem(sys.modules, "torch", None)  # so that it cannot be imported
        run = here(*command.split(), *flags.split(), cwd=tmp_path)
        assert run.returncode == 2 and message in run.stderr
    assert not files(tmp_path)


def test_the_embedded_model_has_the_factor_that_sizes_are_checked_with():
    assert sld.load().config.vae.factor == MINI.vae.factor


def test_an_interruption_while_a_library_is_imported_is_one_line(tmp_path):
    """Libraries turn KeyboardInterrupt in their import into other errors, as this one does. Mutant: raised there."""
    (tmp_path / "library.py").write_text(
        "import os, signal\ntry:\n    os.kill(os.getpid(), signal.SIGINT)\n    sum(range(10**6))\n"
        "except KeyboardInterrupt:\n    raise ImportError('cannot load')\n"
    )
    code = (
        "import signal, sys, sld.cli, sld.__main__ as command\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a test suite in the background ignores it
        "sld.cli.main = lambda: __import__('library')\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\ncommand.main()"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (130, "sld: interrupted; what is finished is on disk\n")


def test_a_tilde_is_the_home_folder_wherever_a_path_stands(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "m.safetensors").symlink_to(embedded_checkpoint())
    tokenizer = embedded_checkpoint().with_name("tokenizer")
    (tmp_path / "home" / "t").symlink_to(tokenizer)
    assert sld.load("~/m.safetensors", tokenizer="~/t").config.name == "mini"
    assert here("inspect", "~/m.safetensors", cwd=tmp_path).returncode == 0
    assert made("~/pictures", "a fox").stdout.split() == [str(tmp_path / "home" / "pictures" / "a-fox-medium-0.png")]
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
