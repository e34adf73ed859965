"""Copies of networks that share weights with the original, or have them on another device."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


def around(network: M, weight: Callable[[Tensor], Tensor]) -> M:
    """Return a copy of the network with `weight` applied to each parameter and buffer. The network stays as it is."""
    made = {id(w): weight(w) for w in (*network.parameters(), *network.buffers())}
    return deepcopy(network, made)


def twin(network: M) -> M:
    """Return a copy of the network that shares the memory of its weights."""
    return around(network, lambda weight: weight)


def on_device(network: M, device: torch.device) -> M:
    """Return the network itself if its weights are on `device`, else a copy whose weights are copied there."""
    if all(w.device == device for w in network.parameters()):
        return network
    return around(network, lambda w: nn.Parameter(w.to(device), False) if isinstance(w, nn.Parameter) else w.to(device))
