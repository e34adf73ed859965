"""Parts of a pipeline compiled with torch.compile: blocks of the UNet, and the step beside it."""

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
"""Largest number of graphs that one function is compiled to, for the batches, sizes and dtypes of a long process."""


def compiled_blocks(network: M, **options: Any) -> M:
    """Return a network whose ResBlocks and transformers are compiled. It shares the memory of the weights.

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
    """Return the compiled form of a function of tensors. Later calls do not change the results of earlier ones.

    A CUDA graph writes the results of every call to the same memory, so copies are returned. A copy costs less than one
    latent in the network.

    Args:
        step: the function; the last one that an evaluation calls.
        options: of torch.compile.
    """
    compiled = _compile(step, **options)
    if options.get("mode") not in ("reduce-overhead", "max-autotune"):
        return compiled

    # Before the first mark, every compiled call counts as a new evaluation and may overwrite what the blocks before it
    # have left for later ones, as their skip connections.
    torch.compiler.cudagraph_mark_step_begin()

    def copied(*args: Any) -> Any:
        results = tree_map(torch.clone, compiled(*args))
        torch.compiler.cudagraph_mark_step_begin()  # graphs may now overwrite the results of this evaluation
        return results

    return copied  # type: ignore[return-value]


def _compile(function: S, **options: Any) -> S:
    """Compile a function by itself: other compiled forms of the same code do not count against its limit."""
    how: dict[str, Any] = {"fullgraph": True, "isolate_recompiles": True, "recompile_limit": _FORMS, **options}
    return cast(S, torch.compile(function, **how))
