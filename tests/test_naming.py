"""Files of pictures in a folder where nothing is replaced.

Mutants seen to fail here: only Latin letters kept, names cut by characters, a rename that replaces, the size of the
batch compared, a sidecar without its picture taken for a picture, half a pair of another request completed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from threading import Thread

import pytest
from PIL import Image

from sld.cli.naming import slug, there, write_beside, write_new, write_once

PICTURE = Image.new("RGB", (4, 4), "white")


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("A fox, in a dark alley!", "a-fox-in-a-dark-alley"),
        ("猫", "猫"),
        ("Кошка и собака", "кошка-и-собака"),
        ("हिन्दी में", "हिन्दी-में"),
        ("cafe\u0301", "café"),
        ("🦊 at night", "🦊-at-night"),
        ("../../etc/passwd\0", "etc-passwd"),
        ("?!", "signs"),
        (" ", "empty"),
        ("", "empty"),
    ],
)
def test_a_prompt_in_any_script_is_a_name(prompt, name):
    assert slug(prompt) == name


@pytest.mark.parametrize("prompt", ["x" * 3000, "猫" * 3000, "🦊" * 3000, "a" * 59 + " b c d"])
def test_a_name_of_any_prompt_fits_in_a_file_system(prompt, tmp_path):
    name = slug(prompt)
    assert 0 < len(name) <= 60 and not name.endswith("-")
    write_new(PICTURE, tmp_path, f"0000-{name}-medium-{2**64 - 1}-compare", {})


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_picture_of_another_request_gets_a_number_and_the_same_one_is_found(tmp_path):
    fox, dog = {"request": "fox"}, {"request": "dog"}
    assert there(tmp_path, "a", fox) is None
    assert write_new(PICTURE, tmp_path, "a", fox) == there(tmp_path, "a", fox) == tmp_path / "a.png"
    assert there(tmp_path, "a", dog) is None
    assert write_new(PICTURE, tmp_path, "a", dog) == there(tmp_path, "a", dog) == tmp_path / "a-2.png"
    assert write_new(PICTURE, tmp_path, "a", dog) == tmp_path / "a-2.png"
    assert names(tmp_path) == ["a-2.json", "a-2.png", "a.json", "a.png"]


def test_the_size_of_the_batch_makes_no_other_picture(tmp_path):
    write_new(PICTURE, tmp_path, "a", {"request": 1, "batch": 4})
    assert there(tmp_path, "a", {"request": 1}) == tmp_path / "a.png"


@pytest.mark.parametrize("content", ["", "[1]", "{", '{"request": 2}', "[" * 100_000])
def test_files_of_others_are_left_alone(content, tmp_path):
    (tmp_path / "a.json").write_text(content)
    (tmp_path / "a-2.png").write_bytes(b"mine")
    assert there(tmp_path, "a", {"request": 1}) is None
    assert write_new(PICTURE, tmp_path, "a", {"request": 1}) == tmp_path / "a-3.png"
    assert (tmp_path / "a.json").read_text() == content and (tmp_path / "a-2.png").read_bytes() == b"mine"


def test_the_picture_that_a_killed_process_did_not_write_is_written(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"request": 1}))
    assert there(tmp_path, "a", {"request": 1}) is None
    assert write_new(PICTURE, tmp_path, "a", {"request": 1}) == tmp_path / "a.png"
    assert names(tmp_path) == ["a.json", "a.png"]


def test_writers_at_the_same_time_lose_nothing(tmp_path):
    """Eight of four requests, all with one name; each finds its own picture afterwards."""
    colours = ["red", "green", "blue", "white"]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [
            Thread(target=write_new, args=(Image.new("RGB", (4, 4), c), tmp_path, "a", {"request": c}))
            for c in colours * 2
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert len(names(tmp_path)) == 8
    for colour in colours:
        path = there(tmp_path, "a", {"request": colour})
        assert path is not None
        with Image.open(path) as found:
            assert found.tobytes() == Image.new("RGB", (4, 4), colour).tobytes()


def test_files_that_belong_together_get_one_number(tmp_path):
    """Mutants: the first one replaced, each with a number of its own."""

    def write(*paths: Path) -> None:
        for path in paths:
            path.write_text("new")

    figure, trace = tmp_path / "a.png", tmp_path / "b.tar.csv"
    trace.write_text("old")
    assert write_beside(write, figure, trace) == (tmp_path / "a-2.png", tmp_path / "b.tar-2.csv")
    assert write_beside(write, figure) == (figure,)
    assert write_beside(write, figure, trace) == (tmp_path / "a-3.png", tmp_path / "b.tar-3.csv")
    assert trace.read_text() == "old" and len(names(tmp_path)) == 6


def test_a_text_is_written_once_and_replaces_no_other(tmp_path):
    """As JSON of `sld fidelity`, which replaced what was there. Seen to fail: replaced; the same text written anew."""
    path = tmp_path / "a.json"
    assert [write_once(text, path).name for text in ("one", "two\r\n", "one", "two\r\n")] == ["a.json", "a-2.json"] * 2
    assert path.read_text() == "one" and names(tmp_path) == ["a-2.json", "a.json"]
