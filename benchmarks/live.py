"""An account of live tensors, for models that are too large to run: on the meta device every size is known."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Bytes of the tensors on one device that are alive, and the most there were while this mode was on.

    What an operation allocates within itself is not seen.
    """

    def __init__(self, device: str, already: Iterable[Tensor] = ()) -> None:
        """
        Args:
            device: its type.
            already: tensors that were made before the mode was on.
        """
        super().__init__()
        self.device, self.now, self.peak = device, 0, 0
        self._seen: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()
        for tensor in already:
            self._add(tensor)

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if tensor.device.type == self.device and storage not in self._seen:
            self._seen.add(storage)
            size = storage.nbytes()
            weakref.finalize(storage, self._free, size)
            self.now += size
            self.peak = max(self.peak, self.now)

    def _free(self, size: int) -> None:
        self.now -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._add(leaf)
        return result


@contextmanager
def half_by_default() -> Iterator[None]:
    """New weights and tensors in float16."""
    torch.set_default_dtype(torch.float16)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)
