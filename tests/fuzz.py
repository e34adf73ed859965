"""Files with a mistake are refused in one line that names the file, or read: there is no traceback and no endless work.

    python tests/fuzz.py --kind sweep --n 10000      mutations 0 to 9,999 of one kind; without --kind of all
    python tests/fuzz.py --kind sweep --only 123     one of them, with its traceback and its file

A kind of file is a module in `tests/fuzzed/` with a `KIND`. `tests/test_fuzz.py` tries a few hundred of each.
"""

from __future__ import annotations

import argparse
import importlib
import random
import signal
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mutations import mutated

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        prepare: writes files without a mistake into an empty folder.
        read: does with a file what commands do with it. It raises ValueError or OSError to refuse it, and
            AssertionError if the file was taken for what it is not.
        files: pattern of the files that get mistakes, below the folder.
        tries: mutations in the suite; all of a kind take at most a few seconds.
        seconds: a file may take, before it counts as endless.
        same_file: whether the message must name the file with the mistake, or may name another one of the folder.
    """

    prepare: Callable[[Path], None]
    read: Callable[[Path], object]
    files: str = "*"
    tries: int = 300
    seconds: float = 5.0
    same_file: bool = True


class Endless(BaseException):
    """A file takes too long."""


def names() -> list[str]:
    """The names of all kinds."""
    return sorted(path.stem for path in (HERE / "fuzzed").glob("*.py"))


def kind_of(name: str) -> Kind:
    """The kind of a name."""
    return importlib.import_module(f"fuzzed.{name}").KIND


def faults(name: str, kind: Kind, numbers: range) -> tuple[Counter[str], dict[int, str]]:
    """Try mutations of a kind.

    Args:
        name, kind: the kind. Its name is part of the seed of a mutation.
        numbers: of the mutations. Each depends on nothing but the kind and its number.

    Returns:
        How many were "taken" and "refused", and what is wrong with those that were neither, by number.

    Raises:
        AssertionError: a file without a mistake is not taken.
    """
    ends: Counter[str] = Counter()
    wrong: dict[int, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        kind.prepare(Path(folder))
        paths = sorted(path for path in Path(folder).glob(kind.files) if path.is_file())
        for path in paths:
            assert (end := _end(kind, path, Path(folder))) == "taken", f"{path.name} without a mistake: {end}"
        for number in numbers:
            dice = random.Random(f"{name} {number}")
            path = dice.choice(paths)
            whole = path.read_bytes()
            path.write_bytes(mutated(path, dice))
            end = _end(kind, path, Path(folder))
            path.write_bytes(whole)
            if end in ("taken", "refused"):
                ends[end] += 1
            else:
                wrong[number] = f"{path.name}: {end}"
    return ends, wrong


def _end(kind: Kind, path: Path, folder: Path) -> str:
    """How reading a file ends: "taken", "refused", or what is wrong with it."""
    try:
        with warnings.catch_warnings(), _alarm(kind.seconds):
            warnings.simplefilter("ignore")
            kind.read(path)
    except (ValueError, OSError) as error:
        message = str(error)
        if len(message.splitlines()) != 1:
            return f"a message of {len(message.splitlines())} lines: {message[:300]!r}"
        if len(message) > 1500:
            return f"a message of {len(message)} characters: {message[:300]!r}"
        if (path.name if kind.same_file else folder.name) not in message:
            return f"a message that does not name the file: {message[:300]!r}"
        return "refused"
    except Endless:
        return f"not done after {kind.seconds} s"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        place = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {str(error)[:300]} ({Path(place.filename).name}:{place.lineno})"
    return "taken"


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    def ring(*_: object) -> None:
        raise Endless

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _show(name: str, kind: Kind, number: int) -> None:
    """Print one mutated file, and read it without a net."""
    with tempfile.TemporaryDirectory() as folder:
        kind.prepare(Path(folder))
        dice = random.Random(f"{name} {number}")
        path = dice.choice(sorted(path for path in Path(folder).glob(kind.files) if path.is_file()))
        path.write_bytes(content := mutated(path, dice))
        print(f"{path.name}:\n{content[:4000]!r}")
        print("taken:", kind.read(path))


def main() -> None:
    """Run the command line; the exit status is 1 if anything is wrong."""
    parser = argparse.ArgumentParser(description="Try files with mistakes.")
    parser.add_argument("--kind", choices=names(), help="of file (all)")
    parser.add_argument("--n", type=int, default=1000, help="mutations of each kind (1000)")
    parser.add_argument("--first", type=int, default=0, help="number of the first one (0)")
    parser.add_argument("--only", type=int, help="show this one")
    asked = parser.parse_args()
    failed = 0
    for name in [asked.kind] if asked.kind else names():
        kind = kind_of(name)
        if asked.only is not None:
            _show(name, kind, asked.only)
            continue
        ends, wrong = faults(name, kind, range(asked.first, asked.first + asked.n))
        print(f"{name}: {ends['refused']} refused, {ends['taken']} taken, {len(wrong)} wrong")
        for number, what in wrong.items():
            print(f"  {number}: {what}")
        failed += len(wrong)
    raise SystemExit(failed > 0)


if __name__ == "__main__":
    from fuzz import main as run  # kinds import this module by its name

    run()
