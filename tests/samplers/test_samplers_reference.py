"""Whole chains of latents beside those of diffusers' schedulers, which run unmodified."""

from typing import Any

import numpy as np
import pytest
import torch
from chains import chain, estimate, network, normal, schedule
from conftest import ALGORITHM, EXACT
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
)
from torch import Tensor
from torch.testing import assert_close

from sld.samplers import DDIM, LMS, PNDM, DPMpp2M, Euler, EulerAncestral

BETAS: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}
DDIM_BETAS = {**BETAS, "set_alpha_to_one": False, "clip_sample": False}
PNDM_BETAS = {**BETAS, "set_alpha_to_one": False, "skip_prk_steps": True}

SPACINGS = ("leading", "trailing", "linspace")
DTYPES = (torch.float32, torch.float64)

# One method in other coordinates: float32 rounds at sigma_max = 14.6 there, and timesteps of linspace to 6e-8 of them.
CLOSE = {torch.float64: ALGORITHM, torch.float32: {"rtol": 1e-4, "atol": 2e-5}}


class Wide(Tensor):
    """Latents that stay float64 where a reference casts its sample to float32."""

    def to(self, *args, **kwargs):
        return self if args == (torch.float32,) else super().to(*args, **kwargs)


def with_alpha_bar(reference, alpha_bar: Tensor):
    """The reference on the schedule alpha_bar, of any precision."""
    reference.alphas_cumprod = alpha_bar
    if hasattr(reference, "final_alpha_cumprod"):
        reference.final_alpha_cumprod = alpha_bar[0]
    return reference


def chain_of(reference, steps: int, x: Tensor, eta: float = 0.0) -> Tensor:
    """Latents of a scheduler whose x has unit variance, with the noise of `chain`."""
    reference.set_timesteps(steps)
    visited = []
    for i, t in enumerate(reference.timesteps):
        options = {"eta": eta, "variance_noise": normal(100 + i, x.dtype)} if eta else {}
        x = reference.step(network(x, t), t, x, **options).prev_sample
        visited.append(x)
    return torch.stack(visited)


def set_sigmas(reference, steps: int, dtype: torch.dtype) -> None:
    """set_timesteps, whose tables are rounded to float32, and in float64 the same tables again without rounding."""
    reference.set_timesteps(steps)
    if dtype == torch.float64:
        a, t = reference.alphas_cumprod.numpy(), reference.timesteps.double().numpy()
        if reference.config.timestep_spacing == "linspace" and reference.timesteps.is_floating_point():
            t = np.linspace(0, 999, steps)[::-1].copy()
        sigmas = np.interp(t, np.arange(1000), ((1 - a) / a) ** 0.5)
        reference.sigmas, reference.timesteps = torch.tensor([*sigmas, 0.0]), torch.tensor(t)


def chain_on_sigmas(reference, steps: int, x: Tensor) -> Tensor:
    """Latents of a scheduler of the k-diffusion family, from unit variance, scaled back to it; noise as in `chain`."""
    set_sigmas(reference, steps, x.dtype)
    scale = (reference.sigmas**2 + 1) ** 0.5
    x = scale[0] * (x.as_subclass(Wide) if x.dtype == torch.float64 else x)
    ancestral = isinstance(reference, EulerAncestralDiscreteScheduler)
    visited = []
    for i, t in enumerate(reference.timesteps):
        options = {"generator": torch.Generator().manual_seed(100 + i)} if ancestral else {}
        x = reference.step(network(reference.scale_model_input(x, t), t), t, x, **options).prev_sample
        visited.append(x.as_subclass(Tensor) / scale[i + 1])
    return torch.stack(visited)


@pytest.mark.parametrize("steps", [20, 50])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_ddim_is_bit_equal_to_diffusers(spacing: str, steps: int) -> None:
    """Killed mutants: final alpha_bar 1, levels of transfer swapped, offset 0, other orders of operation."""
    reference, x = DDIMScheduler(**DDIM_BETAS, timestep_spacing=spacing), normal(0)
    assert_close(chain(getattr(DDIM, spacing)(schedule(), steps), x), chain_of(reference, steps, x), **EXACT)


@pytest.mark.parametrize("eta", [0.3, 1.0])
@pytest.mark.parametrize("steps", [20, 50])
def test_ddim_with_noise_is_bit_equal_to_diffusers(steps: int, eta: float) -> None:
    """Killed mutants: no room left for the noise, eta under the square root."""
    reference, x = DDIMScheduler(**DDIM_BETAS), normal(0)
    assert_close(chain(DDIM.leading(schedule(), steps, eta=eta), x), chain_of(reference, steps, x, eta), **EXACT)


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_ddim_follows_diffusers_in_float64(eta: float, spacing: str) -> None:
    own, x = schedule(torch.float64), normal(0, torch.float64)
    reference = with_alpha_bar(DDIMScheduler(**DDIM_BETAS, timestep_spacing=spacing), own.alpha_bar)
    assert_close(chain(getattr(DDIM, spacing)(own, 20, eta=eta), x), chain_of(reference, 20, x, eta), **ALGORITHM)


def test_a_final_alpha_bar_of_one_is_set_alpha_to_one() -> None:
    reference, x = DDIMScheduler(**{**DDIM_BETAS, "set_alpha_to_one": True}), normal(0)
    assert_close(chain(DDIM.leading(schedule(final_alpha_one=True), 20), x), chain_of(reference, 20, x), **EXACT)


@pytest.mark.parametrize("steps", [1, 2, 3, 20, 50])
def test_pndm_is_bit_equal_to_diffusers(steps: int) -> None:
    """Killed mutants: the repeated step kept in history or taken from its end, division by 24, final alpha_bar 1."""
    reference, x = PNDMScheduler(**PNDM_BETAS), normal(0)
    assert_close(chain(PNDM.leading(schedule(), steps), x), chain_of(reference, steps, x), **EXACT)


def test_fifty_steps_of_pndm_are_fifty_one_evaluations_at_the_timesteps_of_diffusers() -> None:
    reference = PNDMScheduler(**PNDM_BETAS)
    reference.set_timesteps(50)
    timesteps = PNDM.leading(schedule(), 50).timesteps
    assert len(timesteps) == 51 and timesteps[1] == timesteps[2]
    assert list(timesteps) == reference.timesteps.tolist()


@pytest.mark.parametrize("steps", [20, 33])
def test_pndm_follows_diffusers_in_float64(steps: int) -> None:
    own, x = schedule(torch.float64), normal(0, torch.float64)
    reference = with_alpha_bar(PNDMScheduler(**PNDM_BETAS), own.alpha_bar)
    assert_close(chain(PNDM.leading(own, steps), x), chain_of(reference, steps, x), **ALGORITHM)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("steps", [2, 8, 20, 33])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(Euler, EulerDiscreteScheduler), (EulerAncestral, EulerAncestralDiscreteScheduler), (LMS, LMSDiscreteScheduler)],
    ids=["euler", "ancestral", "lms"],
)
def test_samplers_on_sigmas_follow_diffusers(ours, theirs, spacing: str, steps: int, dtype: torch.dtype) -> None:
    """Both from unit variance, which for linspace and trailing is not where the reference itself begins.

    Killed mutants: last sigma that of timestep 0, alpha_bar interpolated instead of sigma, offset 0, one node for LMS.
    """
    if theirs is LMSDiscreteScheduler:
        pytest.importorskip("scipy", reason="diffusers' LMS integrates with scipy")
    own, x = schedule(dtype), normal(0, dtype)
    reference = with_alpha_bar(theirs(**BETAS, timestep_spacing=spacing), own.alpha_bar)
    assert_close(chain(getattr(ours, spacing)(own, steps), x), chain_on_sigmas(reference, steps, x), **CLOSE[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("steps", [1, 2, 8, 20, 33])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_dpmpp_follows_diffusers(spacing: str, steps: int, dtype: torch.dtype) -> None:
    """Killed mutants: 1 / r for 1 / (2 r), a second-order last step, leading in `steps` parts, fractional linspace."""
    own, x = schedule(dtype), normal(0, dtype)
    reference = with_alpha_bar(DPMSolverMultistepScheduler(**BETAS, timestep_spacing=spacing), own.alpha_bar)
    set_sigmas(reference, steps, dtype)
    expected, y = [], x.as_subclass(Wide) if dtype == torch.float64 else x
    for t in reference.timesteps:
        y = reference.step(network(y, t), t, y).prev_sample
        expected.append(y.as_subclass(Tensor))
    assert_close(chain(getattr(DPMpp2M, spacing)(own, steps), x), torch.stack(expected), **CLOSE[dtype])


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_pndm_is_bit_equal_to_diffusers_in_either_spacing(spacing: str) -> None:
    reference, x = PNDMScheduler(**PNDM_BETAS, timestep_spacing=spacing), normal(0)
    assert_close(chain(getattr(PNDM, spacing)(schedule(), 20), x), chain_of(reference, 20, x), **EXACT)


@pytest.mark.parametrize("steps", [1, 2, 3, 20, 50])
def test_a_history_of_outputs_is_that_of_diffusers_on_a_v_prediction(steps: int) -> None:
    """Killed mutants: read at the end of the first step, history of eps."""
    own, x = schedule(prediction="v"), normal(0)
    reference = PNDMScheduler(**PNDM_BETAS, prediction_type="v_prediction")
    sampler = PNDM.leading(own, steps, history="output")
    visited, state = [], sampler.init(x)
    for i, t in enumerate(sampler.timesteps):
        x, state = sampler.step(i, x, estimate(network(x, t), x, t, own), state)
        visited.append(x)
    assert_close(torch.stack(visited), chain_of(reference, steps, normal(0)), **EXACT)


@pytest.mark.parametrize("steps", [20, 50])
def test_a_v_prediction_goes_the_way_of_diffusers(steps: int) -> None:
    """Killed mutants: signal and noise swapped in the conversion to eps, or in the one to x0."""
    own, x = schedule(torch.float64, prediction="v"), normal(0, torch.float64)
    reference = with_alpha_bar(DDIMScheduler(**DDIM_BETAS, prediction_type="v_prediction"), own.alpha_bar)
    reference.set_timesteps(steps)
    sampler = DDIM.leading(own, steps)
    y, state = x, sampler.init(x)
    for i, t in enumerate(sampler.timesteps):
        v = network(x, t)
        said = estimate(v, x, t, own)
        x, state = sampler.step(i, x, said, state)
        y, y0 = reference.step(network(y, t), t, y, return_dict=False)
        assert_close(said.x0, y0, **ALGORITHM)
        assert_close(x, y, **ALGORITHM)
