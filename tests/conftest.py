"""How close is close: the tolerances of the whole suite, by name. One thread for all of it."""

from __future__ import annotations

import os
from typing import Any

# Read when torch is imported, here and in processes that tests start. The number of threads changes bits, and tensors
# as small as these take longer on two, the more so where the cores have other work. Tests on more threads ask for them.
os.environ["OMP_NUM_THREADS"] = "1"
# Where they do, threads that wait for each other leave the core to the other worker's tests.
os.environ["OMP_WAIT_POLICY"] = "passive"

# Keywords of torch.testing.assert_close.
EXACT: dict[str, Any] = {"rtol": 0, "atol": 0, "equal_nan": True}  # same arithmetic, same bits
ALGORITHM: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-12}  # same algorithm in float64
NETWORK: dict[str, Any] = {}  # same network in float32: assert_close's defaults
HALF: dict[str, Any] = {"rtol": 1e-2, "atol": 1e-2}  # same network in half precision
