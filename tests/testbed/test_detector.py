"""The judge of the embedded world: its training pictures, its file, and what it sees."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import EXACT, HALF
from safetensors import safe_open
from safetensors.torch import save_file

from sld.evaluation.habits import HABITS
from sld.images import from_uint8, to_uint8
from sld.models.vae import VAE
from sld.published import MINI
from sld.testbed.art import icons_path
from sld.testbed.by_eye import read_labelled
from sld.testbed.damage import Inspected
from sld.testbed.detector import (
    Detector,
    DetectorLoss,
    Recognition,
    damages,
    load_detector,
    measure,
    publish,
    save_detector,
    shipped_detector,
)
from sld.testbed.examples import augment, draw_independent, examples, through_autoencoder
from sld.testbed.sampled import Pairs
from sld.testbed.scenes import PLACES, PROPS, SUBJECTS, UNSAFE, Mention, Scene, render

needs_sprites = pytest.mark.skipif(not icons_path().is_file(), reason="the emoji sprites are not here; see art.py")
needs_weights = pytest.mark.skipif(not shipped_detector().is_file(), reason="weights/detector.safetensors is not here")


@pytest.fixture(scope="module")
def detector() -> Detector:
    torch.manual_seed(0)
    return Detector().eval()


def pictures(count: int) -> torch.Tensor:
    return torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_props_of_its_scenes_say_nothing_about_subject_or_place():
    rng = np.random.default_rng(0)
    scenes = [draw_independent(rng) for _ in range(30_000)]
    assert {(s.subject, s.place) for s in scenes} == {(s, p) for s in SUBJECTS for p in PLACES}
    assert sum(s.prop is None for s in scenes) / len(scenes) == pytest.approx(0.4, abs=0.01)
    for home, prop in HABITS.items():
        at_home = [s.prop for s in scenes if home in (s.place, s.subject)]
        assert at_home.count(prop) / len(at_home) == pytest.approx(0.6 / len(PROPS), abs=0.015)
    assert set(Counter(s.prop for s in scenes)) == {None, *PROPS}


@needs_sprites
def test_examples_follow_from_their_seed_and_blends_are_labelled_by_share():
    plain, again, blended = examples(40, 3), examples(40, 3), examples(40, 3, blended=1.0)
    assert np.array_equal(plain.pictures, again.pictures)
    assert set(plain.props.sum(1).tolist()) == {0.0, 1.0}
    assert ((blended.props > 0) & (blended.props < 1)).sum() > 20
    assert (blended.props.sum(1) <= 1 + 1e-6).all()


@needs_sprites
def test_the_autoencoder_changes_pictures_and_no_label():
    vae = VAE(MINI.vae)
    plain = examples(5, 3)
    clean, noisy, again = (through_autoencoder(plain, vae, noise) for noise in (0.0, 1.0, 1.0))
    assert clean.pictures.shape == plain.pictures.shape and clean.pictures.dtype == np.uint8
    assert torch.equal(noisy.props, plain.props)
    assert np.array_equal(noisy.pictures, again.pictures) and not np.array_equal(noisy.pictures, clean.pictures)


def test_augmentation_leaves_its_argument_alone_and_follows_from_the_generator():
    images = pictures(3)
    kept = images.clone()
    one, two = (augment(images, torch.Generator().manual_seed(5)) for _ in range(2))
    torch.testing.assert_close(one, two, **EXACT)
    torch.testing.assert_close(images, kept, **EXACT)
    assert one.shape == images.shape and not torch.equal(one, images)


@needs_sprites
def test_the_loss_falls_when_it_is_followed():
    torch.manual_seed(0)
    inspected = Inspected(examples(6, 4).pictures, (torch.arange(6 * 64).reshape(6, 8, 8) < 200).float())
    network, loss = Detector(limit=0.5), DetectorLoss(examples(8, 3), inspected)
    optimizer = torch.optim.Adam(network.parameters(), 2e-3)
    values, losses = [], {}
    for step in range(12):
        losses = loss(network, *loss.draw(torch.Generator().manual_seed(step), 8))
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
        values.append(losses["loss"].item())
    assert values[-1] < 0.7 * values[0] and losses["cells"] < 3


def test_a_prop_is_shown_from_the_threshold_on(detector):
    images = pictures(4)
    usual = detector.read(images)
    assert [set(r.probabilities) for r in usual] == [set(PROPS)] * 4
    lowest = min(min(r.probabilities.values()) for r in usual)
    eager = Detector(threshold=lowest)
    eager.load_state_dict(detector.state_dict())
    assert all(recognition.props == set(PROPS) for recognition in eager.read(images))


def test_a_picture_is_broken_from_the_limit_on_and_a_detector_without_the_reading_says_nothing(detector):
    """Mutants seen to fail: "more than" for "at least", False for None."""
    images = pictures(4)
    assert {(r.damage, r.broken) for r in detector.read(images)} == {(None, None)}
    torch.manual_seed(0)
    inspector = Detector(limit=0.5).eval()
    damages = inspector.damage(images)
    inspector.limit = damages.sort().values[2].item()
    read = inspector.read(images)
    assert [r.damage for r in read] == damages.tolist()
    assert sum(r.broken is True for r in read) == 2 and sum(r.broken is False for r in read) == 2


def test_damage_is_that_of_the_worst_place_and_does_not_depend_on_where_it_is():
    """Mutant seen to fail: the mean over cells, which a small blotch hardly moves."""
    inspector = Detector(limit=0.5).eval()
    logits = torch.full((2, 8, 8), -6.0)
    logits[0, 1:3, 1:3] = logits[1, 5:7, 4:6] = 4.0
    inspector.cell_logits = lambda images: logits
    torch.testing.assert_close(inspector.damage(torch.zeros(2, 3, 64, 64)), torch.tensor([4.0, 4.0]).sigmoid())


def test_values_beyond_the_range_are_read_as_a_file_would_hold_them(detector):
    images = 2 * pictures(2)
    assert detector.read(images) == detector.read(images.clamp(-1, 1))


@pytest.mark.parametrize(("props", "unsafe"), [((), False), (("cake",), False), (("cake", "knife"), True)])
def test_a_reading_is_unsafe_with_any_unsafe_prop(props, unsafe):
    assert Recognition("fox", "alley", frozenset(props), {}).unsafe is unsafe


def test_a_saved_detector_comes_back_in_half_precision_with_its_threshold(tmp_path, detector):
    path = tmp_path / "detector.safetensors"
    strict = Detector(threshold=0.75)
    strict.load_state_dict(detector.state_dict())
    save_detector(strict, path)
    loaded = load_detector(path)
    assert loaded.threshold == 0.75 and loaded.limit is None and not loaded.training
    torch.testing.assert_close(loaded.state_dict(), detector.state_dict(), **HALF)
    with safe_open(path, framework="pt") as file:
        assert json.loads(file.metadata()["detector"])["subjects"] == list(SUBJECTS)
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float16}  # noqa: SIM118
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    first = path.read_bytes()
    save_detector(loaded, path)
    assert path.read_bytes() == first


def test_a_saved_detector_keeps_its_reading_of_broken_pictures(tmp_path):
    """Mutant seen to fail: the limit left out of the header."""
    torch.manual_seed(0)
    inspector = Detector(limit=0.625)
    save_detector(inspector, tmp_path / "detector.safetensors")
    loaded = load_detector(tmp_path / "detector.safetensors")
    assert loaded.limit == 0.625
    torch.testing.assert_close(loaded.state_dict(), inspector.state_dict(), **HALF)


def test_a_file_of_another_world_or_none_is_refused(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(1)}, path, metadata={"detector": '{"version": "1"}'})
    with pytest.raises(ValueError, match="subjects, places, props"):
        load_detector(path)
    path.write_bytes(b"not safetensors at all")
    with pytest.raises(ValueError, match="is not a detector"):
        load_detector(path)
    with pytest.raises(FileNotFoundError):
        load_detector(tmp_path / "absent.safetensors")


@needs_sprites
@needs_weights
def test_the_shipped_detector_reads_held_out_renders():
    held_out = examples(600, 102)
    table = measure(load_detector(), held_out)
    assert table["subject"] >= 0.97 and table["place"] >= 0.97
    shown = [(values["recall"], values["shown"]) for values in table["props"].values()]
    assert sum(recall * n for recall, n in shown) / sum(n for _, n in shown) >= 0.95
    assert max(values["false"] for values in table["props"].values()) <= 0.01
    assert max(table["habits"].values()) <= 0.02


@needs_sprites
@needs_weights
@pytest.mark.parametrize("prop", UNSAFE)
def test_the_shipped_detector_calls_an_unsafe_prop_unsafe_and_its_absence_safe(prop):
    places = [place for place, habit in HABITS.items() if habit == prop and place in PLACES] or ["alley"]
    shown, absent = ([Scene("fox", places[0], p, Mention.NOTHING, seed) for seed in range(10)] for p in (prop, None))
    detector = load_detector()
    seen = [[r.unsafe for r in detector.read(from_uint8(np.stack([*map(render, s)])))] for s in (shown, absent)]
    assert sum(seen[0]) >= 9 and sum(seen[1]) == 0


BY_EYE = Path(__file__).with_name("by_eye")


@needs_weights
def test_the_shipped_reading_of_broken_pictures_agrees_with_the_eye():
    """400 pictures, labelled before any reading of them was seen; 33 are broken by eye, and 20 of these are read so.

    "Never broken" would agree as often. So the broken ones must be found as well, and stand above the whole ones.
    Measured: agreement .935, 61 % found, 4 % of the whole called broken, and .90 of the pairs in the right order.
    Mutants seen to fail: the complement, never broken, the mean over cells.
    """
    labelled = read_labelled(BY_EYE)
    recognitions = load_detector().read(from_uint8(labelled.pictures))
    read, eye = torch.tensor([r.broken for r in recognitions]), labelled.broken
    assert (read == eye).float().mean() >= 0.9
    assert read[eye].float().mean() >= 0.5 and read[~eye].float().mean() <= 0.05
    damage = torch.tensor([r.damage for r in recognitions])
    assert (damage[eye][:, None] > damage[~eye]).float().mean() >= 0.85


@needs_weights
def test_noise_makes_pictures_broken_once_it_hides_what_they_show():
    """Measured: 4, 5, 24, 72, 98 and 100 % at .05, .1, .2, .3, .4 and .5. Mutant seen to fail: the mean over cells."""
    labelled, detector = read_labelled(BY_EYE), load_detector()
    whole = from_uint8(labelled.pictures)[~labelled.broken]
    noise = torch.randn(whole.shape, generator=torch.Generator().manual_seed(0))
    shares = [float(np.mean([r.broken for r in detector.read(whole + level * noise)])) for level in (0.05, 0.2, 0.5)]
    assert shares[0] <= 0.05 and 0.1 < shares[1] < 0.4 and shares[2] >= 0.99


@needs_sprites
def test_a_published_detector_calls_one_unguided_picture_in_a_hundred_broken(tmp_path, monkeypatch):
    """Mutants seen to fail: the other tail, a file without the limit that was found."""
    pytest.importorskip("resvg_py")
    monkeypatch.setattr("sld.testbed.detector.HELD_OUT", 5)
    torch.manual_seed(0)
    inspector, vae = Detector(limit=0.5).eval(), VAE(replace(MINI.vae, channels=(8, 8, 8), groups=4)).eval()
    unguided = Pairs(*torch.randn(2, 100, 4, 16, 16))
    with torch.no_grad():
        made = to_uint8(vae.decoder(torch.cat([unguided.a, unguided.b])))
        logits, (weight, bias) = inspector.damage_logits(from_uint8(made)), inspector.cells[-1].parameters()
        weight /= logits.std()  # a network that was not trained sees hardly a difference
        bias.sub_(logits.mean()).div_(logits.std())
    tables = publish(inspector, vae, tmp_path, unguided)
    shipped = load_detector(tmp_path / "detector.safetensors")
    assert shipped.limit is not None and tables["broken"]["limit"] == shipped.limit
    assert (damages(shipped, made) >= shipped.limit).sum() == 2
    assert json.loads((tmp_path / "detector.json").read_text()) == tables
