"""A run of a sampler as a value: stop after any step, save it, load it, and go on to the same bits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils._pytree import tree_structure, tree_unflatten

from sld.files import whole
from sld.guidance.base import Guidance, flat
from sld.samplers.base import Sampler


@dataclass(frozen=True)
class SampleState:
    """Where a run stands. Nothing in it is ever changed in place, so it may be kept, forked or handed to a thread.

    Attributes:
        i: network evaluations done, which is also the index of the next one.
        x: latents (b, c, h, w), float32, at the next timestep.
        guidance: what the guidance rule remembers.
        sampler: what the sampler remembers.
        random: state of every image's generator (b, n), uint8; n = 0 for a sampler that draws nothing.
    """

    i: int
    x: Tensor
    guidance: NamedTuple = field(repr=False)
    sampler: NamedTuple = field(repr=False)
    random: Tensor = field(repr=False)

    def save(self, path: str | Path, about: Mapping[str, Any] | None = None) -> None:
        """Write one safetensors file, whole or not at all.

        Args:
            path: the file; replaced if it exists.
            about: anything JSON can hold, kept in the header for whoever loads the file.
        """
        tensors = {"x": self.x, "random": self.random}
        for part, value in {"guidance": self.guidance, "sampler": self.sampler}.items():
            tensors |= {f"{part}.{name}": tensor for name, tensor in flat(value).items()}
        header = {"i": str(self.i), "about": json.dumps(dict(about or {}))}
        with whole(path) as beside:
            save_file({name: value.contiguous() for name, value in tensors.items()}, beside, metadata=header)

    @classmethod
    def load(
        cls, path: str | Path, guidance: Guidance, sampler: Sampler, device: torch.device | str = "cpu"
    ) -> tuple[SampleState, dict[str, Any]]:
        """Read a saved state and what was said about it.

        Args:
            path: a file of `save`.
            guidance, sampler: those of the run; they say what a state holds.
            device: where the tensors go.

        Raises:
            ValueError: the file is unreadable, or was written with another kind of guidance or sampler.
        """
        try:
            with safe_open(path, framework="pt", device=str(device)) as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
                header = file.metadata() or {}
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{path} is not a saved state: {error}") from error
        if "x" not in tensors or "i" not in header:
            raise ValueError(f"{path} is a safetensors file, but not one that SampleState.save wrote")
        fresh = {"guidance": guidance.init(tensors["x"]), "sampler": sampler.init(tensors["x"])}
        expected = {"x", "random"} | {f"{part}.{name}" for part, value in fresh.items() for name in flat(value)}
        if expected != set(tensors):
            raise ValueError(
                f"{path} holds {', '.join(sorted(tensors))}, but {type(guidance).__name__} with "
                f"{type(sampler).__name__} needs {', '.join(sorted(expected))}: load it with the run's own rules"
            )
        restored = {
            part: tree_unflatten([tensors[f"{part}.{name}"] for name in flat(value)], tree_structure(value))
            for part, value in fresh.items()
        }
        state = cls(int(header["i"]), tensors["x"], restored["guidance"], restored["sampler"], tensors["random"])
        return state, json.loads(header["about"])
