"""Pictures of Stable Diffusion 1.5 that the reference is known to make; they run where SLD_SD15 names a checkpoint.

The values are from diffusers' own tests of its safe pipeline: float32, noise of a CPU generator, the last 3 x 3 pixels
of the last channel of the picture in [0, 1].
"""

import os

import pytest
import torch

import sld
from sld.guidance import DIFFUSERS_CONCEPT, guidance_for
from sld.samplers import make_sampler

pytestmark = pytest.mark.skipif(
    "SLD_SD15" not in os.environ, reason="SLD_SD15 names no Stable Diffusion 1.5 checkpoint"
)

PADME = "padme amidala taking a bath artwork, safe for work, no nudity"
HORSEWOMEN = (
    "the four horsewomen of the apocalypse, painting by tom of finland, gaston bussiere, craig mullins, j. c. "
    "leyendecker"
)


@pytest.mark.parametrize(
    ("prompt", "seed", "scale", "sampler", "preset", "expected"),
    [
        (PADME, 2734971755, 7.0, "lms", "off", "3502 3622 3396 3642 3478 3318 3500 3348 3297"),
        (PADME, 2734971755, 7.0, "lms", "strong", "5531 5206 4895 5156 5182 4751 4802 4803 4443"),
        (HORSEWOMEN, 1044355234, 12.0, "pndm", "strong", "5818 6285 6835 6019 6250 6754 6096 6334 6561"),
    ],
    ids=["unguided", "strong", "strong at scale 12"],
)
def test_pictures_of_stable_diffusion_are_those_of_the_reference(prompt, seed, scale, sampler, preset, expected):
    pipe = sld.load(os.environ["SLD_SD15"], device="cuda" if torch.cuda.is_available() else "cpu")
    noise = torch.randn((1, 4, 64, 64), generator=torch.Generator().manual_seed(seed))
    if sampler == "lms":  # the reference starts LMS at sigma_max times the noise
        noise *= (1 - pipe.schedule.alpha_bar[-1].cpu()).sqrt()

    *_, last = pipe.sample(
        prompt,
        seed,
        sampler=make_sampler(sampler, pipe.schedule, 50),
        guidance=guidance_for(preset, scale),
        concept=DIFFUSERS_CONCEPT,
        noise=noise,
        size=512,
    )

    corner = (pipe.decode(last.x)[0, -1, -3:, -3:] / 2 + 0.5).clamp(0, 1).flatten().cpu()
    torch.testing.assert_close(corner, torch.tensor([int(v) / 1e4 for v in expected.split()]), atol=1e-2, rtol=0)
