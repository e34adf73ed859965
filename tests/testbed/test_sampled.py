"""Pairs of the diffusion model's pictures: what differs in a pair, and how processes share them.

Mutants seen to fail here: noise of its own for the second picture, latents left scaled, one seed for all processes,
shares sampled again.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import EXACT

import sld
from sld.embedded import embedded_checkpoint
from sld.pipeline import Pipeline
from sld.testbed import sampled
from sld.testbed.fit import fingerprint
from sld.testbed.sampled import Pairs, sample_pairs, shared_pairs

pytestmark = pytest.mark.skipif(not embedded_checkpoint().is_file(), reason="weights/mini.safetensors is not here")


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return sld.load(numerics="fast")


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    # the first of two steps is at t = 501; one alone would be at t = 1, where the model heeds no caption
    monkeypatch.setattr(sampled, "_SAMPLERS", (("ddim", 2),))
    monkeypatch.setattr(sampled, "_BATCH", 2)


def test_pairs_follow_from_their_seed_and_no_two_have_the_same_noise(pipe):
    first, again, other = (sample_pairs(pipe, 3, seed) for seed in (5, 5, 6))
    assert first.a.shape == first.b.shape == (3, 4, 16, 16)
    for x, y in ((first.a, again.a), (first.b, again.b)):
        torch.testing.assert_close(x, y, **EXACT)
    assert len(torch.cat([first.a, other.a]).unique(dim=0)) == 6


def test_a_pair_has_one_noise_and_differs_where_its_captions_do(pipe, monkeypatch):
    subjects = iter(["fox", "owl", "fox", "clown"])  # of a whole batch, and then of their partners
    monkeypatch.setattr(sampled, "draw_caption", lambda scene, rng: next(subjects))
    pairs = sample_pairs(pipe, 2, 5)
    torch.testing.assert_close(pairs.a[0], pairs.b[0])
    assert (pairs.a[1] - pairs.b[1]).abs().max() > 0.1


def test_partners_are_scenes_with_one_other_sprite_and_latents_are_unscaled(pipe, monkeypatch):
    asked, scenes = [], []

    def sample(pipe, texts, seeds, **settings):
        asked.append((texts, seeds))
        yield SimpleNamespace(x=torch.full((len(texts), 4, 16, 16), 3.0))

    def caption(scene, rng):
        scenes.append(scene)
        return scene.subject

    monkeypatch.setattr(sampled, "draw_caption", caption)
    monkeypatch.setattr(Pipeline, "sample", sample)
    config = replace(pipe.config, vae=replace(pipe.config.vae, scaling=0.5))
    pairs = sample_pairs(replace(pipe, config=config), 2, 5)
    (_, seeds), (_, same) = asked
    assert seeds == same and len(set(seeds)) == 2
    for one, other in zip(scenes[:2], scenes[2:], strict=True):
        assert (one.subject == other.subject) != (one.prop == other.prop)
        assert replace(one, subject="fox", prop=None, mention=other.mention) == replace(other, subject="fox", prop=None)
    assert pairs.a.unique().tolist() == pairs.b.unique().tolist() == [6.0]


def test_pairs_are_parted_in_their_order():
    pairs = Pairs(torch.arange(5), torch.arange(5) + 10)
    first, rest = pairs.split(2)
    assert [x.tolist() for x in (first.a, first.b, rest.a, rest.b)] == [[0, 1], [10, 11], [2, 3, 4], [12, 13, 14]]


class Group:
    """Two processes in one: the first waits at the barrier until the second was there."""

    def __init__(self, folder: Path, pipe: Pipeline) -> None:
        self.folder, self.pipe, self.rank = folder, pipe, 0
        self.seen: list[Pairs] = []

    def get_rank(self) -> int:
        return self.rank

    def get_world_size(self) -> int:
        return 2

    def barrier(self) -> None:
        if self.rank == 0:
            self.rank = 1
            self.seen.append(shared_pairs(self.pipe, 4, 5, self.folder))

    def run(self) -> tuple[Pairs, Pairs]:
        """Return what the two processes get."""
        self.rank = 0
        first = shared_pairs(self.pipe, 4, 5, self.folder)
        return first, self.seen.pop()


def test_processes_share_the_pairs_and_what_is_on_disk_is_not_sampled_again(pipe, tmp_path, monkeypatch):
    group = Group(tmp_path, pipe)
    monkeypatch.setattr(sampled, "dist", group)
    first, second = group.run()
    assert len(first.a) == len(first.b) == len(first.a.unique(dim=0)) == 4
    monkeypatch.setattr(sampled, "sample_pairs", lambda *asked: pytest.fail("sampled again"))
    for pairs in (second, *group.run()):
        torch.testing.assert_close(pairs.a, first.a, **EXACT)
        torch.testing.assert_close(pairs.b, first.b, **EXACT)
    named = f"sampled-{fingerprint(pipe.unet)}"
    assert {path.name for path in tmp_path.iterdir()} == {f"{named}-0-of-2.pt", f"{named}-1-of-2.pt"}


def test_pairs_of_another_model_are_sampled_anew(pipe, tmp_path, monkeypatch):
    """Mutant seen to fail: files that do not name the model."""
    group = Group(tmp_path, pipe)
    monkeypatch.setattr(sampled, "dist", group)
    first, _ = group.run()
    unet = copy.deepcopy(pipe.unet)
    with torch.no_grad():
        unet.conv_out.weight.mul_(1.1)
    trained = Group(tmp_path, replace(pipe, unet=unet))
    monkeypatch.setattr(sampled, "dist", trained)
    further, _ = trained.run()
    assert not torch.equal(further.a, first.a)
