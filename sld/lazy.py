"""Names of a package that are looked up on first use, so that importing the package imports none of its modules."""

from __future__ import annotations

TYPE_CHECKING = False  # see `sld`
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def on_first_use(package: str, homes: Mapping[str, str]) -> Callable[[str], object]:
    """Return a package's `__getattr__`, which imports the module that a name is defined in.

    Args:
        package: its name, for messages.
        homes: the module of every name.
    """

    from importlib import import_module

    def look_up(name: str) -> object:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(homes[name]), name)

    return look_up
