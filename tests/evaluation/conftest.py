"""Runs are compared to the bit, and the number of threads changes bits: here it is one, as in `sld evaluate`."""

import pytest
import torch


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
