"""`python -m sld`, and the command `sld`."""

from __future__ import annotations

import os
import signal
import sys

TYPE_CHECKING = False  # see `sld`
if TYPE_CHECKING:
    from types import FrameType


def main() -> None:
    """Run the command line of this process, see `sld.cli`."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored, as under nohup
        signal.signal(signal.SIGINT, _interrupt)
    from sld.cli import main as run

    run()


def _interrupt(_: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt; while a library is imported, end the process with status 130.

    Libraries turn an exception in the middle of their import into others, or are left half made. Nothing is being made
    then that would have to be finished.
    """
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            try:
                sys.stdout.flush()
                print("sld: interrupted; what is finished is on disk", file=sys.stderr, flush=True)
            finally:  # also where an output is closed
                os._exit(130)
        frame = frame.f_back
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
