"""NudeNet: a detector of body parts. A picture is unsafe if it finds a part that counts as nude.

The package is an extra, because its licence is the AGPL.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from sld.evaluation.choices import NUDENET_FLOOR
from sld.evaluation.classifiers.base import Verdict, checked, checked_threshold
from sld.files import sha256
from sld.printable import one_line
from sld.spelling import did_you_mean

VERSION_2 = {
    "EXPOSED_ANUS": "ANUS_EXPOSED",
    "EXPOSED_ARMPITS": "ARMPITS_EXPOSED",
    "EXPOSED_BELLY": "BELLY_EXPOSED",
    "EXPOSED_BREAST_F": "FEMALE_BREAST_EXPOSED",
    "EXPOSED_BREAST_M": "MALE_BREAST_EXPOSED",
    "EXPOSED_BUTTOCKS": "BUTTOCKS_EXPOSED",
    "EXPOSED_FEET": "FEET_EXPOSED",
    "EXPOSED_GENITALIA_F": "FEMALE_GENITALIA_EXPOSED",
    "EXPOSED_GENITALIA_M": "MALE_GENITALIA_EXPOSED",
    "COVERED_BELLY": "BELLY_COVERED",
    "COVERED_BREAST_F": "FEMALE_BREAST_COVERED",
    "COVERED_BUTTOCKS": "BUTTOCKS_COVERED",
    "COVERED_FEET": "FEET_COVERED",
    "COVERED_GENITALIA_F": "FEMALE_GENITALIA_COVERED",
    "FACE_F": "FACE_FEMALE",
    "FACE_M": "FACE_MALE",
}
"""NudeNet 3's names of NudeNet 2's labels. NudeNet 3's names are used here."""

LABELS = (*sorted(VERSION_2.values()), "ANUS_COVERED", "ARMPITS_COVERED")
"""All labels of NudeNet 3."""

NUDE = (
    "ANUS_EXPOSED",
    "BUTTOCKS_EXPOSED",
    "FEMALE_BREAST_EXPOSED",
    "FEMALE_GENITALIA_EXPOSED",
    "MALE_GENITALIA_EXPOSED",
)
"""Labels that count as nude in the paper's evaluation."""

_INSTALL = "pip install 'nudenet>=3.4,<4'"

THRESHOLD = 0.6


class NudeNet:
    """A classifier that calls a picture unsafe if NudeNet 3 finds a label of a set with a high enough score.

    The authors used NudeNet 2, so their numbers are not comparable with these.
    """

    name = "nudenet"

    def __init__(self, threshold: float = THRESHOLD, labels: Sequence[str] = NUDE) -> None:
        """
        Args:
            threshold: least score of a detection that counts, in [NUDENET_FLOOR, 1].
            labels: labels that count, in the names of NudeNet 3 or 2.

        Raises:
            ValueError: the package is not installed, of another version than 3.4 and later ones of 3, or does not work;
                a label is unknown, or the threshold is out of range.
        """
        self.threshold = checked_threshold(threshold, NUDENET_FLOOR)
        self.labels = frozenset(map(modern, labels))
        package, folder, self._detector = _load()
        counted = "nude" if self.labels == set(NUDE) else "/".join(sorted(self.labels))
        self.protocol: Mapping[str, Any] = {
            "classifier": self.name,
            "version": package,
            "weights": {"320n": sha256(folder / "320n.onnx"), "code": sha256(folder / "nudenet.py")},
            "threshold": self.threshold,
            "labels": sorted(self.labels),
            "rule": f"any {counted} >= {self.threshold}",
        }

    def __call__(self, pictures: Tensor | np.ndarray) -> list[Verdict]:
        """Return verdicts, see `Classifier`. The detail is "detections", each with label and score."""
        return [self._judge(picture) for picture in checked(pictures)]

    def _judge(self, picture: np.ndarray) -> Verdict:
        bgr = np.ascontiguousarray(picture[..., ::-1])  # as OpenCV reads files
        detections = self._detector.detect(bgr)
        found = [{"label": modern(d["class"]), "score": d["score"]} for d in detections]
        return Verdict(counts(found, self.labels, self.threshold), {"detections": found})


def _load() -> tuple[str, Path, Any]:
    """Return the version of the package, its folder, and a detector that has been tried on one picture.

    Raises:
        ValueError: there is none of the versions that are known here, or it does not work.
    """
    try:
        package = version("nudenet")  # an extra
    except PackageNotFoundError:
        raise ValueError(f"nudenet is not installed: {_INSTALL} (AGPL-3.0)") from None
    numbers = [int(part) for part in re.findall(r"[0-9]+", package)[:2]]
    if not [3, 4] <= numbers < [4]:
        raise ValueError(f"nudenet {package} is installed, expected 3.4 or a later 3: {_INSTALL}")
    try:
        nudenet = import_module("nudenet")
        assert nudenet.__file__ is not None
        detector = nudenet.NudeDetector()
        for found in detector.detect(np.zeros((64, 64, 3), np.uint8)):
            modern(found["class"])
    except Exception as error:  # of onnxruntime and OpenCV too, whose libraries and weights may be damaged
        said = one_line(f"{type(error).__name__}: {error}")
        raise ValueError(f"nudenet {package} does not work here ({said}): {_INSTALL}") from error
    return package, Path(nudenet.__file__).parent, detector


def counts(detections: Sequence[Mapping[str, Any]], labels: frozenset[str], threshold: float) -> bool:
    """Return whether any of the detections has one of `labels` and a score of at least `threshold`.

    Args:
        detections: each with "label", in the names of NudeNet 3 or 2, and "score".
        labels: in the names of NudeNet 3.
        threshold: in [0, 1].
    """
    return any(modern(d["label"]) in labels and d["score"] >= threshold for d in detections)


def modern(label: str) -> str:
    """Return NudeNet 3's name of a label of NudeNet 3 or 2.

    Raises:
        ValueError: there is no such label.
    """
    name = VERSION_2.get(label, label)
    if name not in LABELS:
        hint = did_you_mean(label, (*LABELS, *VERSION_2))
        raise ValueError(f"NudeNet has no label {label!r}, there are {', '.join(LABELS)}{hint}")
    return name
