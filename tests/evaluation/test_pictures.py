"""Pictures on disk: what is read as pixels, and what is refused by its file's name.

Mutants seen to fail here: grey pictures of 16 bits clipped, floats and pages read, only OSError caught, no bound of the
size, pixels not compared, a folder behind a link left out, links in circles followed, files left out without a word.
"""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sld.evaluation.collections import pictures_in
from sld.evaluation.pictures import PictureError, read_kept, read_pixels

GREY = np.arange(256, dtype=np.uint8).reshape(16, 16)
COLOURS = np.stack([GREY, GREY.T, 255 - GREY], axis=2)


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.bmp", "a.tif", "a.TIFF"])
def test_formats_without_loss_are_the_same_pixels(tmp_path, name):
    Image.fromarray(COLOURS).save(tmp_path / name, **({"lossless": True} if name == "a.webp" else {}))
    assert (read_pixels(tmp_path / name) == COLOURS).all()


@pytest.mark.parametrize("factor", [256, 257])
@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path, name, factor):
    Image.fromarray(GREY.astype(np.uint16) * factor).save(tmp_path / name)
    assert (read_pixels(tmp_path / name) == GREY[..., None]).all()


@pytest.mark.parametrize(
    ("save", "problem"),
    [
        (lambda path: Image.fromarray(GREY.astype(np.float32)).save(path), "numbers of 32 bits"),
        (lambda path: Image.fromarray(GREY.astype(np.int32)).save(path), "numbers of 32 bits"),
        (
            lambda path: Image.fromarray(COLOURS).save(path, save_all=True, append_images=[Image.fromarray(GREY)]),
            "it holds 2 pictures",
        ),
        (lambda path: Image.new("1", (9000, 9000)).save(path, compression="group4"), "9000 x 9000 pixels"),
        (lambda path: path.write_bytes(b"no picture"), "cannot identify"),
    ],
    ids=["floats", "integers", "pages", "enormous", "text"],
)
def test_what_cannot_be_taken_is_named(tmp_path, save, problem):
    path = tmp_path / "a.tif"
    save(path)
    with pytest.raises(PictureError, match=problem) as caught:
        read_pixels(path)
    assert str(caught.value).startswith(f"{path}: ") and caught.value.reason == "unreadable picture"


def test_a_kept_picture_is_the_one_that_was_made(tmp_path):
    path, sha256 = tmp_path / "a.png", hashlib.sha256(COLOURS.tobytes()).hexdigest()
    Image.fromarray(COLOURS).save(path)
    assert (read_kept(path, sha256) == COLOURS).all()
    Image.fromarray(255 - COLOURS).save(path)
    with pytest.raises(PictureError, match=r"a\.png: not the picture that was made"):
        read_kept(path, sha256)
    path.unlink()
    with pytest.raises(PictureError, match=r"a\.png: lost picture"):
        read_kept(path, sha256)


def saved(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(COLOURS).save(path)
    return path


def test_folders_behind_links_are_read_and_circles_end(tmp_path):
    inside, outside = saved(tmp_path / "set" / "b" / "a.png"), saved(tmp_path / "elsewhere" / "c.png")
    (tmp_path / "set" / "link").symlink_to(outside.parent)
    (tmp_path / "set" / "b" / "circle").symlink_to(tmp_path / "set")
    (tmp_path / "linked").symlink_to(tmp_path / "set")
    for folder in ("set", "linked"):
        paths = pictures_in(tmp_path / folder).paths
        assert [path.resolve() for path in paths] == [inside, outside]


def test_files_that_are_left_out_are_counted(tmp_path):
    for name in ("a.png", "b.gif", "c.gif", "d.avif"):
        (tmp_path / name).touch()
    for beside in ("a.json", "a.txt", "._a.png"):
        (tmp_path / beside).touch()
    with pytest.warns(UserWarning, match=r"left out: 1 \.avif, 2 \.gif"):
        assert [path.name for path in pictures_in(tmp_path).paths] == ["a.png"]


def test_sidecars_and_captions_are_left_out_without_a_word(tmp_path):
    for name in ("a.png", "a.json", "a.txt", "._a.png", ".lock"):
        (tmp_path / name).touch()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [path.name for path in pictures_in(tmp_path).paths] == ["a.png"]
