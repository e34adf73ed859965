"""Extractors of the features that FID and KID compare."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sld.evaluation.imported import imported
from sld.files import sha256
from sld.printable import one_line

Extract = Callable[[Tensor], Tensor]
"""Function from pictures uint8 (b, 3, H, W) to features (b, d), of any floating type and on any device."""

EXTRACTORS = {"embedded": "sld.testbed.judge:detector_features"}
"""`module:name` of functions that make an `Extractor` for a device, by name."""


class Extractor(NamedTuple):
    """An extractor of features.

    Attributes:
        protocol: all that the features depend on, in values that JSON can hold: "features", "weights" (sha256 by name),
            "rule".
        extract: the function that computes the features.
    """

    protocol: Mapping[str, Any]
    extract: Extract


def load_extractor(where: str, device: str | torch.device = "cpu") -> Extractor:
    """Return an extractor: the embedded detector, a CLIP, a network in a file, or a user's function.

    Args:
        where: "embedded"; "clip:" with a folder or a name in the hub's cache; the path of a TorchScript file or, ending
            in .pt2, one of torch.export; or `module:name` of a callable. The usual Inception file returns class scores
            in a plain call; here it is called for its features.
        device: device of networks. A user's function gets pictures on the CPU.

    Raises:
        ValueError: there is no such extractor.
    """
    if where in EXTRACTORS:
        return imported(EXTRACTORS[where]).call(torch.device(device))
    if where.startswith("clip:"):
        return _clip(where.removeprefix("clip:"), device)
    path = Path(where)
    if path.exists():
        return _network(path, torch.device(device))
    if ":" not in where:
        raise ValueError(
            f"no file {where}. FID is defined on the 2048 features of the Inception network of 2015-12-05; NVIDIA has "
            "it as TorchScript (inception-2015-12-05.pt of stylegan2-ada-pytorch, pretrained/metrics). Give its path, "
            "embedded, clip:MODEL, or module:name of a function from pictures uint8 (b, 3, H, W) to features (b, d)"
        )
    return _function(where)


def _clip(model: str, device: str | torch.device) -> Extractor:
    from sld.evaluation.classifiers.clip import CLIPEmbedder

    embedder = CLIPEmbedder(model, device)
    about = {"features": "clip", "version": embedder.protocol["version"], "weights": embedder.protocol["weights"]}
    rule = f"the projected embedding of pictures of {embedder.protocol['size']} pixels"
    return Extractor({**about, "rule": rule}, lambda pictures: embedder.embed(pictures.permute(0, 2, 3, 1)))


def _network(path: Path, device: torch.device) -> Extractor:
    try:
        if path.suffix == ".pt2":
            network, rule = torch.export.load(path).module().to(device), "as called"
        else:
            network = torch.jit.load(path, map_location=device).eval()
            asked = "return_features" in {argument.name for argument in network.forward.schema.arguments}
            rule = "as called with return_features" if asked else "as called"
            network = partial(network, return_features=True) if asked else network
    except Exception as error:  # torch raises errors of any kind for damaged files
        raise ValueError(
            f"{path} is neither a TorchScript file nor (.pt2) one of torch.export; a state dict does not say what to "
            f"compute: save the network with torch.jit.script(network).save(path)\n{error}"
        ) from error
    about = {"features": "network", "weights": {"network": sha256(path)}, "rule": rule}
    return Extractor(about, lambda pictures: network(pictures.to(device)))


def _function(where: str) -> Extractor:
    try:
        call, source = imported(where)
    except ValueError as error:
        raise ValueError(f"cannot load features {where!r}: {error}") from error
    return Extractor({"features": where, "weights": {"source": sha256(source)}, "rule": "as returned"}, call)


@torch.inference_mode()
def features(pictures: Iterable[np.ndarray], extract: Extract) -> Iterator[Tensor]:
    """Yield features float64 (b, d) of batches of pictures uint8 (b, H, W, 3).

    Raises:
        ValueError: the extractor raises an error, or returns another shape.
    """
    for batch in pictures:
        try:
            found = extract(torch.from_numpy(batch.copy()).permute(0, 3, 1, 2))
        except ValueError:
            raise
        except (Exception, SystemExit) as error:  # whatever a user's function or network raises
            said = one_line(f"{type(error).__name__}: {error}")
            raise ValueError(f"the extractor of features fails for pictures {batch.shape}: {said}") from error
        if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != len(batch):
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(f"the extractor is to give features ({len(batch)}, d), not {shape}")
        yield found.to("cpu", torch.float64)
