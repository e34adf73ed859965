import pytest
import torch
from chains import normal, schedule
from conftest import ALGORITHM, EXACT
from diffusers import DDIMScheduler
from torch.testing import assert_close

from sld.samplers import leading, linspace, trailing, transfer

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def reference_timesteps(spacing: str, steps: int) -> list[int]:
    reference = DDIMScheduler(**BETAS, steps_offset=1, timestep_spacing=spacing)
    reference.set_timesteps(steps)
    return reference.timesteps.tolist()


def test_alpha_bar_is_bit_equal_to_diffusers() -> None:
    assert_close(schedule().alpha_bar, DDIMScheduler(**BETAS).alphas_cumprod, **EXACT)


def test_noise_is_added_as_in_diffusers() -> None:
    x0, eps, t = normal(0), normal(1), torch.tensor([3, 981])
    assert_close(schedule().add_noise(x0, eps, t), DDIMScheduler(**BETAS).add_noise(x0, eps, t), **EXACT)


def test_leading_timesteps_are_those_of_diffusers() -> None:
    for steps in range(1, 1000):
        assert list(leading(schedule(), steps)) == reference_timesteps("leading", steps)


def test_trailing_timesteps_are_those_of_diffusers_without_its_occasional_minus_one() -> None:
    for steps in range(1, 1001):
        expected = reference_timesteps("trailing", steps)
        assert list(trailing(schedule(), steps)) == expected[:steps]
        assert expected[steps:] in ([], [-1])


def test_linspace_timesteps_round_to_those_of_diffusers() -> None:
    for steps in range(2, 1001):
        assert [round(t) for t in linspace(schedule(), steps)] == reference_timesteps("linspace", steps)


def test_a_single_linspace_step_starts_at_the_noisiest_timestep() -> None:
    assert linspace(schedule(), 1) == (999.0,)


@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("t", [0, 1, 981, 12.25, 998.5, torch.tensor([7, 640])], ids=str)
def test_what_was_added_is_read_back_from_a_right_prediction(prediction: str, t: float | torch.Tensor) -> None:
    own = schedule(torch.float64, prediction=prediction)
    x0, eps = normal(0, torch.float64), normal(1, torch.float64)
    x = own.add_noise(x0, eps, t)
    a = own.level(t).over(x)
    output = eps if prediction == "eps" else a.signal * eps - a.noise * x0
    estimate = own.estimate(output, x, own.level(t))
    assert_close(estimate.eps, eps, **ALGORITHM)
    assert_close(estimate.x0, x0, **ALGORITHM)
    assert estimate.output is output


def test_transfer_follows_the_ray_through_x0_and_eps() -> None:
    own = schedule(torch.float64)
    x0, eps = normal(0, torch.float64), normal(1, torch.float64)
    x = own.add_noise(x0, eps, 700)
    moved = transfer(own.estimate(eps, x, own.level(700)), own.level(30))
    assert_close(moved, own.add_noise(x0, eps, 30), **ALGORITHM)


def test_a_whole_float_is_the_same_timestep_as_the_int() -> None:
    own = schedule(torch.float64)
    for t in (0, 500, 999):
        assert_close(own.level(float(t)), own.level(t), **ALGORITHM)


@pytest.mark.parametrize("spacing", [leading, trailing, linspace])
@pytest.mark.parametrize("steps", [0, -1, 1001, 2.0, True, None])
def test_a_number_of_steps_that_cannot_be_is_refused(spacing, steps) -> None:
    with pytest.raises(ValueError, match="steps must be a whole number from 1 to 1000; got"):
        spacing(schedule(), steps)


def test_leading_timesteps_beyond_the_schedule_are_refused() -> None:
    with pytest.raises(ValueError, match="start at timestep 1000, the last of the schedule is 999"):
        leading(schedule(), 1000)
    assert leading(schedule(steps_offset=0), 1000)[0] == 999
