"""A device that cannot compute is refused in one line.

Mutants seen to fail here: a device taken without computing on it; errors of torch passed on.
"""

import pytest
import torch

import sld
from sld.devices import usable


@pytest.mark.parametrize("device", ["nonsense", "cuda:99", "cpu:-2", "mps"])
def test_a_device_that_is_not_here_is_refused_before_a_checkpoint_is_read(device):
    if device == "mps" and torch.backends.mps.is_available():
        pytest.skip("it is here")
    with pytest.raises(ValueError, match=rf"the device '{device}' cannot be used here \(.+\): take cpu") as raised:
        sld.load("there is no such file", device=device)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 300


def test_meta_holds_no_numbers():
    with pytest.raises(ValueError, match="the device 'meta' cannot be used here"):
        usable("meta")


def test_the_cpu_is_usable():
    assert usable("cpu") == usable(torch.device("cpu")) == torch.device("cpu")
