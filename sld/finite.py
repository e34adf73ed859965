"""Numbers that are not finite, in pictures and weights, and their likely cause."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

USUAL = 100.0
"""Guidance scales beyond it are named as the likely cause; 7.5 is usual."""


def finite(pictures: Tensor) -> list[bool]:
    """Return for each picture (b, 3, H, W) whether all its numbers are finite."""
    return pictures.isfinite().flatten(1).all(dim=1).tolist()


def all_finite(x: Tensor) -> bool:
    """Return whether every number is finite.

    One pass: half precision by its bits, in pieces that fit the cache, for its arithmetic is slow on a CPU; others by
    their sum, which is finite only if its parts are, and is asked again where it overflows. SD 1.5 takes half a second
    of a core in either precision.
    """
    if x.element_size() == 2:
        infinite = torch.tensor(torch.inf, dtype=x.dtype).view(torch.int16)
        pieces = x.reshape(-1).view(torch.int16).split(2**20)
        return all(bool((piece & 0x7FFF).max() < infinite) for piece in pieces if piece.numel())
    x = x.float() if x.element_size() == 1 else x
    return bool(x.sum().isfinite()) or bool(x.isfinite().all())


def require_finite(pictures: Tensor, networks: Sequence[object], guidance_scale: float | None = None) -> Tensor:
    """Return pictures, or latents, as they are. With NaN or infinite numbers they would be black, and are refused.

    Args:
        pictures: (b, c, h, w).
        networks, guidance_scale: see `likely_cause`.

    Raises:
        ValueError: at least one is not finite; says which, and why that may be.
    """
    if wrong := [str(k) for k, good in enumerate(finite(pictures)) if not good]:
        which = (
            "the picture is" if len(pictures) == 1 else f"of {len(pictures)} pictures, {', '.join(wrong)} (from 0) are"
        )
        raise ValueError(f"{which} not finite: {likely_cause(networks, guidance_scale)}")
    return pictures


def likely_cause(networks: Sequence[object], guidance_scale: float | None = None) -> str:
    """Return why pictures are not finite, and what to do, as far as networks and scale show it.

    Args:
        networks: those that made the pictures. Their weights are looked through.
        guidance_scale: s_g; None if there is none.
    """
    modules = [network for network in networks if isinstance(network, nn.Module)]
    for module in modules:
        for key, weight in module.state_dict().items():
            if not all_finite(weight):
                name = type(module).__name__
                return f"weights of the {name} are not finite ({key}): the checkpoint is damaged, get it again"
    if guidance_scale is not None and guidance_scale > USUAL:
        return f"a guidance scale of {guidance_scale:g} overflows: take a smaller one, 7.5 is usual"
    dtypes = {weight.dtype for module in modules for weight in module.parameters()}
    if torch.float16 in dtypes:
        return "networks compute in float16, where numbers end at 65504: take bfloat16 or float32"
    if torch.bfloat16 in dtypes:
        return "networks compute in bfloat16: take float32"
    return "numbers overflowed on the way, though all weights are finite: take other scales, or another sampler"
