"""Commands in this process, as a user types them."""

from __future__ import annotations

import contextlib
import io
from types import SimpleNamespace

from sld.cli import main


def here(*arguments, cwd="."):
    """Run `sld` with these arguments; an error that `main` does not catch is raised."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), contextlib.chdir(cwd):
        try:
            main([*map(str, arguments)])
        except SystemExit as stopped:
            code = stopped.code
    return SimpleNamespace(returncode=code, stdout=out.getvalue(), stderr=err.getvalue())
