"""A saved state is read as it was written, or refused.

Mutants seen to fail here: the checksum not compared; a checksum of the tensors without the header.
"""

import random

import pytest
import torch
from conftest import EXACT

import sld
from sld.guidance import guidance_for
from sld.published import MINI
from sld.samplers import Schedule, make_sampler
from sld.state import SampleState

GUIDANCE = guidance_for("strong")
SAMPLER = make_sampler("pndm", Schedule.from_config(MINI.schedule), 10)


@pytest.fixture
def saved(tmp_path):
    x = torch.randn((2, 4, 4, 4), generator=torch.Generator().manual_seed(0))
    state = SampleState(3, x, GUIDANCE.init(x), SAMPLER.init(x), torch.empty(2, 0, dtype=torch.uint8))
    state.save(tmp_path / "state.safetensors", about={"prompt": "a fox"})
    return tmp_path / "state.safetensors", state


def test_a_state_is_read_as_it_was_written(saved):
    path, state = saved
    read, about = SampleState.load(path, GUIDANCE, SAMPLER)
    assert (read.i, about) == (3, {"prompt": "a fox"})
    torch.testing.assert_close((read.x, *read.sampler), (state.x, *state.sampler), **EXACT)


def test_a_file_with_any_byte_changed_is_refused_by_its_name(saved):
    path, state = saved
    whole, dice = path.read_bytes(), random.Random(0)
    for k in [*range(40), *dice.sample(range(len(whole)), 200)]:
        path.write_bytes(whole[:k] + bytes([whole[k] ^ (1 << dice.randrange(8))]) + whole[k + 1 :])
        try:
            read, about = SampleState.load(path, GUIDANCE, SAMPLER)
        except ValueError as error:
            assert str(path) in str(error)
        else:  # a space in the header
            assert (read.i, about) == (3, {"prompt": "a fox"}) and torch.equal(read.x, state.x)
            assert all(torch.equal(a, b) for a, b in zip(read.sampler, state.sampler, strict=True))
    for cut in (0, 7, 100, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=r"state\.safetensors is"):
            SampleState.load(path, GUIDANCE, SAMPLER)


def test_the_noise_that_a_seed_gives_may_be_given_and_no_step_repeats_it():
    """Seen to fail: the seed's first noise not drawn where other noise takes its place."""
    pipe = sld.load()
    noise = torch.randn((1, 4, 16, 16), generator=torch.Generator().manual_seed(5))
    runs = [
        [*pipe.sample("a fox", 5, sampler=pipe.sampler("euler-ancestral", 2), size=64, noise=given)][-1].x
        for given in (None, noise)
    ]
    assert torch.equal(*runs)
