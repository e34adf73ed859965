"""Plain data read into typed values: nothing is taken for what it is not.

Mutants seen to fail here: truth values taken for numbers, NaN let through, text taken for a list, ends of a range
turned round, unknown names passed over, the place left out of a message, `~` taken for a name, a long value shown as it
is.
"""

import math
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from sld.data import OneOf, Range, Written, parse, read


@dataclass(frozen=True)
class Inner:
    threshold: float = 0.0
    exact: bool = False


@dataclass(frozen=True)
class Outer:
    steps: Annotated[int, Range(1, 1000)]
    inner: Inner = Inner()
    channels: tuple[int, ...] = ()
    size: tuple[int, int] | None = None
    name: Annotated[str, OneOf(("ddim", "pndm"))] = "ddim"
    space: Literal["raw", "eps"] = "raw"
    folder: Path | None = None
    table: Mapping[str, float] | None = None
    seeds: Annotated[tuple[int, ...], Written(lambda text: tuple(map(int, text.split("-"))))] = ()

    def __post_init__(self) -> None:
        if self.size is not None and self.size[0] > 8 * self.size[1]:
            raise ValueError("a picture is at most eight times as high as wide")


def test_a_dataclass_and_what_is_in_it_are_read():
    data = {
        "steps": 50,
        "inner": {"threshold": math.inf, "exact": True},
        "channels": [1, 2],
        "size": [64, 32],
        "name": "pndm",
        "folder": "weights",
        "table": {"a": 1},
        "seeds": "3-5",
    }
    assert read(Outer, data) == Outer(
        50, Inner(math.inf, True), (1, 2), (64, 32), "pndm", folder=Path("weights"), table={"a": 1}, seeds=(3, 5)
    )


def test_instances_are_taken_as_they_are_and_whole_numbers_stay_whole():
    inner = Inner(threshold=1)
    made = read(Outer, {"steps": 1, "inner": inner, "seeds": [7]})
    assert made.inner is inner and made.seeds == (7,)
    assert type(read(Inner, {"threshold": 2}).threshold) is int  # so that what was written is written again


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, r"^a\.toml: steps is missing: give a whole number in \[1, 1000\]$"),
        ({"steps": 0}, r"^a\.toml: steps must be in \[1, 1000\]; got 0$"),
        ({"steps": True}, r"^a\.toml: steps must be a whole number; got True$"),
        ({"steps": 2.0}, "must be a whole number; got 2.0"),
        ({"steps": "2"}, "must be a whole number; got '2'"),
        ({"steps": math.nan}, "must be a whole number; got nan"),
        ({"steps": [2]}, r"must be a whole number; got \[2\]"),
        ({"steps": None}, "must be a whole number; got None"),
        ({"steps": 1, "stpes": 2}, r"^a\.toml: stpes is unknown; did you mean 'steps'\?$"),
        ({"steps": 1, "inner": {"exact": "no"}}, r"^a\.toml: inner\.exact must be true or false; got 'no'$"),
        ({"steps": 1, "inner": {"exact": 1}}, "must be true or false; got 1"),
        ({"steps": 1, "inner": {"threshold": math.nan}}, "threshold must be a number; got nan"),
        ({"steps": 1, "inner": {"threshold": [1.0]}}, r"threshold must be a number; got \[1\.0\]"),
        ({"steps": 1, "inner": {"threshold": False}}, "threshold must be a number; got False"),
        ({"steps": 1, "inner": 3}, r"^a\.toml: inner must be a table of its fields; got 3$"),
        ({"steps": 1, "channels": "12"}, "channels must be a list; got '12'"),
        ({"steps": 1, "channels": [1, "2"]}, r"channels\[1\] must be a whole number; got '2'"),
        ({"steps": 1, "size": [64]}, "size must be a list of 2 values"),
        ({"steps": 1, "size": [900, 1]}, r"^a\.toml: a picture is at most eight times"),
        ({"steps": 1, "name": "dimm"}, r"name must be ddim or pndm; got 'dimm'; did you mean 'ddim'\?"),
        ({"steps": 1, "name": ["ddim"]}, r"name must be ddim or pndm; got \['ddim'\]"),
        ({"steps": 1, "space": "esp"}, r"space must be raw or eps; got 'esp'; did you mean 'eps'\?"),
        ({"steps": 1, "folder": 3}, "folder must be a path; got 3"),
        ({"steps": 1, "folder": ""}, "folder must be a path; got ''"),
        ({"steps": 1, "folder": "a\0"}, "folder must be a path; got 'a"),
        (
            {"steps": 1, "folder": "~nobody-of-this-name/x"},
            "folder is ~nobody-of-this-name/x, and there is no such home",
        ),
        (
            {"steps": 1, "inner": {"threshold": 10**400}},
            r"threshold must be a number below 1e308; got one of 401 digits",
        ),
        ({"steps": 1, "name": "x" * 3000}, r"got 'x{79} … \(3002 characters\)$"),
        ({"steps": 1, "a\nb": 2}, r"^a\.toml: 'a\\nb' is unknown"),
        ({"steps": 1, "seeds": "x"}, r"^a\.toml: seeds: invalid literal"),
        ({"steps": 1, "table": {"a": "1"}}, "table.a must be a number; got '1'"),
        ({"steps": 1, "seeds": True}, "seeds must be a list; got True"),
        ([1], r"^a\.toml: must be a table of its fields"),
    ],
    ids=str,
)
def test_what_is_of_another_type_or_out_of_range_is_told_with_its_place(data: Any, message: str):
    with pytest.raises(ValueError, match=message):
        read(Outer, data, "a.toml:")


@pytest.mark.parametrize(
    ("numbers", "inside", "outside", "said"),
    [
        (Range(1), (1, 10**30), (0, math.inf, math.nan), "at least 1"),
        (Range(0, above=True), (1e-300,), (0, -1), "above 0"),
        (Range(0, 1, below=True), (0, 0.999), (1, -0.1), "in [0, 1)"),
        (Range(0, 2**64, below=True), (2**64 - 1,), (2**64, -1), "in [0, 2**64)"),
        (Range(high=3), (3, -5), (3.1, -math.inf), "at most 3"),
        (Range(), (-1e300,), (math.inf, math.nan), "a finite number"),
    ],
    ids=str,
)
def test_a_range_holds_finite_numbers_between_its_ends(numbers: Range, inside: Any, outside: Any, said: str):
    assert all(x in numbers for x in inside) and not any(x in numbers for x in outside)
    assert str(numbers) == said


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (int, "-3", -3),
        (float | None, "inf", math.inf),
        (str, "5", "5"),
        (Path | None, "a/b", Path("a/b")),
        (Annotated[int, Range(0, 2**64, below=True)] | None, str(2**64 - 1), 2**64 - 1),
        (Literal["raw", "eps"], "eps", "eps"),
        (Annotated[tuple[int, ...], Written(lambda text: (int(text),))], "7", (7,)),
    ],
)
def test_text_is_read_as_the_type_asks(kind: Any, text: str, value: Any):
    assert parse(kind, text, "--x") == value


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        (int, "2.5", "--x must be a whole number; got '2.5'"),
        (float, "nan", "--x must be a number; got nan"),
        (Annotated[float, Range(0)], "many", "--x must be a number of at least 0; got 'many'"),
        (Annotated[float, Range(0)], "inf", "--x must be at least 0; got inf"),
    ],
)
def test_text_that_is_no_such_value_is_told(kind: Any, text: str, message: str):
    with pytest.raises(ValueError) as error:
        parse(kind, text, "--x")
    assert str(error.value) == message


@pytest.mark.parametrize("text", ["~", "~/runs/x", "./~", "a/~"])
def test_a_tilde_at_the_beginning_of_a_path_is_the_home_folder(text: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/home/me")
    wanted = {"~": "/home/me", "~/runs/x": "/home/me/runs/x", "./~": Path.cwd() / "~", "a/~": "a/~"}[text]
    assert read(Path, text) == parse(Path | None, text, "--x") == read(Path, read(Path, text)) == Path(wanted)


def test_reading_loads_no_torch():
    code = "import sys, sld.data; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
