import math

import pytest
import torch
from conftest import ALGORITHM, EXACT
from torch.testing import assert_close

from sld.guidance import CFGPredictions, ClassifierFreeGuidance, TextPrediction, Unguided


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def guide(rule: ClassifierFreeGuidance, rows: CFGPredictions) -> torch.Tensor:
    return rule(rows, rule.init(rows.text), 0, rule.params(50, len(rows.text), dtype=rows.text.dtype))[0]


def test_conditions_are_named_in_the_order_of_the_rows():
    assert Unguided().conditions == ("text",)
    assert ClassifierFreeGuidance().conditions == ("uncond", "text")


def test_unguided_follows_the_text():
    rule, text = Unguided(), noise(2, 4, 8, 8)
    assert rule(TextPrediction(text), rule.init(text), 0, rule.params(50, 2))[0] is text


def test_cfg_is_its_equation_element_by_element():
    """Killed by: rows swapped, the scale's sign turned, the scale applied to the text alone."""
    rows = CFGPredictions(
        noise(2, 4, 3, 3, seed=1, dtype=torch.float64), noise(2, 4, 3, 3, seed=2, dtype=torch.float64)
    )
    expected = [
        e0 + 7.5 * (ep - e0)
        for e0, ep in zip(rows.uncond.flatten().tolist(), rows.text.flatten().tolist(), strict=True)
    ]
    assert_close(
        guide(ClassifierFreeGuidance(7.5), rows).flatten(), torch.tensor(expected, dtype=torch.float64), **ALGORITHM
    )


@pytest.mark.parametrize(("scale", "row"), [(0.0, "uncond"), (1.0, "text")])
def test_scale_zero_and_one_follow_one_row_alone(scale: float, row: str):
    rows = CFGPredictions(
        noise(1, 4, 8, 8, seed=1, dtype=torch.float64), noise(1, 4, 8, 8, seed=2, dtype=torch.float64)
    )
    assert_close(guide(ClassifierFreeGuidance(scale), rows), getattr(rows, row), **ALGORITHM)


def test_scales_per_image_equal_separate_runs():
    rows, scales = CFGPredictions(noise(3, 4, 8, 8, seed=1), noise(3, 4, 8, 8, seed=2)), (1.0, 7.5, 12.0)
    alone = [
        guide(ClassifierFreeGuidance(s), CFGPredictions(*(row[k : k + 1] for row in rows)))
        for k, s in enumerate(scales)
    ]
    assert_close(guide(ClassifierFreeGuidance(scales), rows), torch.cat(alone), **EXACT)


def test_scales_for_another_number_of_images_are_refused():
    with pytest.raises(ValueError, match="settings for 2 images, the batch has 3"):
        ClassifierFreeGuidance((7.5, 5.0)).params(50, 3)


@pytest.mark.parametrize("scale", [-1.0, math.nan, math.inf, True, "7.5", (7.5, -1.0)])
def test_scales_out_of_range_are_refused(scale):
    with pytest.raises(ValueError, match="scale must be a finite number >= 0"):
        ClassifierFreeGuidance(scale)
