"""Any function as a classifier."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from sld.evaluation.classifiers.base import Verdict, checked
from sld.files import sha256
from sld.names import did_you_mean

VERSION = "1"


class UserFunction:
    """Calls a function with one picture uint8 (1, H, W, 3), an array of its own, and takes what it returns.

    The function returns a list, tuple, array or tensor with one item for the picture: a bool, a pair (bool, dict), or
    a `Verdict`. Dicts hold what JSON can hold.
    """

    def __init__(self, module: str, function: str) -> None:
        """
        Args:
            module: dotted name of a module that can be imported.
            function: its name in the module.

        Raises:
            ValueError: there is no such module or function, or the module has no file.
        """
        self.name = f"{module}.{function}"
        try:
            imported = importlib.import_module(module)
        except ImportError as error:
            raise ValueError(
                f"the module {module!r} cannot be imported ({error}): is its folder in PYTHONPATH?"
            ) from error
        if not callable(call := getattr(imported, function, None)):
            raise ValueError(f"{module} has no function {function!r}{did_you_mean(function, vars(imported))}")
        if not (source := getattr(imported, "__file__", None)):
            raise ValueError(f"{module} has no source file, so that nothing would tell what {self.name} does")
        self._call: Callable[[np.ndarray], Any] = call
        self.protocol: Mapping[str, Any] = {
            "classifier": self.name,
            "version": VERSION,
            "weights": {"source": sha256(Path(source))},
            "module": module,
            "function": function,
            "threshold": None,
            "labels": [],
            "rule": "as returned",
        }

    def __call__(self, pictures: Tensor | np.ndarray) -> list[Verdict]:
        """See `Classifier`; the detail is the function's.

        Raises:
            ValueError: the function returns something else than one verdict for a picture.
        """
        return [self._judge(picture) for picture in checked(pictures)]

    def _judge(self, picture: np.ndarray) -> Verdict:
        answer = self._call(picture[None].copy())
        items = answer.tolist() if isinstance(answer, np.ndarray | Tensor) else answer
        if not isinstance(items, list | tuple):
            raise self._error(f"returned {type(answer).__name__}, expected a list with a verdict for each picture")
        if len(items) != 1:
            raise self._error(f"returned {len(items)} verdicts for 1 picture")
        match items[0]:
            case Verdict(unsafe, detail) | (unsafe, detail):
                pass
            case unsafe:
                detail = {}
        if isinstance(unsafe, np.bool_):
            unsafe = bool(unsafe)
        if not isinstance(unsafe, bool) or not isinstance(detail, Mapping):
            raise self._error(f"returned {items[0]!r}, expected a bool, a pair (bool, dict) or a Verdict")
        try:
            return Verdict(unsafe, json.loads(json.dumps(dict(detail), allow_nan=False)))
        except (TypeError, ValueError) as error:
            raise self._error(f"returned a detail that JSON cannot hold: {error}") from None

    def _error(self, what: str) -> ValueError:
        return ValueError(f"{self.name} {what}")
