"""The entry point of the command `sld`, with its exit status and its messages."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from io import TextIOWrapper
from typing import Any, NoReturn

import sld
from sld.cli import ablate, checkpoints, evaluate, explain, fidelity, generate, prompts
from sld.cli.parser import parse_arguments

COMMANDS = (
    generate.GENERATE,
    checkpoints.INSPECT,
    checkpoints.CONVERT,
    explain.EXPLAIN,
    explain.CONFLICTS,
    prompts.PROMPTS,
    evaluate.EVALUATE,
    evaluate.SCORE,
    fidelity.FIDELITY,
    evaluate.REPORT,
    ablate.ABLATE,
    ablate.COMPARE,
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line, and exit with status 0, 2 after an error of the user, or 130 after an interruption.

    Args:
        arguments: without the program's name; None for those of this process.
    """
    # Threads sleep while they wait. If they spin, a picture takes ten times as long where the cores have
    # other work, and gain nothing where they have none. Torch reads this when it is first imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    _prepare_output()
    try:
        arguments = _decoded(sys.argv[1:] if arguments is None else arguments)
        description = "Safe Latent Diffusion: pictures from prompts, safely."
        command, options = parse_arguments("sld", description, f"sld {sld.__version__}", COMMANDS, arguments)
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            command.run(options)
            sys.stdout.flush()
    except BrokenPipeError:  # the reader of the output has ended, as in sld prompts i2p | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:  # files are named by what writes them, so that one without a name is the output
        _fail(str(error) if error.filename or error.errno is None else f"{error}: standard output")
    except ValueError as error:
        _fail(str(error))
    except ModuleNotFoundError as error:
        if error.name not in ("scipy", "matplotlib", "pyarrow"):
            raise
        _fail(f'{error.name} is missing, which this command needs: pip install "sld[evaluate]"')
    except KeyboardInterrupt:
        print("sld: interrupted; what is finished is on disk", file=sys.stderr)
        sys.exit(130)


def _prepare_output() -> None:
    """Have what a terminal cannot show escaped, and give an output that is closed a place to go.

    The number of a closed one would else be that of the next file that is opened, and prints would land there.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (open as long as the process)
        elif isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _decoded(arguments: Sequence[str]) -> Sequence[str]:
    """Return the arguments, if all of their bytes were text; Python marks those that were none by surrogates."""
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            encoding = sys.getfilesystemencoding().upper()
            raise ValueError(f"the argument {argument!r} is not valid {encoding}: give it anew, as text") from None
    return arguments


def _fail(message: str) -> NoReturn:
    print(f"sld: error: {message}", file=sys.stderr)
    sys.exit(2)


def _warn(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    if issubclass(category, UserWarning):
        print(f"sld: warning: {message}", file=sys.stderr)
