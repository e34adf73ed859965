"""The device that networks run on, tried before anything is loaded."""

from __future__ import annotations

import torch


def usable(device: torch.device | str) -> torch.device:
    """Return the device, after a number was computed there.

    Raises:
        ValueError: there is no such device here, or it holds no numbers, as "meta".
    """
    try:
        found = torch.device(device)
        torch.ones(1, device=found).add(1).item()
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).partition("\n")[0].partition(". ")[0].rstrip(".") or type(error).__name__
        raise ValueError(
            f"the device {str(device)!r} cannot be used here ({reason}): take cpu, or leave it out"
        ) from None
    return found
