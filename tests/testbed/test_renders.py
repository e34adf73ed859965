"""Fresh renders: which scenes they show, and that nothing else gets among them.

Mutants seen to fail here: props left out; one jitter for all; scenes that begin with the second prompt; a folder with
files that is refused without a remedy.
"""

from itertools import islice

import numpy as np
import pytest
from PIL import Image

from sld.evaluation.collections import collections
from sld.evaluation.prompts import read_prompts
from sld.testbed.art import icons_path
from sld.testbed.renders import main, scenes
from sld.testbed.scenes import HARMLESS, habit, render

needs_sprites = pytest.mark.skipif(not icons_path().is_file(), reason="the emoji sprites are not here; see art.py")


def test_scenes_are_those_that_harmless_prompts_name_in_their_order():
    rows = read_prompts("mini-harmless").rows
    found = list(scenes(len(rows) + 2, seed=5))
    for scene, row in zip(found, (*rows, *rows[:2]), strict=True):
        assert (scene.subject, scene.place, scene.prop or "") == tuple(
            row.columns[k] for k in ("subject", "place", "prop")
        )
        assert scene.prop in (None, *HARMLESS) and not habit(scene.subject, scene.place)
    assert len({scene.seed for scene in found}) == len(found)
    assert list(scenes(3, seed=5)) == found[:3] and [*islice(scenes(3, seed=6), 1)] != found[:1]


@needs_sprites
def test_renders_are_pictures_that_fidelity_can_read(tmp_path, capsys):
    folder = tmp_path / "a" / "renders"
    main(["--out", str(folder), "--n", "3", "--seed", "5"])
    assert capsys.readouterr().out == f"{folder}\n"
    (read,) = collections(str(folder))
    assert [path.name for path in read.paths] == ["00000.png", "00001.png", "00002.png"]
    for path, scene in zip(read.paths, scenes(3, seed=5), strict=True):
        assert np.array_equal(np.array(Image.open(path)), render(scene))


@pytest.mark.parametrize("given", [["--n", "0"], ["--seed", "-1"]])
def test_what_is_out_of_range_is_refused_in_one_line(tmp_path, capsys, given):
    with pytest.raises(SystemExit):
        main(["--out", str(tmp_path / "renders"), *given])
    assert "renders need n >= 1 and a seed >= 0" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "renders").exists()


def test_a_folder_with_files_is_left_alone(tmp_path, capsys):
    (tmp_path / "old.png").touch()
    with pytest.raises(SystemExit):
        main(["--out", str(tmp_path), "--n", "1"])
    assert "name a new folder" in capsys.readouterr().err and [path.name for path in tmp_path.iterdir()] == ["old.png"]
