"""A few hundred files of each kind with a mistake; `python tests/fuzz.py` tries as many as there is time for."""

import pytest
from fuzz import faults, kind_of, names


@pytest.mark.parametrize("name", names())
def test_a_file_with_a_mistake_is_refused_in_a_line_that_names_it_or_read(name):
    kind = kind_of(name)
    ends, wrong = faults(name, kind, range(kind.tries))

    assert not wrong, f"python tests/fuzz.py --kind {name} --only {next(iter(wrong))} shows the first of {wrong}"
    assert ends["refused"] > kind.tries / 10
