"""Unknown names.

Mutants seen to fail here: capitals that count, the lower-case word given back, a hint for every name, torch imported.
"""

import subprocess
import sys

import pytest

from sld.spelling import did_you_mean, named


@pytest.mark.parametrize(
    ("name", "near"),
    [("strnog", "strong"), ("STRONG", "strong"), ("exposed_feat", "EXPOSED_FEET"), ("weka", "weak")],
)
def test_the_nearest_name_is_told_whatever_the_case(name, near):
    assert did_you_mean(name, ("weak", "strong", "EXPOSED_FEET")) == f"; did you mean {near!r}?"


@pytest.mark.parametrize("known", [("weak", "strong"), ()])
def test_nothing_is_told_where_nothing_is_near(known):
    assert did_you_mean("embedded", known) == ""


def test_a_known_name_gives_its_value_and_an_unknown_one_lists_all():
    choices = {"ddim": 1, "pndm": 2}

    assert named("sampler", "pndm", choices) == 2
    with pytest.raises(ValueError, match=r"^no sampler 'DDMI', there are ddim, pndm, or yours; did you mean 'ddim'\?$"):
        named("sampler", "DDMI", choices, ", or yours")


def test_looking_names_up_loads_no_torch():
    code = "import sys, sld.spelling; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
