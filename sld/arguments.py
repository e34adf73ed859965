"""Arguments that are given once for a batch, or once per image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeGuard, TypeVar

T = TypeVar("T")


def batch_size(**arguments: str | int | Sequence[str] | Sequence[int]) -> int:
    """Return the number of images that arguments given once or per image describe.

    Raises:
        ValueError: the arguments describe different numbers of images, or no image.
    """
    lengths = {name: len(v) for name, v in arguments.items() if _per_image(v)}
    if len(set(lengths.values())) > 1 or 0 in lengths.values():
        given = ", ".join(f"{n} {name}" for name, n in lengths.items())
        raise ValueError(f"arguments given per image must be as many as there are images; got {given}")
    return next(iter(lengths.values()), 1)


def spread(value: T | Sequence[T], batch: int) -> list[T]:
    """Return one value per image for an argument given once or per image."""
    return list(value) if _per_image(value) else [value] * batch  # type: ignore[list-item]


def checked_seeds(seeds: Sequence[int]) -> Sequence[int]:
    """Return the seeds as they are.

    Raises:
        ValueError: a seed is not a whole number in [0, 2**64).
    """
    for seed in seeds:
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**64:
            raise ValueError(f"a seed must be a whole number in [0, 2**64); got {seed!r}")
    return seeds


def _per_image(value: T | Sequence[T]) -> TypeGuard[Sequence[T]]:
    return isinstance(value, Sequence) and not isinstance(value, str)
