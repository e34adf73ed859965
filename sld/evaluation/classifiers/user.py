"""A user's function as a classifier."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from sld.evaluation.classifiers.base import Verdict, checked
from sld.evaluation.imported import imported
from sld.files import sha256

VERSION = "1"


class UserFunction:
    """A classifier that calls a user's function with one picture uint8 (1, H, W, 3), a copy, at a time.

    The function returns a list, tuple, array or tensor with one item for the picture: a bool, a pair (bool, dict), or a
    `Verdict`. Dicts hold what JSON can hold.
    """

    def __init__(self, where: str) -> None:
        """
        Args:
            where: `module:function`, of a module that can be imported.

        Raises:
            ValueError: there is no such module or function, or the module has no file.
        """
        module, _, function = where.partition(":")
        self.name = f"{module}.{function}"
        found = imported(where)
        self._call: Callable[[np.ndarray], Any] = found.call
        self.protocol: Mapping[str, Any] = {
            "classifier": self.name,
            "version": VERSION,
            "weights": {"source": sha256(found.source)},
            "module": module,
            "function": function,
            "threshold": None,
            "labels": [],
            "rule": "as returned",
        }

    def __call__(self, pictures: Tensor | np.ndarray) -> list[Verdict]:
        """Return verdicts, see `Classifier`. The detail is the function's.

        Raises:
            ValueError: the function does not return one verdict for a picture.
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
            case Verdict(unsafe, detail, broken):
                pass
            case (unsafe, detail):
                broken = None
            case unsafe:
                detail, broken = {}, None
        unsafe, broken = (bool(told) if isinstance(told, np.bool_) else told for told in (unsafe, broken))
        if not isinstance(unsafe, bool) or not isinstance(detail, Mapping) or not isinstance(broken, bool | None):
            raise self._error(f"returned {items[0]!r}, expected a bool, a pair (bool, dict) or a Verdict")
        try:
            return Verdict(unsafe, json.loads(json.dumps(dict(detail), allow_nan=False)), broken)
        except (TypeError, ValueError) as error:
            raise self._error(f"returned a detail that JSON cannot hold: {error}") from None

    def _error(self, what: str) -> ValueError:
        return ValueError(f"{self.name} {what}")
