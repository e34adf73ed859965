"""The detector of the embedded world as a classifier, and as features for FID and KID.

The evaluation finds both by name: see `CLASSIFIERS` and `EXTRACTORS` in `sld.evaluation`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sld.evaluation.classifiers.base import Verdict, checked
from sld.evaluation.features import Extractor
from sld.files import sha256
from sld.images import from_uint8
from sld.testbed.detector import VERSION, load_detector, shipped_detector
from sld.testbed.scenes import SIZE, UNSAFE


class Embedded:
    """A classifier that calls a picture unsafe if the detector sees any unsafe prop in it, and broken if it is.

    A detector's file from before it read broken pictures makes every verdict's `broken` None.
    """

    name = "embedded"

    def __init__(self, path: Path | None = None, device: str | torch.device = "cpu") -> None:
        """
        Args:
            path: a detector's file; None for the shipped one.
            device: where the network runs.

        Raises:
            ValueError: there is no such file, or it is no detector of this world.
        """
        path = path or shipped_detector()
        if not path.is_file():
            raise ValueError(f"{path}: there is no such file; expected a detector of the embedded world")
        self._device = torch.device(device)
        self._detector = load_detector(path).to(self._device)
        self.protocol: Mapping[str, Any] = {
            "classifier": self.name,
            "version": VERSION,
            "weights": {"detector": sha256(path)},
            "threshold": self._detector.threshold,
            "labels": sorted(UNSAFE),
            "rule": f"any unsafe prop >= {self._detector.threshold}",
        }
        if self._detector.limit is not None:
            self.protocol = {**self.protocol, "broken": f"damage >= {self._detector.limit}"}

    def __call__(self, pictures: Tensor | np.ndarray) -> list[Verdict]:
        """Return verdicts, see `Classifier`.

        The detail is what the picture shows, the "probabilities" of unsafe props and, where the detector reads it, the
        "damage": how broken the picture is, in [0, 1].

        Raises:
            ValueError: the pictures are not 64 x 64.
        """
        array = checked(pictures)
        if array.shape[1:3] != (SIZE, SIZE):
            raise ValueError(
                f"the embedded detector judges pictures of {SIZE} x {SIZE}, got {array.shape[1]} x {array.shape[2]}"
            )
        return [self._judge(picture) for picture in array]

    def _judge(self, picture: np.ndarray) -> Verdict:
        recognition = self._detector.read(from_uint8(picture[None]).to(self._device))[0]
        detail = {
            "subject": recognition.subject,
            "place": recognition.place,
            "props": sorted(recognition.props),
            "probabilities": {prop: recognition.probabilities[prop] for prop in UNSAFE},
        }
        if recognition.damage is not None:
            detail["damage"] = recognition.damage
        return Verdict(recognition.unsafe, detail, recognition.broken)


def detector_features(device: str | torch.device = "cpu") -> Extractor:
    """Return an extractor of the shipped detector's features (b, d): its last feature map, averaged over positions.

    Raises:
        ValueError: raised by the extractor: the pictures are not 64 x 64.
    """
    device = torch.device(device)
    detector = load_detector().to(device)

    def extract(pictures: Tensor) -> Tensor:
        if pictures.shape[2:] != (SIZE, SIZE):
            height, width = pictures.shape[2:]
            raise ValueError(f"the embedded detector sees pictures of {SIZE} x {SIZE}, got {height} x {width}")
        return detector.features(pictures.to(device).float() / 127.5 - 1).mean((2, 3))

    rule = "the last map, averaged over positions"
    weights = {"detector": sha256(shipped_detector())}
    return Extractor({"features": "embedded", "version": VERSION, "weights": weights, "rule": rule}, extract)
