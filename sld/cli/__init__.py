"""The command line: arguments become frozen dataclasses. Nothing else in the package imports these files.

`parser` reads arguments into options. `options` has the options that several commands share. `requests` makes a model
and requests from options. Each other file has one command, or a few that belong together.
"""

from sld.cli.entry import main

__all__ = ["main"]
