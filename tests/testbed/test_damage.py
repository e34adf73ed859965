"""Deliberately broken pictures: what is done to them, and where they are said to be broken.

Mutants seen to fail here: only one of a pair damaged, the damaged ones alone, cells that differ from one of the two
called broken, a difference of nothing divided by nothing.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import EXACT

from sld.images import to_uint8
from sld.models.vae import VAE
from sld.published import MINI
from sld.testbed.art import icons_path
from sld.testbed.damage import CELL, DAMAGES, Draw, broken_pictures, other, sampled_pictures, whole_pictures
from sld.testbed.scenes import PROPS, Mention, Scene

needs_sprites = pytest.mark.skipif(not icons_path().is_file(), reason="the emoji sprites are not here; see art.py")

SCENES = [Scene("fox", "beach", prop, Mention.NOTHING, seed) for seed, prop in enumerate(("knife", None, "cake"))]


@pytest.fixture(scope="module")
def vae() -> VAE:
    torch.manual_seed(0)
    return VAE(replace(MINI.vae, channels=(8, 8, 8), groups=4)).eval()


def latents(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents in pairs, which differ in one half."""
    a, b = torch.randn(2, count, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    b[..., :8] = a[..., :8]
    return a, b


@needs_sprites
def test_broken_pictures_follow_from_their_seed_and_cells_say_where(vae):
    """Mutant seen to fail: damage drawn from torch's global generator."""
    first, again, other = (broken_pictures(SCENES, vae, seed) for seed in (1, 1, 2))
    assert np.array_equal(first.pictures, again.pictures) and not np.array_equal(first.pictures, other.pictures)
    torch.testing.assert_close(first.cells, again.cells, **EXACT)
    assert first.pictures.shape == (3, 64, 64, 3) and first.cells.shape == (3, 64 // CELL, 64 // CELL)
    assert set(first.cells.unique().tolist()) <= {0.0, 0.5, 1.0}


@needs_sprites
def test_a_picture_that_went_through_the_autoencoder_is_whole_in_every_cell(vae):
    whole = whole_pictures(SCENES, vae, 0.2, seed=1)
    assert len(whole) == len(SCENES) and not whole.cells.any()
    both = whole + broken_pictures(SCENES, vae, 1)
    assert len(both) == len(both.cells) == 2 * len(SCENES)


def test_pictures_of_a_model_count_as_whole_and_come_back_damaged(vae):
    a, b = latents(4)
    first, again, other = (sampled_pictures(a, b, vae, seed) for seed in (1, 1, 2))
    with torch.no_grad():
        made = to_uint8(vae.decoder(torch.cat([a, b])))
    assert len(first) == len(first.cells) == 16
    assert np.array_equal(first.pictures[:8], made) and not first.cells[:8].any()
    assert all((damaged != whole).any() for damaged, whole in zip(first.pictures[8:], made, strict=True))
    assert np.array_equal(first.pictures, again.pictures) and not np.array_equal(first.pictures[8:], other.pictures[8:])
    torch.testing.assert_close(first.cells, again.cells, **EXACT)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damage_is_finite_and_leaves_its_latents_alone_even_where_a_pair_is_equal(damage):
    (a,), (b,) = latents(1)
    kept = a.clone(), b.clone()
    damaged, equal = (damage(a, other, Draw(torch.Generator().manual_seed(3))) for other in (b, a))
    assert damaged.shape == a.shape and damaged.isfinite().all() and equal.isfinite().all()
    assert not torch.equal(damaged, a) and not torch.equal(damaged, b)
    torch.testing.assert_close((a, b), kept, **EXACT)


def test_a_cell_is_broken_where_it_looks_as_in_neither_of_the_two(vae, monkeypatch):
    """Where it looks as in one of them, it is whole."""
    a, b = (torch.full((1, 3, 64, 64), level) for level in (-0.5, 0.5))
    damaged = a.clone()
    damaged[..., :32] = b[..., :32]
    damaged[..., :8, 40:48] = 0.0
    damaged[..., 56:, 40:48] = -0.4
    monkeypatch.setattr("sld.testbed.damage._decoded", lambda z, vae: to_uint8(z))
    monkeypatch.setattr("sld.testbed.damage.DAMAGES", (lambda x, y, draw: damaged[0],))
    cells = sampled_pictures(a, b, vae, 1).cells[2]
    assert cells[0, 5] == 1 and cells[7, 5] == 0.5
    assert (cells == 0).sum() == 62


def test_another_scene_differs_in_subject_or_prop_alone():
    rng = np.random.default_rng(0)
    scenes = [Scene("fox", "beach", prop, Mention.PROP if prop else Mention.NOTHING, 3) for prop in ("knife", None)]
    changed = [(scene, other(scene, rng)) for scene in scenes * 100]
    for before, after in changed:
        assert (before.subject == after.subject) != (before.prop == after.prop)
        assert (before.place, before.seed) == (after.place, after.seed)
    assert {after.prop for before, after in changed if before.prop == "knife"} == {None, *PROPS}
