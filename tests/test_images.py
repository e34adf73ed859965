"""Pictures as files.

Mutants seen to fail here: the picture before its sidecar, a file that is there replaced, the sidecar left where the
picture has no place.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from sld import images

OLD, NEW = Image.new("RGB", (4, 4), "black"), Image.new("RGB", (4, 4), "white")


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    images.write_new(OLD, tmp_path / "p.png", {"seed": 1})
    return tmp_path / "p.png"


def found(path: Path) -> tuple[object, object, list[str]]:
    """The picture's first pixel, its sidecar, and all files in the folder; None for a file that is not there."""
    pixel = Image.open(path).getpixel((0, 0)) if path.exists() else None
    sidecar = path.with_suffix(".json")
    about = json.loads(sidecar.read_text()) if sidecar.exists() else None
    return pixel, about, sorted(p.name for p in path.parent.iterdir())


OLD_PAIR = ((0, 0, 0), {"seed": 1}, ["p.json", "p.png"])


def test_a_picture_and_its_sidecar_are_written_together_and_never_replaced(pair):
    assert found(pair) == OLD_PAIR
    with pytest.raises(FileExistsError):
        images.write_new(NEW, pair, {"seed": 2})
    assert found(pair) == OLD_PAIR


@pytest.mark.parametrize("left", [".png", ".json"])
def test_beside_half_a_pair_nothing_is_written(left, pair):
    """A new sidecar beside an old picture would say of it what is not so, also where that one comes meanwhile."""
    pair.with_suffix({".png": ".json", ".json": ".png"}[left]).unlink()
    before = found(pair)
    with pytest.raises(FileExistsError):
        images.write_new(NEW, pair, {"seed": 2})
    assert found(pair) == before


def test_a_file_that_comes_while_a_pair_is_written_stays_and_has_no_other_half(tmp_path, monkeypatch):
    link = os.link

    def late(beside: Path, target: Path) -> None:
        if target.suffix == ".png":
            target.write_bytes(b"somebody's")
        link(beside, target)

    monkeypatch.setattr(os, "link", late)
    with pytest.raises(FileExistsError):
        images.write_new(NEW, tmp_path / "p.png", {})
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("p.png", b"somebody's")]


@pytest.mark.parametrize("links", [True, False], ids=["links", "a file system without links"])
def test_a_picture_that_cannot_be_written_leaves_no_sidecar(links, tmp_path, monkeypatch):
    def none(*_: object) -> None:
        raise OSError(95, "not supported")

    def full(*_, **__):
        raise OSError(28, "no space left")

    if not links:
        monkeypatch.setattr(os, "link", none)
    with monkeypatch.context() as patch, pytest.raises(OSError, match=r"no space left.*p\.png"):
        patch.setattr(Image.Image, "save", full)
        images.write_new(NEW, tmp_path / "p.png", {"seed": 2})
    assert found(tmp_path / "p.png") == (None, None, [])
    images.write_new(OLD, tmp_path / "p.png", {"seed": 1})
    assert found(tmp_path / "p.png") == OLD_PAIR


def test_a_sidecar_that_cannot_be_written_leaves_no_picture(tmp_path):
    with pytest.raises(TypeError):
        images.write_new(NEW, tmp_path / "p.png", {"seed": object()})
    assert found(tmp_path / "p.png") == (None, None, [])


def test_no_picture_is_ever_without_its_sidecar(tmp_path, monkeypatch):
    link, order = os.link, []
    monkeypatch.setattr(os, "link", lambda a, b: order.append(Path(b).name) or link(a, b))
    images.write_new(NEW, tmp_path / "p.png", {})
    assert order == ["p.json", "p.png"]


def test_a_picture_without_a_sidecar_is_one_file_in_place_of_an_old_one(tmp_path):
    images.write(OLD, tmp_path / "p.png")
    images.write(NEW, tmp_path / "p.png")
    assert found(tmp_path / "p.png") == ((255, 255, 255), None, ["p.png"])
