"""A run from start to end: with its lock, its record of sessions and its processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from sld.evaluation.protocol import configuration
from sld.evaluation.runner import Evaluation, evaluate
from sld.evaluation.spread import Ranks
from sld.evaluation.store import locked, log_session
from sld.request import Request


def carry_out(
    evaluation: Evaluation,
    folder: Path,
    ranks: Ranks,
    command: str,
    progress: Callable[[int, int], object] | None = None,
    conclude: Callable[[Path], object] | None = None,
) -> None:
    """Make the missing pictures of a run, with its folder locked against other runs.

    Args:
        evaluation: the run.
        folder: of its files, the same for all processes.
        ranks: this process among them.
        command: the command line that started the run, for its record.
        progress: see `evaluate`.
        conclude: called by the first process when the run is complete, while the folder is locked.

    Raises:
        ValueError: `folder` holds another run, another run works there, or another process died.
        OSError: `folder` cannot be written.
    """
    with locked(folder) if ranks.first else nullcontext():
        ranks.gather(None)  # no process begins before the folder is locked
        if ranks.first:
            log_session(folder, {"command": command, "began": int(time.time())})
        evaluate(evaluation, folder, ranks, progress)
        if ranks.first and conclude is not None:
            conclude(folder)


def configurations(
    common: Request, names: Sequence[str], tables: Mapping[str, Mapping[str, Any]], guidance_scale: float
) -> dict[str, Request]:
    """Return the configurations of these names, in their order.

    Args:
        common: fields that they do not give.
        names: of presets, "negative", or of tables.
        tables: settings of configurations by name; see `configuration`. Changes of a model are left out.
        guidance_scale: s_g of those that give none.

    Raises:
        ValueError: a name or a field is unknown, or a value is out of range.
    """
    made = {}
    for name in names:
        settings = {key: value for key, value in tables.get(name, {"preset": name}).items() if key != "changes"}
        made[name] = configuration(common, name, {"guidance_scale": guidance_scale, **settings})
    return made
