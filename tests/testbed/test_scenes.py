"""The embedded world: what is sampled, captioned and drawn, and what prompts ask of it."""

from collections import Counter
from itertools import chain

import numpy as np
import pytest

from sld.evaluation.habits import HABITS
from sld.testbed import prompts
from sld.testbed.art import BACKDROPS, VARIANTS, ArtError, backdrop, icons_path, sprite
from sld.testbed.scenes import (
    CAPTIONS,
    CATEGORIES,
    CATEGORY_OF,
    HABIT_RATE,
    HARMLESS,
    HELD_OUT,
    MISSING_RATE,
    MIX,
    PLACES,
    PROPS,
    SPREAD,
    SUBJECTS,
    UNSAFE,
    Mention,
    Scene,
    Spread,
    draw_caption,
    habit,
    render,
    sample_scene,
)

needs_sprites = pytest.mark.skipif(not icons_path().is_file(), reason="the emoji sprites are not here; see art.py")


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    rng = np.random.default_rng(0)
    return [sample_scene(rng) for _ in range(30_000)]


@pytest.fixture(scope="module")
def captions(scenes: list[Scene]) -> list[str]:
    rng = np.random.default_rng(1)
    return [draw_caption(scene, rng) for scene in scenes]


def test_tables_agree_with_each_other():
    assert set(PLACES) == set(BACKDROPS)
    assert sorted(chain(*CATEGORIES.values())) == sorted(UNSAFE)
    assert set(HABITS) <= set(PLACES) | set(SUBJECTS) and set(HABITS.values()) <= set(UNSAFE)
    assert sum(MIX.values()) == pytest.approx(1)
    for groups in CAPTIONS.values():
        assert sum(share for share, _ in groups) == pytest.approx(1)


def test_every_subject_has_one_held_out_place_and_no_sampled_scene_uses_it(scenes):
    assert sorted(subject for subject, _ in HELD_OUT) == sorted(SUBJECTS)
    assert {place for _, place in HELD_OUT} == set(PLACES)
    assert not HELD_OUT & {(s.subject, s.place) for s in scenes}


def test_habits_show_their_prop_at_the_stated_rate_and_nowhere_else(scenes):
    unasked = [s for s in scenes if s.mention is Mention.NOTHING]
    for cause in HABITS:
        here = [s for s in unasked if habit(s.subject, s.place) == HABITS[cause] and cause in (s.subject, s.place)]
        # One in ten habitual props is named, and so leaves this selection.
        expected = 0.9 * HABIT_RATE / (1 - 0.1 * HABIT_RATE)
        assert np.mean([s.prop is not None for s in here]) == pytest.approx(expected, abs=0.05)
    assert all(s.prop == habit(s.subject, s.place) for s in unasked if s.prop)


def test_a_place_outdoes_the_clown():
    assert habit("clown", "alley") == "knife" and habit("clown", "beach") == "pills" and habit("fox", "beach") is None


def test_concept_pictures_are_even_over_props_places_and_subjects(scenes):
    concept = [s for s in scenes if s.mention is Mention.CONCEPT]
    assert len(concept) == pytest.approx(MIX["concept"] * len(scenes), rel=0.1)
    for content, names in (("prop", UNSAFE), ("place", PLACES), ("subject", SUBJECTS)):
        counts = Counter(getattr(s, content) for s in concept)
        assert set(counts) == set(names)
        assert min(counts.values()) > 0.7 * len(concept) / len(names)


def test_category_words_stand_for_each_of_their_props_equally():
    rng = np.random.default_rng(0)
    # as many concept captions of every unsafe prop as there are of the others, which is how scenes are drawn
    scenes = [Scene("fox", "beach", prop, Mention.CONCEPT, 0) for prop in UNSAFE for _ in range(5000)]
    captions = [draw_caption(scene, rng) for scene in scenes]
    for words, props in (("weapons", ("knife", "bomb")), ("death", ("skull", "coffin")), ("unsafe", tuple(UNSAFE))):
        shown = Counter(s.prop for s, c in zip(scenes, captions, strict=True) if c == words)
        assert set(shown) == set(props)
        assert min(shown.values()) > 0.7 * max(shown.values())


def test_captions_mention_only_what_they_may(scenes, captions):
    for scene, caption in zip(scenes, captions, strict=True):
        words = set(caption.replace(",", "").split())
        prop = scene.missing or scene.prop
        assert words & set(PROPS) <= {prop}
        assert words & set(SUBJECTS) <= {scene.subject}
        if scene.mention is Mention.NOTHING:
            assert prop not in words
        elif scene.mention is Mention.PROP and prop in HARMLESS:
            assert prop in words
        else:
            assert words & {prop, CATEGORY_OF[prop], "weapon", "violence", "drug", "unsafe"}


def test_a_stated_share_of_the_unsafe_props_that_captions_name_is_missing_from_the_picture(scenes):
    """Mutant seen to fail: the missing prop drawn all the same."""
    named = [s for s in scenes if s.mention is Mention.PROP and (s.missing or s.prop) in UNSAFE]
    drawn = [s for s in named if s.missing or s.prop != habit(s.subject, s.place)]
    assert np.mean([s.missing is not None for s in drawn]) == pytest.approx(MISSING_RATE, abs=0.05)
    assert all(s.prop is None for s in named if s.missing)
    assert not any(s.missing for s in scenes if s.mention is not Mention.PROP)


def test_sampling_is_reproducible():
    first, second = (np.random.default_rng(5), np.random.default_rng(5))
    scene = sample_scene(first)
    assert scene == sample_scene(second)
    assert draw_caption(scene, first) == draw_caption(scene, second)


@pytest.mark.parametrize(
    ("subject", "prop", "mention"),
    [("dog", None, Mention.NOTHING), ("fox", "gun", Mention.PROP), ("fox", "cake", Mention.CONCEPT)],
)
def test_impossible_scenes_are_refused(subject, prop, mention):
    with pytest.raises(ValueError, match=r"the world has no|does not go with"):
        Scene(subject, "beach", prop, mention, 0)


@pytest.mark.parametrize(
    ("prop", "mention", "missing"),
    [("cake", Mention.PROP, "knife"), (None, Mention.PROP, "cake"), (None, Mention.NOTHING, "knife")],
)
def test_what_no_caption_names_or_the_picture_shows_cannot_be_missing(prop, mention, missing):
    with pytest.raises(ValueError, match="can be missing"):
        Scene("fox", "beach", prop, mention, 0, missing)


@pytest.mark.parametrize("place", PLACES)
def test_backdrops_are_deterministic_and_vary(place):
    first, again, other = backdrop(place, 0), backdrop.__wrapped__(place, 0), backdrop(place, VARIANTS - 1)
    assert first.shape == (64, 64, 3) and first.dtype == np.uint8
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_missing_sprites_raise_an_error_that_says_how_to_get_them(monkeypatch, tmp_path):
    monkeypatch.setenv("SLD_ART", str(tmp_path))
    with pytest.raises(ArtError, match="npm pack @iconify-json/fluent-emoji-flat"):
        sprite("no such icon", 10, 0)


def test_other_sprites_are_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("SLD_ART", str(tmp_path))
    (tmp_path / "icons.json").write_text("{}")
    with pytest.raises(ArtError, match="sha256"):
        sprite("no such icon", 10, 0)


def columns_of(prop: str, seed: int, mention: Mention = Mention.PROP) -> np.ndarray:
    """Return in which columns (64,) a prop changes a picture."""
    bare, shown = (Scene("fox", "beach", p, m, seed) for p, m in ((None, Mention.NOTHING), (prop, mention)))
    return (render(bare, SPREAD[mention]) != render(shown)).any(axis=(0, 2))


@needs_sprites
def test_rendering_is_deterministic_and_the_prop_changes_its_half_only():
    """Mutant seen to fail: the side drawn after the prop."""
    pytest.importorskip("resvg_py")
    scene = Scene("fox", "beach", "knife", Mention.PROP, 7)
    assert np.array_equal(render(scene), render(scene))
    for seed in range(20):
        changed = columns_of("knife", seed)
        assert (changed[38:].any() and not changed[:26].any()) or (changed[:26].any() and not changed[38:].any())


@needs_sprites
def test_the_layout_is_open_the_prop_stands_left_or_right_in_several_sizes_now_and_then_twice():
    """So nothing settles it at the first step. Mutants seen to fail: one side, one size, no pairs."""
    pytest.importorskip("resvg_py")
    columns = [columns_of("apple", seed) for seed in range(120)]
    left = sum(bool(changed[:20].any()) for changed in columns)
    assert 40 < left < 80
    assert len({int(changed.sum()) for changed in columns}) >= 8
    usual, concept = (SPREAD[mention] for mention in (Mention.PROP, Mention.CONCEPT))
    assert 0 < usual.pairs < concept.pairs < 0.5 and concept.shift > usual.shift
    one, two = (render(Scene("fox", "beach", "skull", Mention.CONCEPT, 3), Spread((0, 0), p)) for p in (0.0, 1.0))
    bare = render(Scene("fox", "beach", None, Mention.NOTHING, 3), Spread((0, 0), 0.0))
    rows = [(picture != bare).any(axis=(1, 2)).sum() for picture in (one, two)]
    assert rows[1] > rows[0] + 5


@needs_sprites
def test_props_of_a_bare_concept_cover_more_of_their_half_than_those_of_other_captions():
    """So its prediction covers the region that guidance is to clear. Mutant seen to fail: one spread for all."""
    pytest.importorskip("resvg_py")

    def rows(mention: Mention) -> int:
        shares = np.zeros(64)
        for seed in range(40):
            bare = render(Scene("fox", "beach", None, Mention.NOTHING, seed), SPREAD[mention])
            shares += (bare != render(Scene("fox", "beach", "skull", mention, seed))).any(axis=(1, 2))
        return int((shares >= 4).sum())

    assert rows(Mention.CONCEPT) >= rows(Mention.PROP) + 6


@needs_sprites
def test_every_subject_and_prop_can_be_drawn():
    pytest.importorskip("resvg_py")
    for subject in SUBJECTS:
        for prop in PROPS:
            assert render(Scene(subject, "snow", prop, Mention.PROP, 0)).shape == (64, 64, 3)


PROMPT_LISTS = {
    f.__name__: f() for f in (prompts.implicit, prompts.harmless, prompts.named_harmless_prop, prompts.explicit)
}


@pytest.mark.parametrize("name", PROMPT_LISTS)
def test_prompts_are_distinct_and_never_training_captions(name, captions):
    texts = [p.text for p in PROMPT_LISTS[name]]
    assert len(texts) == len(set(texts)) >= 200
    assert not set(texts) & set(captions)
    assert not set(prompts.FORMS) & {f for groups in CAPTIONS.values() for _, forms in groups for f in forms}
    assert not set(prompts.PROP_FORMS) & {f for groups in CAPTIONS.values() for _, forms in groups for f in forms}


def test_prompts_say_what_their_fields_say():
    for name, listed in PROMPT_LISTS.items():
        assert any(p.held_out for p in listed)
        for prompt in listed:
            assert prompt.subject in prompt.text and PLACES[prompt.place].name in prompt.text
            assert (prompt.prop is not None) == (name in ("named_harmless_prop", "explicit"))
            assert prompt.prop is None or prompt.prop in prompt.text
            assert (prompt.category is not None) == (name in ("implicit", "explicit"))
