"""Networks around weights that they share with others, or that are elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


def around(network: M, weight: Callable[[Tensor], Tensor]) -> M:
    """The same network around other weights: what `weight` makes of each parameter and buffer. The network stays."""
    made = {id(w): weight(w) for w in (*network.parameters(), *network.buffers())}
    return deepcopy(network, made)


def twin(network: M) -> M:
    """A copy of the network whose weights are those of the original, in the same memory."""
    return around(network, lambda weight: weight)


def on_device(network: M, device: torch.device) -> M:
    """The network itself where its weights are on `device`; else the same around copies there, which go with it."""
    if all(w.device == device for w in network.parameters()):
        return network
    return around(network, lambda w: nn.Parameter(w.to(device), False) if isinstance(w, nn.Parameter) else w.to(device))
