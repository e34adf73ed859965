"""Pictures as files.

Mutants seen to fail here: the sidecar replaced before its picture is written, the picture renamed first.
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
    images.write(OLD, tmp_path / "p.png", {"seed": 1})
    return tmp_path / "p.png"


def found(path: Path) -> tuple[tuple[int, ...], dict[str, object], list[str]]:
    """The picture's first pixel, its sidecar, and all files in the folder."""
    with Image.open(path) as image:
        pixel = image.getpixel((0, 0))
    return pixel, json.loads(path.with_suffix(".json").read_text()), sorted(p.name for p in path.parent.iterdir())


def test_a_picture_and_its_sidecar_are_replaced_together(pair):
    assert found(pair) == ((0, 0, 0), {"seed": 1}, ["p.json", "p.png"])
    images.write(NEW, pair, {"seed": 2})
    assert found(pair) == ((255, 255, 255), {"seed": 2}, ["p.json", "p.png"])


def test_a_picture_that_cannot_be_written_leaves_the_old_pair(pair, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "no space left")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match=r"no space left.*p\.png"):
        images.write(NEW, pair, {"seed": 2})
    assert found(pair) == ((0, 0, 0), {"seed": 1}, ["p.json", "p.png"])


def test_a_sidecar_that_cannot_be_written_leaves_the_old_pair(pair):
    with pytest.raises(TypeError):
        images.write(NEW, pair, {"seed": object()})
    assert found(pair) == ((0, 0, 0), {"seed": 1}, ["p.json", "p.png"])


def test_no_picture_is_ever_without_its_sidecar(tmp_path, monkeypatch):
    put, order = os.replace, []
    monkeypatch.setattr(os, "replace", lambda a, b: order.append(Path(b).name) or put(a, b))
    images.write(NEW, tmp_path / "p.png", {})
    assert order == ["p.json", "p.png"]


def test_a_picture_without_a_sidecar_is_one_file(tmp_path):
    images.write(NEW, tmp_path / "p.png")
    assert [path.name for path in tmp_path.iterdir()] == ["p.png"]
