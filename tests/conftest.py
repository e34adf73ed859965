"""How close is close: the tolerances of the whole suite, by name."""

from __future__ import annotations

from typing import Any

# Keywords of torch.testing.assert_close.
EXACT: dict[str, Any] = {"rtol": 0, "atol": 0, "equal_nan": True}  # same arithmetic, same bits
ALGORITHM: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-12}  # same algorithm in float64
NETWORK: dict[str, Any] = {}  # same network in float32: assert_close's defaults
HALF: dict[str, Any] = {"rtol": 1e-2, "atol": 1e-2}  # same network in half precision
