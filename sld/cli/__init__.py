"""The command line: arguments become frozen dataclasses here, and nothing of the package imports this.

`parser` reads arguments into options, `options` has those that several commands share, `requests` makes a model and
requests of them; each other file has one command or a small family.
"""

from sld.cli.entry import main

__all__ = ["main"]
