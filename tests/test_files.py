"""Files that appear whole or not at all.

Mutants seen to fail here: written in place; renamed before it is on disk; a folder's files not brought to disk; nothing
removed on an error; the name of the partial file in the message; an error about another file renamed; a target that
comes while another is written replaced; the first of two renamed before the second is on disk; a sweep of folders that
only look alike.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sld import files
from sld.files import (
    PARTIAL,
    is_partial,
    require_writable,
    sha256,
    sweep,
    whole,
    whole_together,
    write_json,
    write_whole,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@contextmanager
def full_disk(size: int = 4096) -> Iterator[None]:
    """No file grows beyond `size` bytes: to a writer it is as if the disk were full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def write_half(kind: str, beside: Path) -> None:
    if kind == "folder":
        beside.mkdir()
    (beside / "part" if kind == "folder" else beside).write_text("half")


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_the_target_appears_at_the_end_and_nothing_is_left_beside_it(kind, tmp_path):
    target = tmp_path / "target.x"
    with whole(target) as beside:
        write_half(kind, beside)
        assert not target.exists()
        assert beside.name == target.name and is_partial(beside)

    assert names(tmp_path) == ["target.x"]
    assert (target / "part" if kind == "folder" else target).read_text() == "half"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_an_error_leaves_no_target_and_nothing_beside_it(kind, error, tmp_path):
    with pytest.raises(error), whole(tmp_path / "target.x") as beside:
        write_half(kind, beside)
        raise error

    assert names(tmp_path) == []


def test_an_old_file_is_replaced_at_the_end_and_stays_on_an_error(tmp_path):
    target = tmp_path / "file"
    target.write_text("old")
    with pytest.raises(RuntimeError), whole(target) as beside:
        beside.write_text("new")
        raise RuntimeError
    assert target.read_text() == "old"

    with whole(target) as beside:
        beside.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_all_that_was_written_is_on_disk_before_it_is_renamed(kind, tmp_path, monkeypatch):
    synced: list[str] = []
    put, sync = os.replace, os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        sync(descriptor)

    def replace(*paths: Path) -> None:
        synced.append("renamed")
        put(*paths)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    with whole(tmp_path / "target") as beside:
        write_half(kind, beside)

    inside = ["part"] if kind == "folder" else []
    assert synced == [*inside, "target", "renamed", tmp_path.name]


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_process_killed_before_the_rename_leaves_the_old_file_and_a_rest_that_can_be_swept(moment, tmp_path):
    path = tmp_path / "deep" / "file"
    write_whole(path, b"old")
    script = (
        "import os, signal; from sld.files import write_whole\n"
        f"os.{moment} = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"write_whole({str(path)!r}, b'new')"
    )
    killed = subprocess.run([sys.executable, "-c", script])

    assert killed.returncode == -signal.SIGKILL and path.read_bytes() == b"old"
    left, _ = names(path.parent)
    assert left.startswith(PARTIAL)
    write_whole(path, b"newer")  # the rest is in nobody's way
    sweep(tmp_path)
    assert names(path.parent) == ["file"] and path.read_bytes() == b"newer"


def test_a_sweep_leaves_everything_else(tmp_path):
    for name in ("folder.partial", ".partial", "partial-1", "other"):
        write_whole(tmp_path / name / "file", "mine")
    sweep(tmp_path)
    assert names(tmp_path) == [".partial", "folder.partial", "other", "partial-1"]
    assert all(names(folder) == ["file"] for folder in tmp_path.iterdir())


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    with whole(tmp_path / "file") as one:
        one.write_text("one")
        with whole(tmp_path / "file") as two:
            two.write_text("two")
        assert (tmp_path / "file").read_text() == "two"
    assert (tmp_path / "file").read_text() == "one" and names(tmp_path) == ["file"]


@pytest.mark.parametrize(
    "write",
    [lambda path: path.write_bytes(bytes(10_000)), lambda path: save_file({"x": torch.zeros(10_000)}, path)],
    ids=["plain", "safetensors"],
)
def test_a_full_disk_is_told_with_the_name_of_the_file(write, tmp_path):
    target = tmp_path / "target.safetensors"
    with full_disk(), pytest.raises(OSError) as told, whole(target) as beside:
        write(beside)

    assert told.value.filename == str(target) and PARTIAL not in str(told.value)
    assert names(tmp_path) == []


def test_a_missing_folder_and_a_target_that_is_a_folder_are_told_by_the_targets_name(tmp_path):
    with pytest.raises(FileNotFoundError) as told, whole(tmp_path / "nowhere" / "file"):
        pass
    assert told.value.filename == str(tmp_path / "nowhere" / "file")

    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError) as told:
        write_whole(tmp_path / "folder", "text")
    assert told.value.filename == str(tmp_path / "folder") and names(tmp_path) == ["folder"]


def test_a_block_that_writes_nothing_is_an_error_about_the_target(tmp_path):
    with pytest.raises(FileNotFoundError) as told, whole(tmp_path / "file"):
        pass
    assert told.value.filename == str(tmp_path / "file")


def test_an_error_about_another_file_keeps_its_name(tmp_path):
    with pytest.raises(FileNotFoundError) as told, whole(tmp_path / "copy") as beside:
        beside.write_bytes((tmp_path / "original").read_bytes())
    assert told.value.filename == str(tmp_path / "original")


def test_an_error_without_a_number_of_the_system_is_told_with_the_name_too(tmp_path):
    with pytest.raises(OSError, match=r"file\.png: encoder error -2$"), whole(tmp_path / "file.png"):
        raise OSError("encoder error -2")


@pytest.mark.parametrize("kind", ["file", "folder", "broken link"])
def test_an_existing_target_is_refused_where_it_is_not_to_be_replaced(kind, tmp_path):
    target = tmp_path / "target"
    make = {"file": target.touch, "folder": target.mkdir, "broken link": lambda: target.symlink_to("nowhere")}[kind]
    make()
    with pytest.raises(FileExistsError, match="target"), whole(target, replace=False):
        pytest.fail("the block ran")
    target.rmdir() if kind == "folder" else target.unlink()

    with pytest.raises(FileExistsError, match="target"), whole(target, replace=False) as beside:
        beside.write_text("new")
        make()  # somebody else was faster
    assert names(tmp_path) == ["target"] and (kind != "file" or target.read_text() == "")


def test_of_two_files_none_is_replaced_before_both_are_on_disk(tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / name).write_text("old")
    sync = files._sync_tree

    def full(path: Path) -> None:
        if path.name == "b":
            raise OSError(28, "no space left")
        sync(path)

    monkeypatch.setattr(files, "_sync_tree", full)
    with pytest.raises(OSError, match="no space left"), whole_together(tmp_path / "a", tmp_path / "b") as besides:
        for beside in besides:
            beside.write_text("new")
    assert [(tmp_path / name).read_text() for name in ("a", "b")] == ["old", "old"] and names(tmp_path) == ["a", "b"]

    monkeypatch.undo()
    with whole_together(tmp_path / "a", tmp_path / "b") as besides:
        for beside in besides:
            beside.write_text("new")
    assert [(tmp_path / name).read_text() for name in ("a", "b")] == ["new", "new"] and names(tmp_path) == ["a", "b"]


def test_of_two_files_that_replace_nothing_both_have_places_or_none(tmp_path):
    """Here and in test_images.py. Mutant: what has its place stays there."""
    with (
        pytest.raises(FileExistsError, match="b'"),
        whole_together(tmp_path / "a", tmp_path / "b", replace=False) as pair,
    ):
        for beside in pair:
            beside.write_text("new")
        (tmp_path / "b").write_text("somebody's")
    assert names(tmp_path) == ["b"] and (tmp_path / "b").read_text() == "somebody's"


def test_a_file_that_comes_at_the_last_moment_is_not_replaced(tmp_path, monkeypatch):
    """Mutant: a rename, which would replace it."""
    monkeypatch.setattr(files, "_require_absent", lambda _: None)  # nothing is seen before the place is taken
    with pytest.raises(FileExistsError, match="file"), whole(tmp_path / "file", replace=False) as beside:
        beside.write_text("new")
        (tmp_path / "file").write_text("old")
    assert (tmp_path / "file").read_text() == "old" and names(tmp_path) == ["file"]


def test_a_folder_is_tried_before_work_is_done_for_it(tmp_path, monkeypatch):
    require_writable(tmp_path / "new" / "folder")
    assert names(tmp_path / "new" / "folder") == []
    with pytest.raises(NotADirectoryError, match="null"):
        require_writable(Path("/dev/null/folder"))

    def refuse(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system", "a name of ours")

    monkeypatch.setattr(Path, "mkdir", lambda path, **how: None if how else refuse())
    with pytest.raises(OSError, match=r"Read-only file system: '.*new'$"):
        require_writable(tmp_path / "new")


def test_json_has_every_letter_and_no_number_that_is_none(tmp_path):
    write_json(tmp_path / "new" / "file.json", {"name": "Zdzisław"})
    text = (tmp_path / "new" / "file.json").read_text(encoding="utf-8")
    assert text == '{\n  "name": "Zdzisław"\n}\n' and json.loads(text) == {"name": "Zdzisław"}
    with pytest.raises(ValueError):
        write_json(tmp_path / "none.json", float("nan"))
    assert names(tmp_path) == ["new"]


def test_sha256_is_the_standard_one(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_writing_files_loads_no_torch():
    code = "import sys, sld.files; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
