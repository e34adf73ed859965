"""Import of `module:name`: functions of users, and makers that are imported only when they are needed."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, NamedTuple

from sld.printable import one_line
from sld.spelling import did_you_mean


class Imported(NamedTuple):
    """A function or class that was found by its name.

    Attributes:
        call: the function or class.
        source: the file of its module, whose hash identifies the version.
    """

    call: Any
    source: Path


def imported(where: str) -> Imported:
    """Import what `module:name` names.

    Args:
        where: the dotted name of a module that can be imported, a colon, and the name of something callable in it.

    Raises:
        ValueError: there is no such module or callable, the module raises an error, or it has no source file; the
            message says which.
    """
    module, _, name = where.partition(":")
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"the module {module!r} cannot be imported ({error}): is its folder in PYTHONPATH?") from error
    except (Exception, SystemExit) as error:  # whatever the code of a module raises while it runs
        said = one_line(f"{type(error).__name__}: {error}")
        raise ValueError(f"the module {module!r} cannot be imported, because it raises {said}") from error
    if not callable(call := getattr(found, name, None)):
        raise ValueError(f"{module} has no function {name!r}{did_you_mean(name, vars(found))}")
    if not (source := getattr(found, "__file__", None)):
        raise ValueError(f"{module} has no source file, which is needed to record the version of {where}")
    return Imported(call, Path(source))
