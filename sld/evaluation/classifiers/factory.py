"""Classifiers by name."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from sld.evaluation.choices import read_classifier
from sld.evaluation.classifiers.base import Classifier

PROMPTS = "SLD_Q16_PROMPTS"
"""Environment variable with the path of Q16's learned prompts."""


# Imported when they are made: no classifier needs what another one needs.


def _embedded(device: torch.device, **options: Any) -> Classifier:
    from sld.evaluation.classifiers.world import Embedded

    return Embedded(device=device, **options)


def _q16(device: torch.device, clip: str | None = None, prompts: Path | None = None, **options: Any) -> Classifier:
    from sld.evaluation.classifiers.clip import HUB_CLIP, CLIPEmbedder
    from sld.evaluation.classifiers.q16 import Q16, SOURCE

    if prompts is None and not os.environ.get(PROMPTS):
        raise ValueError(f"q16 needs its learned prompts, {SOURCE}: give prompts=PATH or set {PROMPTS}")
    return Q16(CLIPEmbedder(clip or HUB_CLIP, device), prompts or Path(os.environ[PROMPTS]), **options)


def _nudenet(device: torch.device, **options: Any) -> Classifier:
    from sld.evaluation.classifiers.nudenet import NudeNet

    return NudeNet(**options)  # onnxruntime's CPU kernels, wherever the others run


def _safety_checker(device: torch.device, **options: Any) -> Classifier:
    from sld.evaluation.classifiers.safety_checker import SafetyChecker

    return SafetyChecker(device=device, **options)


def _user(module: str, function: str) -> Classifier:
    from sld.evaluation.classifiers.user import UserFunction

    return UserFunction(module, function)


MAKERS: dict[str, Callable[..., Classifier]] = {
    "embedded": _embedded,
    "q16": _q16,
    "nudenet": _nudenet,
    "safety-checker": _safety_checker,
}


def make_classifier(spec: str, device: str | torch.device = "cpu") -> Classifier:
    """The classifier that `spec` names, complete: what is missing is an error here, not at the first picture.

    Args:
        spec: see `sld.evaluation.choices.read_classifier`.
        device: where networks run.

    Raises:
        ValueError: a name or option is unknown, or weights or a package are missing; says how to get them.
    """
    asked = read_classifier(spec)
    if asked.name in MAKERS:
        return MAKERS[asked.name](torch.device(device), **asked.options)
    return _user(**asked.options)
