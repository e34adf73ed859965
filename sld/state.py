"""The state of a run as a value. It can be saved and loaded after any step, and the run goes on to the same bits."""

from __future__ import annotations

import hashlib
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
    """The state of a run before the next evaluation.

    It is never changed in place, so it may be kept, forked or given to a thread.

    Attributes:
        i: network evaluations done, which is also the index of the next one.
        x: latents (b, c, h, w), float32, at the next timestep.
        guidance: state of the guidance rule.
        sampler: state of the sampler.
        random: state of the generator of each image (b, n), uint8; n = 0 for a sampler that draws no noise.
    """

    i: int
    x: Tensor
    guidance: NamedTuple = field(repr=False)
    sampler: NamedTuple = field(repr=False)
    random: Tensor = field(repr=False)

    def save(self, path: str | Path, about: Mapping[str, Any] | None = None) -> None:
        """Write the state as a safetensors file, whole or not at all.

        Args:
            path: the file; replaced if it exists.
            about: a value that JSON can hold; kept in the header of the file.
        """
        tensors = {"x": self.x, "random": self.random}
        for part, value in {"guidance": self.guidance, "sampler": self.sampler}.items():
            tensors |= {f"{part}.{name}": tensor for name, tensor in flat(value).items()}
        header = {"i": str(self.i), "about": json.dumps(dict(about or {}))}
        header["sha256"] = _sha256(tensors, header)
        with whole(path) as beside:
            save_file({name: value.contiguous() for name, value in tensors.items()}, beside, metadata=header)

    @classmethod
    def load(
        cls, path: str | Path, guidance: Guidance, sampler: Sampler, device: torch.device | str = "cpu"
    ) -> tuple[SampleState, dict[str, Any]]:
        """Load a saved state and its `about`.

        Args:
            path: a file of `save`.
            guidance, sampler: rule and sampler of the run; they decide the fields of the state.
            device: where the tensors go.

        Raises:
            ValueError: the file cannot be read, is damaged, or was saved with another kind of guidance or sampler.
        """
        try:
            with safe_open(path, framework="pt", device=str(device)) as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
                header = file.metadata() or {}
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{path} is not a saved state: {error}") from error
        if not {"x", "random"} <= set(tensors) or not {"i", "about", "sha256"} <= set(header):
            raise ValueError(f"{path} is a safetensors file, but not one that this version's SampleState.save wrote")
        if header["sha256"] != _sha256(tensors, header):
            raise ValueError(f"{path} is damaged, its content is not what was saved: make the run anew")
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


def _sha256(tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> str:
    """Return the hash of what a file of a state holds."""
    digest = hashlib.sha256(json.dumps([header["i"], header["about"]]).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
