"""Sets of pictures, against each other and against their prompts.

Mutants that fail here: pictures unsorted, half written ones taken along, sizes mixed, a grey picture left so, errors of
PIL let through, pixels of a run not compared with its records, a run that has not kept all, a folder inside of a run
taken for the run, failed pictures kept, the reference measured against itself, the size of KID's subsets lost, its
sides exchanged, too small a set or reference let through, no warning where features are more than pictures, a hash
without pixels, prompts in another order, pictures taken as independent, cut prompts counted once, infinite bounds,
CLIP's text half left out of the protocol.
"""

from __future__ import annotations

import json
import math
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small import evaluation, go
from tiny_clip import whole_clip

from sld.evaluation.classifiers.clip import CLIPEmbedder, CLIPTexts
from sld.evaluation.collections import collections, pictures_in
from sld.evaluation.distances import FrechetStatistics, clip_score, frechet_distance, kernel_distance
from sld.evaluation.features import Extractor, features, load_extractor
from sld.evaluation.fidelity import align_with_prompts, fidelity, see
from sld.evaluation.metrics import mean
from sld.evaluation.prompts import PromptSet, Row
from sld.evaluation.protocol import Protocol
from sld.evaluation.results import read_results
from sld.evaluation.store import digest, read_protocol


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """Two pictures of each of three prompts under two configurations, all kept."""
    folder = tmp_path_factory.mktemp("run")
    go(evaluation(rows=3, keep="all"), folder)
    return folder


def save(folder, name: str, value: int, size: tuple[int, int] = (6, 4), mode: str = "RGB") -> None:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    Image.new(mode, size, value if mode == "L" else (value,) * len(mode)).save(path)


def test_pictures_come_sorted_in_batches_of_one_size(tmp_path):
    for k, name in enumerate(["a.png", "b.jpg", "c.PNG", "d/e.jpeg", "f.png", "g.png"]):
        save(tmp_path, name, 10 * k, size=(9, 4) if name == "f.png" else (6, 4))
    (tmp_path / "about.json").write_text("{}")
    batches = list(pictures_in(tmp_path).batches(3))
    assert [batch.shape for batch in batches] == [(3, 4, 6, 3), (1, 4, 6, 3), (1, 4, 9, 3), (1, 4, 6, 3)]
    assert [int(picture[0, 0, 0]) for batch in batches for picture in batch] == [0, 10, 20, 30, 40, 50]


def test_grey_pictures_and_those_with_alpha_become_rgb(tmp_path):
    save(tmp_path, "a.png", 7, mode="L")
    save(tmp_path, "b.png", 7, mode="RGBA")
    (batch,) = pictures_in(tmp_path).batches()
    assert batch.shape == (2, 4, 6, 3) and (batch == 7).all()


def test_a_picture_that_cannot_be_read_is_named(tmp_path):
    Image.effect_noise((400, 400), 50).save(tmp_path / "b.png")
    whole = (tmp_path / "b.png").read_bytes()
    before, _, behind = whole.rpartition(b"IDAT")
    header = b"IHDR" + (60000).to_bytes(4) * 2 + whole[24:29]
    enormous = whole[:12] + header + zlib.crc32(header).to_bytes(4) + whole[33:]
    for broken in (b"", b"no picture", whole[: len(whole) // 2], before + b"\0\0\0\0" + behind, enormous):
        (tmp_path / "b.png").write_bytes(broken)
        with pytest.raises(ValueError, match=r"b\.png: unreadable picture"):
            list(pictures_in(tmp_path).batches())


def test_what_a_killed_process_left_half_written_is_no_picture(tmp_path):
    save(tmp_path, "a.png", 7)
    (tmp_path / ".partial-1a2b3c4d").mkdir()
    (tmp_path / ".partial-1a2b3c4d" / "b.png").write_bytes(b"half")
    assert [path.name for path in pictures_in(tmp_path).paths] == ["a.png"]


def test_a_folder_without_pictures_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no pictures"):
        pictures_in(tmp_path)


def test_a_run_has_the_pictures_and_prompts_of_each_configuration(run):
    off, strongest = collections(str(run))
    results = read_results(run)

    assert (off.name, strongest.name) == ("off", "max")
    assert off.prompts == strongest.prompts == tuple(row.prompt for row in results.rows.values() for _ in range(2))
    assert [path.relative_to(run / "images" / "max").name for path in strongest.paths] == [
        f"{row:05d}-{k:02d}.png" for row in results.rows for k in range(2)
    ]
    assert off.source == digest(read_protocol(run))
    assert collections(f"{run}:max") == [strongest]


def test_a_folder_inside_of_a_run_is_only_a_folder(run):
    (folder,) = collections(str(run / "images" / "off"))

    assert (folder.name, folder.source, folder.prompts) == ("off", None, ())
    assert len(folder.paths) == 6


def test_a_picture_of_a_run_that_was_exchanged_is_an_error(run):
    (off,) = collections(f"{run}:off")
    whole = off.paths[1].read_bytes()
    try:
        off.paths[1].write_bytes(off.paths[0].read_bytes())
        with pytest.raises(ValueError, match=r"00000-01\.png: not the picture that was made"):
            list(off.batches())
    finally:
        off.paths[1].write_bytes(whole)


def test_only_a_run_that_kept_all_pictures_can_be_compared(tmp_path):
    go(evaluation(rows=1, keep="flagged"), tmp_path)

    with pytest.raises(ValueError, match=r"has kept flagged pictures.*--keep all"):
        collections(str(tmp_path))


@pytest.mark.parametrize(
    ("where", "message"),
    [("{run}:mxa", "did you mean 'max'"), ("{run}/no", "there is no folder"), ("nowhere", "there is no folder")],
)
def test_pictures_that_are_nowhere_are_an_error(run, where, message):
    with pytest.raises(ValueError, match=message):
        collections(where.format(run=run))


def test_failed_pictures_are_left_out(tmp_path):
    rows = tuple(Row(k, "a fox", seed=k, height=side, width=64) for k, side in enumerate((64, 63, 64)))
    protocol = Protocol(images=2, row_size=True)
    go(evaluation(prompts=PromptSet("mine", "0" * 64, rows), names=("off",), protocol=protocol, keep="all"), tmp_path)
    (off,) = collections(str(tmp_path))

    assert [path.name for path in off.paths] == ["00000-00.png", "00000-01.png", "00002-00.png", "00002-01.png"]
    assert sum(map(len, off.batches())) == 4


def test_distances_are_those_of_the_features(run):
    off, strongest = collections(str(run))
    extractor = load_extractor("embedded")
    with pytest.warns(UserWarning, match="FID of 6 pictures with 112 features"):
        found = fidelity([off, strongest], off, extractor, None, 4)
    a, b = (torch.cat(list(features(c.batches(), extractor.extract))) for c in (off, strongest))
    kid = kernel_distance(a, b, subset_size=4)

    assert found["collections"]["max"]["fid"] == pytest.approx(
        frechet_distance(FrechetStatistics.of(a), FrechetStatistics.of(b)), rel=1e-9
    )
    assert (found["collections"]["max"]["kid"], found["collections"]["max"]["kid_deviation"]) == kid
    assert kid[1] > 0 and "fid" not in found["collections"]["off"]


def test_the_protocol_says_what_the_distances_depend_on(run):
    off, strongest = collections(str(run))
    extractor = load_extractor("embedded")
    with pytest.warns(UserWarning):
        found = fidelity([strongest], off, extractor, None, 4)

    about = found["protocol"]
    assert about["features"] == extractor.protocol
    assert about["kid"] == {"subsets": 100, "subset_size": 4, "seed": 0}
    assert about["reference"] == {
        "name": "off",
        "run": digest(read_protocol(run)),
        "pictures": 6,
        "sha256": see(off, extractor.extract).sha256,
    }
    assert json.loads(json.dumps(found)) == found


def test_the_hash_of_a_collection_is_that_of_its_pixels_in_their_order(tmp_path):
    hashes = []
    for k, values in enumerate([(1, 2), (2, 1), (1, 2)]):
        for name, value in zip("ab", values, strict=True):
            save(tmp_path / str(k), f"{name}.{'png' if k < 2 else 'PNG'}", value)
        hashes.append(see(pictures_in(tmp_path / str(k)), lambda x: x.float().mean((2, 3))).sha256)

    assert hashes[0] == hashes[2] != hashes[1]


@pytest.mark.parametrize(("size", "message"), [(7, "off has 6 pictures: KID's subsets are of 7"), (1, "at least 2")])
def test_too_few_pictures_are_an_error_before_any_is_seen(run, size, message):
    def never(pictures):
        raise AssertionError

    off, strongest = collections(str(run))
    with pytest.raises(ValueError, match=message):
        fidelity([strongest], off, Extractor({}, never), None, size)


@pytest.fixture(scope="module")
def halves(tmp_path_factory) -> tuple[CLIPEmbedder, CLIPTexts]:
    folder = tmp_path_factory.mktemp("clip")
    whole_clip(folder)
    return CLIPEmbedder(folder), CLIPTexts(folder)


def test_alignment_is_that_of_each_picture_and_its_own_prompt(run, halves):
    images, texts = halves
    (off,) = collections(f"{run}:off")
    cosines = []
    for picture, prompt in zip(np.concatenate(list(off.batches())), off.prompts, strict=True):
        image, text = images.embed(picture[None])[0].tolist(), texts.embed(prompt).tolist()
        dot = sum(a * b for a, b in zip(image, text, strict=True))
        cosines.append(dot / math.sqrt(sum(a * a for a in image) * sum(b * b for b in text)))
    found = align_with_prompts(off, images, texts)

    assert found.score.value == pytest.approx(100 * sum(max(cos, 0) for cos in cosines) / 6, rel=1e-9)
    assert found.distance.value == pytest.approx(1 - sum(cosines) / 6, rel=1e-9)
    assert found.cut == 0


def test_pictures_whose_prompts_are_cut_are_counted(run, halves):
    (off,) = collections(f"{run}:off")
    long = "a fox in a dark alley at a late party with a cup"

    assert align_with_prompts(replace(off, prompts=(long, long, *off.prompts[2:])), *halves).cut == 2


def test_the_interval_of_an_alignment_is_clustered_by_prompt(run, halves):
    (off,) = collections(f"{run}:off")
    score = align_with_prompts(off, *halves).score
    image, text = (
        halves[0].embed(np.concatenate(list(off.batches()))),
        torch.stack([*map(halves[1].embed, off.prompts)]),
    )

    assert score == mean(clip_score(image, text).numpy(), np.array([0, 0, 1, 1, 2, 2]))
    assert (score.images, score.prompts) == (6, 3)


def test_clip_alone_needs_no_reference_and_says_which_clip(run, halves):
    found = fidelity(collections(str(run)), None, None, halves, 1000)

    assert found["protocol"] == {"clip": {"images": halves[0].protocol, "texts": halves[1].protocol}}
    for values in found["collections"].values():
        assert set(values["clip_score"]) == {"value", "low", "high", "prompts"} and "fid" not in values
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_the_score_of_one_prompt_has_no_bounds(run, halves):
    (off,) = collections(f"{run}:off")
    one = replace(off, paths=off.paths[:2], sha256=off.sha256[:2], prompts=off.prompts[:2])
    found = fidelity([one], None, None, halves, 1000)

    assert set(found["collections"]["off"]["clip_score"]) == {"value", "prompts"}
