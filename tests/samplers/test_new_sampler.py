"""The sampler that CONTRIBUTING.md shows works as it stands there.

Mutants of the example that failed here: the weight 1/2 from the beginning, the extrapolated eps remembered, the levels
of x and of where it goes exchanged.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from chains import chain, network, normal, schedule
from conftest import ALGORITHM, EXACT
from documents import ROOT, examples
from torch.testing import assert_close

import sld
from sld import config
from sld.samplers import DDIM, leading, make_sampler


@pytest.fixture
def ab2(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The class, installed as the recipe says: a module, and a line of `SAMPLERS`."""
    code, line = examples(ROOT / "CONTRIBUTING.md", "A new sampler")
    assert len(code.splitlines()) <= 50
    module = ModuleType("sld.samplers.ab2")
    exec(compile(code, "CONTRIBUTING.md", "exec", dont_inherit=True), module.__dict__)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for name, entry in eval(f"{{{line}}}", {"SamplerEntry": config.SamplerEntry}).items():
        monkeypatch.setitem(config.SAMPLERS, name, entry)
    return module.__dict__["AB2"]


def test_its_chain_is_that_of_plain_loops(ab2):
    process = schedule(torch.float64)
    sampler, x = ab2.leading(process, 10), normal(0, torch.float64)
    made = chain(sampler, x)

    path, before = [float(a) for a in process.path(sampler.timesteps)], None
    for i, t in enumerate(sampler.timesteps):
        a, b, now = path[i], path[i + 1], network(x, t)
        eps = now if before is None else 1.5 * now - 0.5 * before
        x0 = (x - (1 - a) ** 0.5 * eps) / a**0.5
        x, before = b**0.5 * x0 + (1 - b) ** 0.5 * eps, now
        assert_close(made[i], x, **ALGORITHM)


def test_its_first_step_is_that_of_ddim(ab2):
    process, x = schedule(), normal(0)
    assert_close(chain(ab2.leading(process, 10), x)[0], chain(DDIM.leading(process, 10), x)[0], **EXACT)


def test_it_makes_a_picture_by_its_name(ab2):
    pipe = sld.load()
    sampler = make_sampler("ab2", pipe.schedule, 6)
    assert isinstance(sampler, ab2) and sampler.timesteps == leading(pipe.schedule, 6)

    (picture,) = pipe("a fox in a dark alley", sampler="ab2", steps=6, size=32)
    (other,) = pipe("a fox in a dark alley", sampler="ddim", steps=6, size=32)

    assert picture.size == (32, 32) and picture.tobytes() != other.tobytes()
