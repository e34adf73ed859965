"""SLD in image-to-image on the embedded model: what is asked for, counted and drawn.

Mutants that failed here: the prop left in the prompts that leave it out, the whole run in place of its part.
"""

import csv

import pytest
import torch

import sld
from sld.testbed import prompts
from sld.testbed.detector import load_detector
from sld.testbed.from_pictures import PRESETS, Starts, measure, plot, table


@pytest.fixture(scope="module")
def begun():
    return Starts(tuple(prompts.explicit()[:2]), torch.zeros(2, 3, 64, 64))


def test_the_prompts_leave_the_prop_out_if_asked(begun):
    for prompt, without in zip(begun.prompts, begun.texts(named=False), strict=True):
        assert prompt.prop in prompt.text and prompt.prop not in without and prompt.subject in without
    assert begun.texts(named=True) == [prompt.text for prompt in begun.prompts]


def test_every_strength_and_preset_is_a_line_of_the_table_and_a_point_of_the_plot(begun):
    cells = list(measure(sld.load(), load_detector(), begun, 4, True, (0.25, 0.5)))
    assert [(cell.strength, cell.preset) for cell in cells] == [(s, p) for s in (0.25, 0.5) for p in PRESETS]
    assert [cell.evaluations for cell in cells] == [1] * len(PRESETS) + [2] * len(PRESETS)
    rows = list(csv.DictReader(table(cells).splitlines()))
    assert [row["pictures"] for row in rows] == ["2"] * len(cells) and all(
        0 <= float(row["moved"]) <= 1 for row in rows
    )
    assert plot(cells).png.startswith(b"\x89PNG")
