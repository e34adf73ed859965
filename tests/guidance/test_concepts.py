import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from conftest import ALGORITHM, EXACT
from guided import STEPS, concept_rows, contrast, images, one_concept, run, run_each
from torch import Tensor
from torch.testing import assert_close

from sld.guidance import (
    COMBINATIONS,
    MAX,
    PRESETS,
    STRONG,
    WEAK,
    ClassifierFreeGuidance,
    Concept,
    ConceptPredictions,
    SafeLatentConcepts,
    SafeLatentGuidance,
    SLDConfig,
)

# Three concepts that differ in everything, most elements inside the clamp, their warm-ups ending one after another.
SOFT = (
    Concept(text="a", weight=0.7, safety_scale=3.0, threshold=0.3, warmup_steps=5),
    Concept(text="b", weight=1.5, safety_scale=0.8, threshold=1.0, warmup_steps=0),
    Concept(text="c", weight=1.0, safety_scale=200.0, threshold=0.0, warmup_fraction=0.6),
)
WARM = [c.warmup_steps if c.warmup_fraction is None else 12 for c in SOFT]
NAMES = list(COMBINATIONS)


def rule(combination: str, momentum: float = 0.4) -> SafeLatentConcepts:
    return SafeLatentConcepts(SOFT, combination, momentum_scale=momentum, momentum_beta=0.6, guidance_scale=5.0)


# --- the equations, in plain loops over one image


def inner(a: Sequence[float], b: Sequence[float]) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def combined(name: str, mu: list[list[float]], g: list[list[float]], d: list[float], on: list[bool]) -> list[float]:
    places, members = range(len(d)), [k for k in range(len(g)) if on[k]]
    if not members:
        return [0.0] * len(d)
    if name == "select":
        closest = max(members, key=lambda k: inner(g[k], d) / math.sqrt(inner(g[k], g[k])))
        return [mu[closest][n] * g[closest][n] for n in places]
    if name == "maximum":
        return [max((mu[k][n] * g[k][n] for k in members), key=abs) for n in places]
    free = g
    if name == "orthogonalised":
        free = []
        for vector in g:
            left = list(vector)
            for earlier in free:
                along = inner(left, earlier) / inner(earlier, earlier)
                left = [x - along * y for x, y in zip(left, earlier, strict=True)]
            free.append(left)
    return [math.fsum(mu[k][n] * free[k][n] for k in members) for n in places]


def oracle(name: str, steps: list[ConceptPredictions], s_m: float, beta: float, s_g: float) -> list[list[float]]:
    """Guided predictions of one image, from the definitions."""
    nu, guided = [0.0] * steps[0].text.numel(), []
    for i, rows in enumerate(steps):
        e0, ep = rows.uncond.flatten().tolist(), rows.text.flatten().tolist()
        ek = [e.flatten().tolist() for e in rows.concepts]
        d = [b - a for a, b in zip(e0, ep, strict=True)]
        g = [[b - a for a, b in zip(e0, e, strict=True)] for e in ek]
        mu = [
            [c.weight * min(1.0, abs(c.safety_scale * (b - a))) if b - a < c.threshold else 0.0 for a, b in pairs]
            for c, pairs in zip(SOFT, [list(zip(e, ep, strict=True)) for e in ek], strict=True)
        ]
        gamma = [x + s_m * n for x, n in zip(combined(name, mu, g, d, [True] * 3), nu, strict=True)]
        nu = [beta * n + (1 - beta) * x for n, x in zip(nu, gamma, strict=True)]
        warm = [i >= delta for delta in WARM]
        acting = gamma if all(warm) else combined(name, mu, g, d, warm)
        guided.append([a + s_g * (b - x) for a, b, x in zip(e0, d, acting, strict=True)])
    return guided


@pytest.mark.parametrize("name", NAMES)
def test_a_run_equals_the_scalar_oracle(name: str):
    """Killed by: weights ignored, the largest for the strongest, the weakest, the least aligned concept selected, the
    best score forgotten, scores not divided by |g_k| or taken over the whole batch, concepts selected or acting in
    their warm-up, nothing projected off, g_j projected off instead of g_j', > for >= in a warm-up, momentum fed by warm
    concepts alone, applied as soon as one is warm, or always.
    """
    steps = concept_rows(3)
    guided = run(rule(name), steps)
    for k in range(2):
        expected = oracle(name, images(steps, slice(k, k + 1)), 0.4, 0.6, 5.0)
        assert_close(guided[:, k].flatten(1), torch.tensor(expected, dtype=torch.float64), **ALGORITHM)


# --- reductions


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", NAMES)
def test_one_concept_is_sld_bit_for_bit_in_every_combination(name: str, preset: str):
    """CASG of one concept among them."""
    steps = concept_rows(1, dtype=torch.float32)
    one = SafeLatentConcepts.alike(["a"], PRESETS[preset], name)
    expected = run(SafeLatentGuidance(PRESETS[preset]), one_concept(steps))
    assert_close(run(one, steps), expected, **EXACT)


@pytest.mark.parametrize("name", ["maximum", "select", "orthogonalised"])
def test_a_concept_given_twice_is_that_concept_once(name: str):
    """A sum counts it twice. Orthogonalised, the second has nothing left that is its own."""
    steps = [e._replace(concepts=e.concepts * 2) for e in concept_rows(1)]
    once = run(SafeLatentGuidance(STRONG), one_concept(steps))
    assert_close(run(SafeLatentConcepts.alike(["a", "a"], STRONG, name), steps), once, **ALGORITHM)
    assert (run(SafeLatentConcepts.alike(["a", "a"], STRONG, "sum"), steps) - once).abs().max() > 0.1


@pytest.mark.parametrize("name", ["sum", "maximum"])
def test_a_concept_of_weight_zero_is_left_out(name: str):
    steps = concept_rows(2, dtype=torch.float32)
    both = SafeLatentConcepts.alike(["a", "b"], STRONG, name)
    first, second = both.concepts
    left_out = replace(both, concepts=(first, replace(second, weight=0.0)))
    assert_close(run(left_out, steps), run(SafeLatentGuidance(STRONG), one_concept(steps)), **EXACT)


@pytest.mark.parametrize("name", NAMES)
def test_concepts_without_effect_leave_classifier_free_guidance(name: str):
    """Killed by: a division by the length of a direction of zero."""
    steps = [e._replace(concepts=(e.uncond, e.text)) for e in concept_rows(0, dtype=torch.float32)]
    guided = run(SafeLatentConcepts.alike(["", "the prompt"], MAX, name), steps)
    assert_close(guided, run(ClassifierFreeGuidance(7.5), contrast(steps)), **EXACT)


@pytest.mark.parametrize("name", NAMES)
def test_a_concept_acts_from_the_end_of_its_own_warmup(name: str):
    """At the evaluations before the first warm-up ends, plain guidance; each end changes something."""
    later = tuple(
        replace(c, warmup_steps=delta, warmup_fraction=None) for c, delta in zip(SOFT, (3, 6, 9), strict=True)
    )
    steps = concept_rows(3)
    several = SafeLatentConcepts(later, name, guidance_scale=5.0)
    plain = run(ClassifierFreeGuidance(5.0), contrast(steps))
    assert_close(run(several, steps)[:3], plain[:3], **ALGORITHM)
    for k, delta in enumerate((3, 6, 9)):
        longer = replace(several, concepts=(*later[:k], replace(later[k], warmup_steps=delta + 1), *later[k + 1 :]))
        differs = (run(several, steps) != run(longer, steps)).flatten(1).any(dim=1)
        assert differs.nonzero().flatten().tolist() == [delta]


def test_a_concept_in_its_warmup_does_not_act_through_the_momentum():
    steps = concept_rows(2)
    early, late = Concept(text="a", warmup_steps=0), Concept(text="b", warmup_steps=10)
    both = run(SafeLatentConcepts((early, late), momentum_scale=0.5), steps)
    alone = run(SafeLatentConcepts((early,), momentum_scale=0.0), [e._replace(concepts=e.concepts[:1]) for e in steps])
    assert_close(both[:10], alone[:10], **ALGORITHM)
    assert (both[10] - alone[10]).abs().max() > 0.1


# --- the combinations


def test_selection_is_each_images_own():
    rows = concept_rows(2, steps=1)[0]
    d = rows.text - rows.uncond
    near, far = rows.uncond + 0.1 * d, rows.uncond - 9 * d
    first = torch.tensor([True, False])[:, None, None, None]
    rows = rows._replace(concepts=(torch.where(first, near, far), torch.where(first, far, near)))
    config = SLDConfig(
        safety_scale=1e6, threshold=math.inf, momentum_scale=0, momentum_beta=0, warmup_steps=0, guidance_scale=1.0
    )
    guided = run(SafeLatentConcepts.alike(["a", "b"], config, "select"), [rows])
    assert_close(guided[0], rows.text - 0.1 * d, **ALGORITHM)  # mu = 1, the nearer concept in each image


def test_the_first_of_orthogonalised_concepts_keeps_its_direction():
    config = replace(MAX, momentum_scale=0.0, threshold=math.inf, safety_scale=1e9, guidance_scale=1.0)
    (rows,) = concept_rows(2, steps=1)
    ordered = run(SafeLatentConcepts.alike(["a", "b"], config, "orthogonalised"), [rows])
    taken = (rows.text - ordered[0]) - (rows.concepts[0] - rows.uncond)  # what the second concept adds
    along = (taken * (rows.concepts[0] - rows.uncond)).sum(dim=(1, 2, 3))
    assert_close(along, torch.zeros(2, dtype=torch.float64), **ALGORITHM)
    swapped = run(
        SafeLatentConcepts.alike(["b", "a"], config, "orthogonalised"), [rows._replace(concepts=rows.concepts[::-1])]
    )
    assert (swapped - ordered).abs().max() > 0.1


@pytest.mark.parametrize("name", NAMES)
def test_nan_stays_in_its_image(name: str):
    steps = concept_rows(2)
    clean = run(SafeLatentConcepts.alike(["a", "b"], STRONG, name), steps)
    steps[12].concepts[1][0, 1, 2, 3] = math.nan
    touched = run(SafeLatentConcepts.alike(["a", "b"], STRONG, name), steps)
    assert_close(touched[:, 1], clean[:, 1], **EXACT)
    assert_close(touched[:12], clean[:12], **EXACT)
    if name != "select":  # a concept of NaN is not closest
        assert touched[12, 0, 1, 2, 3].isnan()


# --- batches, states, rows


@pytest.mark.parametrize("name", NAMES)
def test_settings_per_image_equal_separate_runs(name: str):
    rules = [SafeLatentConcepts.alike(["a", "b"], config, name) for config in (WEAK, STRONG, MAX)]
    steps = concept_rows(2, batch=3, dtype=torch.float32)
    together = run_each(rules, steps)
    for k, alone in enumerate(rules):
        assert_close(together[:, k : k + 1], run(alone, images(steps, slice(k, k + 1))), **EXACT)


def test_conditions_and_texts_follow_the_concepts():
    several = rule("sum")
    assert several.conditions == ("uncond", "text", "concept 0", "concept 1", "concept 2")
    assert several.texts == {"concept 0": "a", "concept 1": "b", "concept 2": "c"}


def test_predictions_are_split_condition_by_condition():
    """Killed by: uncond and text swapped."""
    (rows,) = concept_rows(3, steps=1)
    split = rule("sum").split(torch.cat([rows.uncond, rows.text, *rows.concepts]), len(rows.text))
    assert_close(split, rows, **EXACT)


@pytest.mark.parametrize("momentum", [0.0, 0.4])
@pytest.mark.parametrize("name", NAMES)
def test_an_idle_row_may_hold_anything(name: str, momentum: float):
    """Killed by: idle although a later concept leans on it, idle although momentum gathers."""
    several, steps = rule(name, momentum), concept_rows(3)
    conditions = several.conditions[2:]
    idle = [several.idle(i, STEPS) for i in range(STEPS)]
    swapped = [
        e._replace(concepts=tuple(e.text if c in out else k for c, k in zip(conditions, e.concepts, strict=True)))
        for e, out in zip(steps, idle, strict=True)
    ]
    assert_close(run(several, swapped), run(several, steps), **EXACT)
    assert any(idle) is (momentum == 0)


def test_a_concept_is_idle_in_its_warmup_unless_another_leans_on_it():
    assert [sorted(rule("sum", 0.0).idle(i, STEPS)) for i in (0, 5, 12)] == [
        ["concept 0", "concept 2"],
        ["concept 2"],
        [],
    ]
    assert rule("orthogonalised", 0.0).idle(0, STEPS) == {"concept 2"}


def test_arguments_are_left_as_they_were():
    several, (rows,) = rule("orthogonalised"), concept_rows(3, steps=1)
    before: list[Tensor] = [row.clone() for row in (rows.uncond, rows.text, *rows.concepts)]
    state = several.init(rows.text)
    several(rows, state, 15, several.params(STEPS, 2, dtype=torch.float64))
    assert all(torch.equal(a, b) for a, b in zip(before, (rows.uncond, rows.text, *rows.concepts), strict=True))
    assert not state.nu.any()


# --- settings


def test_no_concept_is_refused():
    with pytest.raises(ValueError, match="needs at least one concept, got none"):
        SafeLatentConcepts(())


def test_an_unknown_combination_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"no combination 'selct'.*did you mean 'select'"):
        SafeLatentConcepts(SOFT, "selct")


@pytest.mark.parametrize(
    ("field", "value"), [("weight", -1.0), ("weight", math.inf), ("threshold", math.nan), ("warmup_steps", 1.5)]
)
def test_a_value_out_of_range_is_refused_by_name(field: str, value: float):
    with pytest.raises(ValueError, match=f"{field} must be .*; got {value!r}"):
        replace(SOFT[0], **{field: value})
