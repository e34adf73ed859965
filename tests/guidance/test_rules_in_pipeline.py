"""Rules with texts of their own, states that nest, and rows that need not be computed, through a whole pipeline."""

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar, NamedTuple, final

import pytest
import torch
from conftest import EXACT, NETWORK
from torch import Tensor
from torch.testing import assert_close

import sld
from sld.guidance import (
    APG,
    MAX,
    SEGA,
    ClassifierFreeGuidance,
    Composed,
    DynamicNegativeGuidance,
    Guidance,
    Negative,
    NoParams,
    PerpNeg,
    Rescale,
    SafeLatentConcepts,
    SafeLatentGuidance,
    Sparse,
    TextPrediction,
)
from sld.samplers import Level, make_sampler
from sld.speed.rows import Rows
from sld.state import SampleState

PROMPTS, SEEDS, STEPS = ["a fox in a dark alley", "a robot at the beach"], [3, 4], 6
RULES: dict[str, Guidance] = {
    "concepts": SafeLatentConcepts.alike(["a knife", "blood"], MAX, "select"),
    "sega": SEGA.safety("max", ["a knife", "blood"]),
    "perp-neg": PerpNeg((Negative(text="a knife"), Negative(text="blood"))),
    "dynamic": DynamicNegativeGuidance("a knife", prior=0.5, temperature=0.01),
    "sparse": Sparse(SafeLatentConcepts.alike(["a knife", "blood"], MAX)),
}
TAMED = Composed(RULES["concepts"], (Rescale(0.5), APG(0.2, 30.0, 0.5)), begin=0.2, end=0.8)


@pytest.fixture(scope="module")
def pipe():
    return sld.load()


def states(pipe, rule: Guidance, eta: float = 0.0, **kwargs) -> list[SampleState]:
    sampler = make_sampler("ddim", pipe.schedule, STEPS, eta=eta)
    return list(pipe.sample(PROMPTS, SEEDS, sampler=sampler, guidance=rule, size=32, **kwargs))


@pytest.mark.parametrize("name", RULES)
def test_a_rule_words_its_own_conditions(pipe, name: str):
    """Another text, another picture; the pipeline's own concept plays no part."""
    x = states(pipe, RULES[name])[-1].x
    assert_close(states(pipe, RULES[name], concept="the moon")[-1].x, x, **EXACT)
    assert not torch.equal(states(pipe, ClassifierFreeGuidance(7.5))[-1].x, x)


def test_one_concept_in_words_is_sld_with_that_concept(pipe):
    """Killed by: the pipeline's concept for the rule's own text."""
    one = SafeLatentConcepts.alike(["a knife"], MAX)
    guided = states(pipe, one)[-1].x
    assert_close(guided, states(pipe, SafeLatentGuidance(MAX), concept="a knife")[-1].x, **EXACT)


@pytest.mark.parametrize("rule", [*RULES.values(), TAMED], ids=[*RULES, "tamed"])
def test_a_saved_state_goes_on_bit_for_bit(pipe, rule: Guidance, tmp_path):
    eta = 1.0 if rule is RULES["dynamic"] else 0.0
    whole = states(pipe, rule, eta)
    whole[3].save(tmp_path / "state.safetensors")
    loaded, _ = SampleState.load(tmp_path / "state.safetensors", rule, make_sampler("ddim", pipe.schedule, STEPS))
    assert_close(states(pipe, rule, eta, state=loaded)[-1].x, whole[-1].x, **EXACT)


def test_outside_its_interval_a_rule_costs_one_row(pipe):
    """Of 6 evaluations, 2 to 4 lie in [0.2, 0.8)."""
    fast = replace(pipe, numerics="fast")
    assert fast.network_rows(TAMED, STEPS, batch=2) == Rows(4 * 2 * STEPS, 4 * 2 * 3 + 2 * 3)
    # rounding differs, which the masks amplify to 1e-4
    assert_close(states(fast, TAMED)[-1].x, states(pipe, TAMED)[-1].x, rtol=0, atol=1e-3)


def test_the_posterior_follows_where_the_sampler_goes(pipe):
    """Before the first move nothing is known, and the last step ends the chain. Killed by: no move told."""
    run = states(pipe, DynamicNegativeGuidance("a knife", prior=0.5), eta=1.0)
    posterior = torch.stack([state.guidance.log_ratio for state in run])
    assert not posterior[0].any()
    assert posterior[1:].all()
    assert_close(posterior[-1], posterior[-2], **EXACT)


class Seen(NamedTuple):
    """What the pipeline last told a rule: the text's prediction as guided and as noise, latents, their levels."""

    guided: Tensor
    noise: Tensor
    x: Tensor
    y: Tensor
    a: Level
    b: Level


@final
@dataclass(frozen=True)
class Watching(Guidance[TextPrediction, Seen, NoParams]):
    """Follows the text and remembers what it is told."""

    rows_type: ClassVar[type[NamedTuple]] = TextPrediction

    def params(self, steps, batch, device=None, dtype=torch.float32):
        return NoParams()

    def init(self, x):
        nothing = Level(torch.zeros(()), torch.zeros(()))
        return Seen(x, x, x, x, nothing, nothing)

    def __call__(self, rows, state, i, params):
        return rows.text, state._replace(guided=rows.text)

    def moved(self, rows, state, i, x, y, a, b, params):
        return Seen(state.guided, rows.text, x, y, a, b)


@pytest.mark.parametrize("space", ["raw", "eps"])
@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_a_rule_is_told_every_move_in_terms_of_noise(pipe, prediction: str, space: str):
    """Killed by: the network's output in place of the noise, latents or levels swapped, alpha_bar for the signal."""
    schedule = replace(pipe.schedule, prediction=prediction)
    timesteps = make_sampler("ddim", schedule, STEPS).timesteps
    run = states(replace(pipe, schedule=schedule), Watching(), space=space)
    for i, (before, after) in enumerate(pairwise(run)):
        seen = after.guidance
        assert_close((seen.x, seen.y), (before.x, after.x), **EXACT)
        noise = (
            seen.guided
            if space == "eps"
            else schedule.estimate(seen.guided, before.x, schedule.level(timesteps[i])).eps
        )
        assert_close(seen.noise, noise, **NETWORK)
        levels = [schedule.level(int(t)) for t in (timesteps[i], timesteps[min(i + 1, STEPS - 1)])]
        assert_close([seen.a, seen.b], levels, **NETWORK)
