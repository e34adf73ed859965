"""A user's function as a classifier."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
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
        with undisturbed():
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
            ValueError: the function raises an error, calls sys.exit, or does not return one verdict for a picture. In a
                run this is recorded as the failure of the picture.
        """
        return [self._judge(picture) for picture in checked(pictures)]

    def _judge(self, picture: np.ndarray) -> Verdict:
        try:
            with undisturbed():
                answer = self._call(picture[None].copy())
        except SystemExit as error:
            raise self._error(f"called sys.exit({error.code!r})") from error
        except Exception as error:  # whatever a user's function raises
            raise self._error(f"raised {type(error).__name__}: {error}") from error
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
        except (TypeError, ValueError, RecursionError) as error:
            raise self._error(f"returned a detail that JSON cannot hold: {error}") from None

    def _error(self, what: str) -> ValueError:
        return ValueError(f"{self.name} {what}")


_SETTINGS: tuple[tuple[Callable[[], Any], Callable[[Any], Any]], ...] = (
    (torch.get_num_threads, torch.set_num_threads),
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.get_default_device, torch.set_default_device),
    (torch.is_grad_enabled, torch.set_grad_enabled),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    (torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms),
)
"""Settings of torch that hold for the whole process and move bits of pictures: how each is read and written."""


@contextmanager
def undisturbed() -> Iterator[None]:
    """Put torch's settings back after a block of a user's code, so that it changes no picture of the run."""
    before = [get() for get, _ in _SETTINGS]
    try:
        yield
    finally:
        for (get, put), value in zip(_SETTINGS, before, strict=True):
            if get() != value:
                put(value)
