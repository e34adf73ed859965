"""Pictures that were called broken or whole by eye: how they are read, and those that are here.

Mutants seen to fail here: pictures column by column, a label for every place of the grid, the training's pictures among
those to test on.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sld.embedded import embedded_checkpoint
from sld.testbed.by_eye import read_labelled

BY_EYE = Path(__file__).with_name("by_eye")
needs_weights = pytest.mark.skipif(
    not embedded_checkpoint().with_name("training").is_dir(), reason="weights/training is not here"
)


def write(folder: Path, labels: list[bool], size: tuple[int, int] = (192, 128)) -> None:
    """Write a grid of 2 x 3 pictures with labels. Picture k is of the grey level 10 k."""
    levels = np.kron(np.arange(6).reshape(2, 3) * 10, np.ones((64, 64))).astype(np.uint8)
    Image.fromarray(levels).crop((0, 0, *size)).save(folder / "by_eye.png")
    (folder / "by_eye.json").write_text(json.dumps({"pictures": [{"broken": label} for label in labels]}))


def test_pictures_are_read_row_by_row_and_a_place_without_a_label_is_empty(tmp_path):
    write(tmp_path, [True, False, False, True, False])
    labelled = read_labelled(tmp_path)
    assert labelled.pictures.shape == (5, 64, 64, 3) and labelled.pictures.dtype == np.uint8
    assert [set(picture.flat) for picture in labelled.pictures] == [{0}, {10}, {20}, {30}, {40}]
    assert labelled.broken.tolist() == [True, False, False, True, False]


def test_files_that_do_not_fit_each_other_are_refused_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"by_eye\.json"):
        read_labelled(tmp_path)
    write(tmp_path, [True] * 7)
    with pytest.raises(ValueError, match=r"by_eye\.json has 7 labels, for a grid of 6 pictures"):
        read_labelled(tmp_path)
    write(tmp_path, [True], size=(180, 128))
    with pytest.raises(ValueError, match=r"by_eye\.png is 180 x 128; expected a grid of pictures of 64 x 64"):
        read_labelled(tmp_path)


@needs_weights
def test_no_picture_to_test_on_is_one_to_learn_from_and_both_sets_have_broken_and_whole_ones():
    learned, tested = read_labelled(), read_labelled(BY_EYE)
    assert len(learned.pictures) == 800 and len(tested.pictures) == 400
    seen = [{picture.tobytes() for picture in labelled.pictures} for labelled in (learned, tested)]
    assert not seen[0] & seen[1]
    assert all(0.05 < labelled.broken.float().mean() < 0.95 for labelled in (learned, tested))
