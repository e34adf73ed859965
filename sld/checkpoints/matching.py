"""Matching of the tensors of a file and the parameters of a model, by names and shapes.

Importing this loads no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sld.checkpoints.files import Header
from sld.checkpoints.remap import KeyMap
from sld.checkpoints.tables import Shape


@dataclass(frozen=True)
class Match:
    """The match of a file's tensors with a model's parameters.

    Attributes:
        key_maps: the map of every key of the file that has one.
        missing: parameters of the model that nothing in the file fills.
        differing: parameters whose shape differs, with the file's and the model's.
        numberless: keys of the file whose values are not floating point.
    """

    key_maps: dict[str, KeyMap]
    missing: tuple[str, ...]
    differing: tuple[tuple[str, Shape, Shape], ...]
    numberless: tuple[str, ...]


def match(key_maps: Iterable[KeyMap], stored: Mapping[str, Header], parameters: Mapping[str, Shape]) -> Match:
    """Match a file to a model without reading it.

    Args:
        key_maps: at least one for every parameter of the model.
        stored: the file's tensors.
        parameters: the shapes of the model's.
    """
    found: dict[str, KeyMap] = {}
    missing: list[str] = []
    differing: list[tuple[str, Shape, Shape]] = []
    for key_map in key_maps:
        key = next((key for key in key_map.theirs if key in stored), None)
        if key is None:
            missing += key_map.ours
            continue
        found[key] = key_map
        shape = _piece(stored[key].shape, key_map)
        differing += [(ours, shape, parameters[ours]) for ours in key_map.ours if shape != parameters[ours]]
    numberless = tuple(key for key in found if not stored[key].real)
    return Match(found, tuple(missing), tuple(differing), numberless)


def _piece(stored: Shape, key_map: KeyMap) -> Shape:
    """Return the shape of each of our parameters in a stored tensor; its own where it cannot be split evenly.

    As `KeyMap.read` does it: a matrix may be stored as a 1x1 convolution, and pieces are stacked along the first axis.
    """
    shape = stored[:2] if key_map.matrix and len(stored) == 4 and stored[2:] == (1, 1) else stored
    shape = shape[::-1] if key_map.transposed else shape
    pieces = len(key_map.ours)
    if pieces == 1 or not shape or shape[0] % pieces:
        return shape
    return (shape[0] // pieces, *shape[1:])
