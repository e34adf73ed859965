"""Construction of classifiers from the specs of the command line."""

from __future__ import annotations

import torch

from sld.evaluation.choices import CLASSIFIERS, read_classifier
from sld.evaluation.classifiers.base import Classifier
from sld.evaluation.classifiers.user import UserFunction
from sld.evaluation.imported import imported


def make_classifier(spec: str, device: str | torch.device = "cpu") -> Classifier:
    """Return the classifier that `spec` names. A missing file or package is an error here, not at the first picture.

    Args:
        spec: see `sld.evaluation.choices.read_classifier`.
        device: where networks run.

    Raises:
        ValueError: a name or option is unknown, or weights or a package are missing; the message says how to get them.
    """
    asked = read_classifier(spec)
    if asked.name == "user":
        return UserFunction(spec)
    kind = CLASSIFIERS[asked.name]
    given = dict(asked.options)
    if kind.on_device:
        given["device"] = torch.device(device)
    return imported(kind.where).call(**given)
