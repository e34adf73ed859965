"""What of a pipeline torch.compile is given, and how its results stay values."""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from sld.models.layers import ResBlock, SpatialTransformer
from sld.speed.keys import KeyedResBlock, KeyedTransformer
from sld.speed.weights import twin

M = TypeVar("M", bound=nn.Module)
S = TypeVar("S", bound=Callable[..., Any])

_FORMS = 32
"""The most shapes that one form is compiled for: batches, sizes and dtypes that a long-lived process may ask for."""


def compiled_blocks(network: M, **options: Any) -> M:
    """A network with the same weights, in the same memory, whose ResBlocks and transformers are compiled.

    Args:
        network: a UNet, plain or keyed; stays as it is.
        options: of torch.compile.
    """
    copy = twin(network)
    forms: dict[Any, Callable[..., Tensor]] = {}
    for block in copy.modules():
        if isinstance(block, ResBlock | SpatialTransformer | KeyedResBlock | KeyedTransformer):
            kind = (type(block), *(weight.shape for weight in block.parameters()))
            if kind not in forms:
                forms[kind] = _compile(type(block).forward, **options)
            block.forward = MethodType(forms[kind], block)
    return copy


def compiled_step(step: S, **options: Any) -> S:
    """A compiled function of tensors, whose results are the caller's.

    A CUDA graph writes its results where it wrote them before; what is handed out here is a copy, which costs less than
    one latent's way through the network.

    Args:
        step: the last thing that is computed at an evaluation.
        options: of torch.compile.
    """
    compiled = _compile(step, **options)
    if options.get("mode") not in ("reduce-overhead", "max-autotune"):
        return compiled

    def copied(*args: Any) -> Any:
        results = tree_map(torch.clone, compiled(*args))
        torch.compiler.cudagraph_mark_step_begin()  # whatever graphs wrote at this evaluation may be written over
        return results

    return copied  # type: ignore[return-value]


def _compile(function: S, **options: Any) -> S:
    """A form of its own: what is compiled for other blocks of the same class is neither looked up nor counted."""
    how: dict[str, Any] = {"fullgraph": True, "isolate_recompiles": True, "recompile_limit": _FORMS, **options}
    return cast(S, torch.compile(function, **how))
