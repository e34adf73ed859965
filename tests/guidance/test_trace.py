"""Traces: they change nothing, and say of a run what plain loops over its elements say."""

import csv
import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from conftest import ALGORITHM, EXACT
from guided import concept_rows
from torch._dynamo.testing import CompileCounterWithBackend
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

import sld
from sld.guidance import (
    APG,
    COMBINATIONS,
    MAX,
    OFF,
    SEGA,
    STRONG,
    WEAK,
    ClassifierFreeGuidance,
    Composed,
    Concept,
    DynamicNegativeGuidance,
    Negative,
    PerpNeg,
    Predictions,
    Rescale,
    SafeLatentConcepts,
    SafeLatentGuidance,
    SLDConfig,
    Unguided,
    guidance_for,
    safety_mask,
)
from sld.guidance.readings import clamp_as_printed, printed_mask
from sld.guidance.rules import READINGS
from sld.guidance.trace import EVERYWHERE, NOBODY, QUANTILES, Measures, Trace, Traced, driver
from sld.samplers import Estimate, make_sampler
from sld.state import SampleState

STEPS = 8
SOFT = SLDConfig(
    safety_scale=1.0, threshold=0.3, momentum_scale=0.4, momentum_beta=0.6, warmup_steps=3, guidance_scale=5.0
)
CONCEPTS = tuple(
    Concept(text=text, safety_scale=1.0, threshold=0.3, warmup_steps=n) for text, n in (("a", 2), ("b", 5))
)
RULES = {
    "cfg": ClassifierFreeGuidance(),
    **{f"sld, {name}": SafeLatentGuidance(SOFT, reading=reading) for name, reading in READINGS.items()},
    "sld, per image": SafeLatentGuidance((OFF, MAX)),
    **{name: SafeLatentConcepts(CONCEPTS, name) for name in COMBINATIONS},
    "sega": SEGA.safety("strong", ["a", "b"]),
    "perp-neg": PerpNeg((Negative(text="a"),)),
    "dynamic": DynamicNegativeGuidance("a"),
    "composed": Composed(SafeLatentGuidance(SOFT), (Rescale(), APG()), begin=0.2, end=0.8),
}


def predictions(rule, steps: int = STEPS, seed: int = 0):
    """The network's rows (r * 2, c, h, w), as the pipeline hands them over."""
    made = concept_rows(len(rule.conditions) - 2, steps=steps, seed=seed)
    return [torch.cat([e.uncond, e.text, *e.concepts]) for e in made]


def run(rule, rows):
    """Guided predictions (steps, b, c, h, w) and the last state."""
    x = rows[0][:2]
    state, guided = rule.init(x), []
    params = rule.params(len(rows), 2, dtype=x.dtype)
    for i, predicted in enumerate(rows):
        eps_hat, state = rule(rule.split(predicted, 2), state, torch.tensor(i), params)
        guided.append(eps_hat)
    return torch.stack(guided), state


def trace_of(rule, rows, regions=None):
    traced = Traced(rule, len(rows), regions or {})
    return traced.taken(run(traced, rows)[1])


# --- nothing changes


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_traced_rule_predicts_what_the_rule_predicts_bit_for_bit(rule):
    """Killed by: the prediction without a warm-up handed out, the state without a warm-up kept."""
    rows = predictions(rule)
    alone, state = run(rule, rows)
    guided, traced = run(Traced(rule, STEPS), rows)
    assert_close(guided, alone, **EXACT)
    assert_close(traced.rule, state, **EXACT)


@pytest.fixture(scope="module")
def pipe():
    return sld.load()


@pytest.mark.parametrize("safety", ["off", "weak", "strong"])
def test_latents_are_the_same_with_and_without_a_trace(pipe, safety):
    rule = guidance_for(safety)
    settings = {"sampler": make_sampler("pndm", pipe.schedule, 5), "size": 32}
    *_, alone = pipe.sample("a fox in a dark alley", [0, 1], guidance=rule, **settings)
    *_, traced = pipe.sample("a fox in a dark alley", [0, 1], guidance=Traced(rule, 6), **settings)
    assert torch.equal(traced.x, alone.x)


@pytest.mark.parametrize("name", ["sld, code", "select", "composed"])
def test_a_run_saved_half_way_goes_on_with_its_trace(pipe, name, tmp_path):
    """Killed by: a state that begins anew when it is loaded."""
    sampler = make_sampler("ddim", pipe.schedule, 4)
    traced = Traced(RULES[name], 4, {"left": torch.eye(8)})
    settings = {"sampler": sampler, "guidance": traced, "size": 32}
    states = list(pipe.sample("a fox", [0, 1], **settings))
    states[2].save(tmp_path / "state.safetensors")
    loaded, _ = SampleState.load(tmp_path / "state.safetensors", traced, sampler)
    *_, last = pipe.sample("a fox", [0, 1], state=loaded, **settings)
    assert torch.equal(last.x, states[-1].x)
    assert_close(last.guidance, states[-1].guidance, **EXACT)
    assert_close(states[2].guidance.trace.would[:2], states[-1].guidance.trace.would[:2], **EXACT)
    assert states[2].guidance.trace.would[2:].isnan().all()


@pytest.mark.parametrize("name", ["sld, code", "select", "sega", "composed"])
def test_a_traced_step_compiles_in_one_piece_and_once(pipe, name):
    """Killed by: a branch on i."""
    traced = Traced(RULES[name], STEPS, {"left": torch.eye(4)})
    sampler = make_sampler("ddim", pipe.schedule, STEPS)
    rows = [r.float() for r in predictions(traced)]
    params = traced.params(STEPS, 2)
    counter = CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()

    def step(i, x, predicted, state, after):
        eps_hat, state = traced(traced.split(predicted, len(x)), state, i, params)
        x, after = sampler.step(i, x, Estimate(eps_hat, eps_hat, x - eps_hat), after)
        return x, state, after

    ends = []
    for f in (step, torch.compile(step, backend=counter, fullgraph=True)):
        x = torch.ones(2, 4, 4, 4)
        state, after = traced.init(x), sampler.init(x)
        for i in range(STEPS):
            x, state, after = f(torch.tensor(i), x, rows[i], state, after)
        ends.append((x, state))
    assert counter.frame_count == 1
    assert_close(ends[1], ends[0])


class NoNumbers(TorchDispatchMode):
    """Refuses to hand a tensor's number to Python, for which a device would have to be waited for."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func is not torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["sld, code", "select", "sega", "composed"])
def test_a_traced_step_waits_for_no_number(name):
    """Killed by: a Python number taken from i."""
    traced, i = Traced(RULES[name], STEPS, {"left": torch.eye(4)}), torch.tensor(4)
    rows = predictions(traced)[0]
    state, params = traced.init(rows[:2]), traced.params(STEPS, 2, dtype=torch.float64)
    with NoNumbers():
        traced(traced.split(rows, 2), state, i, params)


# --- what is measured


def weighted_quantile(values, weights, q):
    """The least value that a share q of the weight does not exceed."""
    order = sorted(range(len(values)), key=lambda k: values[k])
    below = 0.0
    for k in order:
        below += weights[k]
        if below >= q * sum(weights) - 1e-12:
            return values[k]
    raise AssertionError


def norm(a, weights):
    """Root of the weighted mean over places of the sum over channels, of one image's (c, h, w)."""
    c, h, w = a.shape
    total = sum(weights[y, x] * a[k, y, x] ** 2 for k, y, x in product(range(c), range(h), range(w)))
    return math.sqrt(total / weights.sum())


def test_the_measures_of_a_run_equal_loops_over_its_elements():
    """Killed by: gamma not divided by s_g, the warm-up ignored in `applied` or kept in `would`, weights not normalised,
    regions swapped, mu >= 0 for mu > 0, the gap turned around, the next value taken for a quantile, momentum from
    before the step, the state without a warm-up kept.
    """
    c, rows = SOFT, predictions(RULES["sld, code"], seed=3)
    generator = torch.Generator().manual_seed(1)
    regions = {"left": torch.eye(4), "own": torch.rand(2, 4, 4, generator=generator)}
    weights = np.stack([np.ones((2, 4, 4)), np.stack([np.eye(4)] * 2), regions["own"].numpy()]).astype(float)
    m = trace_of(RULES["sld, code"], rows, regions).measures
    nu = np.zeros((2, 4, 4, 4))
    for i, predicted in enumerate(rows):
        e0, ep, es = predicted.chunk(3)
        gap, d, g = (ep - es).numpy(), (ep - e0).numpy(), (es - e0).numpy()
        mu = np.where(gap < c.threshold, np.minimum(1, np.abs(c.safety_scale * gap)), 0)
        gamma = mu * g + c.momentum_scale * nu
        nu = c.momentum_beta * nu + (1 - c.momentum_beta) * gamma
        acts = gamma * (i >= c.warmup_steps)
        for b, n in product(range(2), range(3)):
            w = weights[n, b]
            per_element = np.broadcast_to(w, (4, 4, 4))
            share = {
                "active": (mu[b] > 0, m.active[i, b, n, 0]),
                "saturated": (mu[b] == 1, m.saturated[i, b, n, 0]),
            }
            for which, value in share.values():
                assert float(value) == pytest.approx((which * per_element).sum() / per_element.sum(), rel=1e-12)
            size = norm(d[b], w)
            assert float(m.would[i, b, n]) == pytest.approx(norm(gamma[b], w) / size, rel=1e-12)
            assert float(m.applied[i, b, n]) == pytest.approx(norm(acts[b], w) / size, rel=1e-12)
            assert float(m.nu[i, b, n]) == pytest.approx(norm(nu[b], w), rel=1e-12)
            cosine = (gamma[b] * d[b] * w).sum() / w.sum() / (norm(gamma[b], w) * size)
            assert float(m.cosine[i, b, n]) == pytest.approx(cosine, abs=1e-12)
            for k, q in enumerate(QUANTILES):
                expected = weighted_quantile(gap[b].ravel().tolist(), per_element.ravel().tolist(), q)
                assert float(m.gap[i, b, n, 0, k]) == expected
        assert_close(m.would_map[i].numpy(), np.sqrt((gamma**2).sum(1)), **ALGORITHM)
        assert_close(m.applied_map[i].numpy(), np.sqrt((acts**2).sum(1)), **ALGORITHM)


@pytest.mark.parametrize("config", [SOFT, WEAK, STRONG])
def test_what_the_warmup_holds_back_is_told_apart_from_what_acts(config):
    """Killed by: parameters that keep their warm-up where it should be ended."""
    m = trace_of(SafeLatentGuidance(replace(config, warmup_steps=3)), predictions(RULES["sld, code"])).measures
    assert not m.applied[:3].any() and not m.applied_map[:3].any()
    assert (m.would[:3] > 0).all()
    assert_close(m.applied[3:], m.would[3:], **EXACT)


def test_concepts_that_are_past_their_warmup_act_before_the_others():
    m = trace_of(RULES["sum"], predictions(RULES["sum"])).measures
    acts, would = m.applied[:, 0, 0], m.would[:, 0, 0]
    assert (acts == 0).tolist() == [True] * 2 + [False] * 6  # the first alone from i = 2 on
    assert (acts == would).tolist() == [False] * 5 + [True] * 3


@pytest.mark.parametrize("reading", READINGS)
def test_the_mask_of_every_reading_is_read_off_to_the_bit(reading):
    """Killed by: rows of which e_S - e_0 is not 1, gamma folded with the run's own beta."""
    rule = SafeLatentGuidance((SOFT, STRONG), reading=READINGS[reading])
    rows, params = rule.split(predictions(rule)[0].float(), 2), rule.params(STEPS, 2)
    own = printed_mask if READINGS[reading] is clamp_as_printed else safety_mask
    (mu,) = rule.masks(rows, params)
    assert_close(mu, own(rows, params), **EXACT)
    assert 0 < (mu > 0).float().mean() < 1


def test_a_rule_without_masks_has_no_shares():
    m = trace_of(RULES["perp-neg"], predictions(RULES["perp-neg"])).measures
    assert m.active.isnan().all() and m.saturated.isnan().all()
    assert (m.applied > 0).all()


def test_sega_keeps_the_share_that_its_quantile_leaves():
    rule = SEGA.safety("max", ["a"])  # lambda 0.75, of 16 elements of a channel
    assert (trace_of(rule, predictions(rule)).measures.active == 0.25).all()


def test_plain_guidance_takes_nothing_off():
    m = trace_of(RULES["cfg"], predictions(RULES["cfg"])).measures
    assert not m.would.any() and not m.cosine.any() and not m.nu.any()
    assert (m.driver == NOBODY).all()
    assert m.gap.shape == (STEPS, 2, 1, 0, 5)


def test_the_driver_is_the_concept_that_was_selected():
    """Killed by: the least aligned taken, index 0 given to places where nothing acts, terms without their mask."""
    rule = SafeLatentConcepts(CONCEPTS, "select", momentum_scale=0.0)
    rows = predictions(rule)
    m, settled = trace_of(rule, rows).measures, 0
    params = [concept.config(0.0, 0.0, 7.5).params(STEPS, dtype=torch.float64) for concept in CONCEPTS]
    for i, predicted in enumerate(rows):
        e0, ep, *concepts = predicted.chunk(4)
        masks = [safety_mask(Predictions(e0, ep, e), p) for e, p in zip(concepts, params, strict=True)]
        for b in range(2):
            d = (ep - e0)[b].flatten()
            scores = [float((e - e0)[b].flatten() @ d / (e - e0)[b].norm()) for e in concepts]
            best = scores.index(max(scores))
            expected = torch.where(masks[best][b].any(0), best, NOBODY)
            # where a mask leaves a single element, terms are parallel and nothing tells who it was
            clear = torch.stack([(mu[b] > 0).sum(0) != 1 for mu in masks]).all(0)
            assert torch.equal(m.driver[i, b].long()[clear], expected[clear])
            settled += int(clear.sum())
    assert settled > 100


def test_the_driver_is_whom_the_sum_points_to():
    a, b = torch.zeros(1, 2, 1, 3), torch.zeros(1, 2, 1, 3)
    a[0, 0, 0] = torch.tensor([3.0, 1.0, 0.0])
    b[0, 1, 0] = torch.tensor([1.0, 3.0, 0.0])
    assert driver(a + b, [a, b]).tolist() == [[[0, 1, NOBODY]]]
    assert driver(-a - b, [a, b]).tolist() == [[[0, 1, NOBODY]]]  # towards or away


def test_conflicts_are_the_cosines_of_the_directions():
    """Killed by: directions measured from the text's prediction, one length for all images."""
    rows = predictions(RULES["sum"])
    m = trace_of(RULES["sum"], rows).measures
    for i, b in product(range(STEPS), range(2)):
        e0, *others = (e[b].flatten().tolist() for e in rows[i].chunk(4))
        directions = [[x - y for x, y in zip(e, e0, strict=True)] for e in others]
        for j, k in product(range(3), range(3)):
            dot = sum(x * y for x, y in zip(directions[j], directions[k], strict=True))
            size = math.hypot(*directions[j]) * math.hypot(*directions[k])
            assert float(m.conflict[i, b, j, k]) == pytest.approx(dot / size, abs=1e-12)


def test_an_image_has_the_same_trace_in_any_batch():
    rule, rows = RULES["select"], predictions(RULES["select"])
    together = trace_of(rule, rows).measures
    traced = Traced(rule, STEPS)
    for b in range(2):
        x = rows[0][:1]
        state, params = traced.init(x), traced.params(STEPS, 1, dtype=x.dtype)
        for i, predicted in enumerate(rows):
            _, state = traced(traced.split(predicted[b::2], 1), state, i, params)
        for name, value in state.trace._asdict().items():
            assert_close(value[:, 0], getattr(together, name)[:, b], **ALGORITHM, equal_nan=True)


# --- the trace as a value


def test_a_saved_trace_is_read_back(tmp_path):
    trace = trace_of(RULES["select"], predictions(RULES["select"]), {"left": torch.eye(4)})
    trace.save(tmp_path / "trace.safetensors", {"prompt": "a fox"})
    again, about = Trace.load(tmp_path / "trace.safetensors")
    assert_close(again.measures, trace.measures, **EXACT)
    assert (again.regions, again.concepts) == ((EVERYWHERE, "left"), ("a", "b"))
    assert about == {"prompt": "a fox"}
    assert [path.name for path in tmp_path.iterdir()] == ["trace.safetensors"]


def test_a_file_of_something_else_is_no_trace(tmp_path):
    (tmp_path / "text").write_text("no")
    with pytest.raises(ValueError, match="not a saved trace"):
        Trace.load(tmp_path / "text")
    trace = trace_of(RULES["cfg"], predictions(RULES["cfg"]))
    torch.save(trace.measures, tmp_path / "pickle")
    with pytest.raises(ValueError, match="not a saved trace"):
        Trace.load(tmp_path / "pickle")


def test_a_table_has_a_row_for_every_number_that_was_measured(tmp_path):
    """Killed by: region and concept swapped, unmeasured steps written, a cosine of another pair."""
    rule, rows = RULES["select"], predictions(RULES["select"])
    traced = Traced(rule, STEPS, {"left": torch.eye(4)})
    state, params = traced.init(rows[0][:2]), traced.params(STEPS, 2, dtype=torch.float64)
    for i in range(3):  # of 8
        _, state = traced(traced.split(rows[i], 2), state, i, params)
    trace = traced.taken(state)
    trace.write_csv(tmp_path / "trace.csv")
    table = list(csv.DictReader((tmp_path / "trace.csv").open()))
    of_region, of_concept, of_pairs = 4, 2 + len(QUANTILES), 1 + 2
    assert len(table) == 3 * 2 * (2 * (of_region + 2 * of_concept) + of_pairs)
    chosen = {"evaluation": "2", "image": "1", "region": "left", "concept": "b", "measure": "gap q0.75"}
    (row,) = [row for row in table if chosen.items() <= row.items()]
    assert float(row["value"]) == float(trace.measures.gap[2, 1, 1, 1, 3])
    chosen = {"evaluation": "1", "image": "0", "region": "left", "concept": "b", "measure": "active"}
    (row,) = [row for row in table if chosen.items() <= row.items()]
    assert float(row["value"]) == float(trace.measures.active[1, 0, 1, 1])
    chosen = {"evaluation": "0", "image": "0", "concept": "b", "measure": "cosine with a"}
    (row,) = [row for row in table if chosen.items() <= row.items()]
    assert float(row["value"]) == float(trace.measures.conflict[0, 0, 1, 2])


def test_a_concept_in_a_table_is_no_formula(tmp_path):
    """Mutant: texts written as they are."""
    trace = replace(trace_of(RULES["select"], predictions(RULES["select"])), concepts=("=1+1", "a\nb"))
    trace.write_csv(tmp_path / "trace.csv")
    with (tmp_path / "trace.csv").open(newline="") as file:
        assert {row["concept"] for row in csv.DictReader(file)} >= {"'=1+1", "a b"}


def test_every_measure_has_its_number_of_axes_in_order():
    m = trace_of(RULES["select"], predictions(RULES["select"]), {"left": torch.eye(4)}).measures
    shapes = {"active": (2, 2), "saturated": (2, 2), "gap": (2, 2, 5), "conflict": (3, 3)}
    shapes |= dict.fromkeys(("would", "applied", "cosine", "nu"), (2,))
    shapes |= dict.fromkeys(("would_map", "applied_map", "driver"), (4, 4))
    assert {name: tuple(value.shape) for name, value in m._asdict().items()} == {
        name: (STEPS, 2, *shapes[name]) for name in Measures._fields
    }


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Traced(Unguided(), 5), "no guidance to trace"),
        (lambda: Traced(RULES["cfg"], 5, {EVERYWHERE: torch.ones(4, 4)}), "there already"),
        (lambda: Traced(RULES["cfg"], 5, {"a": torch.zeros(4, 4)}), "not all 0"),
        (lambda: Traced(RULES["cfg"], 5, {"a": -torch.ones(4, 4)}), "weights >= 0"),
        (lambda: Traced(RULES["cfg"], 5, {"a": torch.ones(4)}), "must be"),
        (lambda: Traced(RULES["cfg"], 5).params(6, 1), "made for 5 evaluations, the run has 6"),
        (lambda: Traced(RULES["cfg"], 5, {"a": torch.ones(2, 4, 4)}).params(5, 3), "for 2 images, the batch has 3"),
        (lambda: Traced(RULES["cfg"], 5, {"a": torch.ones(4, 4)}).init(torch.ones(1, 4, 8, 8)), "the latents are"),
    ],
)
def test_what_cannot_be_traced_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
