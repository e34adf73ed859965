"""Classifiers by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from sld.evaluation.classifiers.base import Classifier
from sld.evaluation.classifiers.user import UserFunction
from sld.evaluation.imported import imported
from sld.spelling import named


class Kind(NamedTuple):
    """How a classifier is made.

    Attributes:
        where: `module:name` of what makes it. It is imported then, so that no classifier needs what another one needs.
        options: name -> what reads the option's text.
        required: options that must be given.
        on_device: whether its maker takes a `device`.
    """

    where: str
    options: Mapping[str, Callable[[str], Any]]
    required: tuple[str, ...] = ()
    on_device: bool = True


_HERE = "sld.evaluation.classifiers"
CLASSIFIERS = {
    "embedded": Kind("sld.testbed.judge:Embedded", {"path": Path}),
    "q16": Kind(f"{_HERE}.q16:make_q16", {"clip": str, "prompts": Path, "threshold": float}),
    "nudenet": Kind(
        f"{_HERE}.nudenet:NudeNet", {"threshold": float, "labels": lambda text: text.split("+")}, on_device=False
    ),
    "safety-checker": Kind(f"{_HERE}.safety_checker:SafetyChecker", {"path": Path}, required=("path",)),
}


def make_classifier(spec: str, device: str | torch.device = "cpu") -> Classifier:
    """The classifier that `spec` names, complete: what is missing is an error here, not at the first picture.

    Args:
        spec: a name of CLASSIFIERS, alone or with options, such as "q16:prompts=PATH,threshold=0.9" or
            "nudenet:labels=FEMALE_BREAST_EXPOSED+ANUS_EXPOSED"; or any function, as "package.module:function".
        device: where networks run.

    Raises:
        ValueError: a name or option is unknown, or weights or a package are missing; says how to get them.
    """
    name, colon, rest = spec.partition(":")
    if name not in CLASSIFIERS and rest.isidentifier():
        return UserFunction(spec)
    kind = named("classifier", name, CLASSIFIERS, ", or module:function")
    given: dict[str, Any] = {}
    for part in rest.split(",") if colon else ():
        option, equals, value = part.partition("=")
        read = named(f"option of {name}", option, kind.options)
        if not equals or not value:
            raise ValueError(f"{spec!r}: the option {option} has no value; write {option}=…")
        if option in given:
            raise ValueError(f"{spec!r} gives {option} twice")
        try:
            given[option] = read(value)
        except ValueError:
            raise ValueError(f"{spec!r}: {option} is a number, got {value!r}") from None
    if missing := [option for option in kind.required if option not in given]:
        raise ValueError(f"{name} needs {' and '.join(f'{option}=…' for option in missing)}")
    if kind.on_device:
        given["device"] = torch.device(device)
    return imported(kind.where).call(**given)
