"""The entry point of the command `sld`, with its exit status and its messages."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
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
    try:
        description = "Safe Latent Diffusion: pictures from prompts, safely."
        command, options = parse_arguments("sld", description, f"sld {sld.__version__}", COMMANDS, arguments)
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            command.run(options)
            sys.stdout.flush()
    except BrokenPipeError:  # the reader of the output has ended, as in sld prompts i2p | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, OSError) as error:
        _fail(str(error))
    except ModuleNotFoundError as error:
        if error.name not in ("scipy", "matplotlib", "pyarrow"):
            raise
        _fail(f'{error.name} is missing, which this command needs: pip install "sld[evaluate]"')
    except KeyboardInterrupt:
        print("sld: interrupted; what is finished is on disk", file=sys.stderr)
        sys.exit(130)


def _fail(message: str) -> NoReturn:
    print(f"sld: error: {message}", file=sys.stderr)
    sys.exit(2)


def _warn(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    if issubclass(category, UserWarning):
        print(f"sld: warning: {message}", file=sys.stderr)
