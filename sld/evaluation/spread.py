"""The processes of a run that `torchrun` started; one process without `torchrun`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")

_PATIENCE = timedelta(days=7)  # a process may need hours longer; one that dies closes its connection


@dataclass(frozen=True)
class Ranks:
    """This process among those that share a run.

    Attributes:
        rank: of this process, from 0.
        size: number of processes.
        local: of this process on its machine, which is also the number of its GPU.
    """

    rank: int = 0
    size: int = 1
    local: int = 0

    @property
    def first(self) -> bool:
        """Whether this process is the one that prints and writes for all."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """Return the values of all processes by rank. It waits for all of them.

        Raises:
            ValueError: another process died.
        """
        if self.size == 1:
            return [value]
        values: list[T | None] = [None] * self.size
        try:
            dist.all_gather_object(values, value)
        except RuntimeError as error:
            raise ValueError(
                f"rank {self.rank} lost another process of the run ({str(error).splitlines()[0]}): what is finished is "
                "on disk, the same command goes on from there"
            ) from error
        return values  # type: ignore[return-value]


@contextmanager
def ranks() -> Iterator[Ranks]:
    """Yield the processes that `torchrun` started, connected by gloo, and by NCCL if there is CUDA."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Ranks()
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=_PATIENCE)
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_RANK", "0")))
    finally:
        dist.destroy_process_group()
