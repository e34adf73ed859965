"""What a diffusers folder states is honoured, or refused by file and key.

Pictures are compared with those that diffusers' StableDiffusionPipeline makes of the same folder in float64, in which
rounding hides no other cause.
"""

import inspect
import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers import StableDiffusionPipeline
from reference import in_float64, safe_pipeline

import sld
from sld.checkpoints import CheckpointError
from sld.checkpoints.folders import read_config, write_configs
from sld.checkpoints.parts import parts
from sld.config import SAMPLERS
from sld.noise import Noise
from sld.samplers import Schedule
from sld.testbed.vocabulary import write_tokenizer

PNDM, DDIM, EULER = "PNDMScheduler", "DDIMScheduler", "EulerDiscreteScheduler"
ANCESTRAL, LMS, DPM = "EulerAncestralDiscreteScheduler", "LMSDiscreteScheduler", "DPMSolverMultistepScheduler"
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
V = {"prediction_type": "v_prediction"}
ZERO = {**V, "rescale_betas_zero_snr": True}
KARRAS = {"use_karras_sigmas": True}
LEADING, TRAILING, LINSPACE = ({"timestep_spacing": name} for name in ("leading", "trailing", "linspace"))
PLMS = {"skip_prk_steps": True}

SCHEDULER = "scheduler/scheduler_config.json"
CLOSE = {"rtol": 0, "atol": 1e-11}  # one method in other coordinates, in float64


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder as diffusers writes it, of tiny random parts; and these, in float64."""
    words = tmp_path_factory.mktemp("words")
    write_tokenizer(words)
    folder = tmp_path_factory.mktemp("made") / "model"
    pipe = safe_pipeline(words)
    with torch.no_grad():  # attention less sharp than there, which would amplify our rounding in float32
        for weight in (weight for name, weight in pipe.unet.named_parameters() if "attn2" in name and "weight" in name):
            weight /= 8
    pipe = StableDiffusionPipeline(**{**pipe.components, "image_encoder": None}, requires_safety_checker=False)
    pipe.save_pretrained(folder)
    return folder, pipe.to(torch.float64).components


@pytest.fixture
def folder(made, tmp_path):
    return Path(shutil.copytree(made[0], tmp_path / "folder"))


def edit(path: Path, **changes) -> None:
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not ...}))


def state(folder: Path, kind: str, changes: dict) -> None:
    """The folder with another scheduler, of which no more is said than this."""
    (folder / SCHEDULER).write_text(json.dumps({"_class_name": kind, **SD, **changes}))
    edit(folder / "model_index.json", scheduler=["diffusers", kind])


def theirs(folder: Path, components: dict, steps: int = 4) -> torch.Tensor:
    """The picture that diffusers makes, (3, h, w) in [0, 1], computed in float64 from noise of float32."""
    kind = json.loads((folder / "model_index.json").read_text())["scheduler"][1]
    noise = torch.Generator().manual_seed(7)
    first = torch.randn(1, 4, 8, 8, generator=noise).double()
    with in_float64(getattr(diffusers, kind)) as scheduler:
        parts = {**components, "scheduler": scheduler.from_pretrained(folder / "scheduler")}
        pipe = StableDiffusionPipeline(**parts, requires_safety_checker=False)
        pipe.set_progress_bar_config(disable=True)
        return pipe("a fox", latents=first, generator=noise, num_inference_steps=steps, output_type="pt").images[0]


def ours(folder: Path, dtype: torch.dtype, steps: int = 4) -> torch.Tensor:
    """Our picture, computed in a dtype from noise of float32."""
    pipe = sld.load(folder)
    pipe = replace(pipe, schedule=Schedule.from_config(pipe.config.schedule, dtype))
    for network in (pipe.unet, pipe.vae, *pipe.texts):
        network.to(dtype)
    draw = Noise.draw
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Noise, "draw", lambda noise: draw(noise).to(dtype))
        torch.set_default_dtype(dtype)  # of fractional timesteps
        try:
            sampled = pipe.sample("a fox", 7, sampler=pipe.sampler(steps=steps), guidance=pipe.guidance("off", 7.5))
            return (pipe.decode(list(sampled)[-1].x)[0] / 2 + 0.5).clamp(0, 1)
        finally:
            torch.set_default_dtype(torch.float32)


ACCEPTED = [
    (PNDM, PLMS, "pndm"),
    (PNDM, {**PLMS, **TRAILING, "set_alpha_to_one": True}, "pndm"),
    (PNDM, {**PLMS, **V, "rescale_betas_zero_snr": True}, "pndm-diffusers"),  # a key that this class does not read
    (PNDM, {**PLMS, "beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02, "steps_offset": 0}, "pndm"),
    (PNDM, {**PLMS, "num_train_timesteps": 500, "steps_offset": None, "trained_betas": None}, "pndm"),
    (DDIM, {}, "ddim"),
    (DDIM, {**V, **TRAILING, "set_alpha_to_one": False, "clip_sample": True}, "ddim"),
    (DDIM, {**ZERO, **TRAILING}, "ddim"),
    (EULER, {}, "euler"),
    (EULER, {**LEADING, **KARRAS}, "euler-karras"),
    (EULER, {**ZERO, **TRAILING}, "euler"),
    (EULER, {**KARRAS, "num_train_timesteps": 500}, "euler-karras"),
    (ANCESTRAL, {**V, **TRAILING}, "euler-ancestral"),
    (ANCESTRAL, {**ZERO, **TRAILING}, "euler-ancestral"),
    (LMS, LEADING, "lms"),
    (LMS, {**KARRAS, **V}, "lms-karras"),
    (DPM, {**LEADING, "lower_order_final": False, "lambda_min_clipped": float("-inf")}, "dpmpp-2m"),
    (DPM, {**KARRAS, **V, "euler_at_final": True}, "dpmpp-2m-karras"),
    (DPM, {**ZERO, **TRAILING}, "dpmpp-2m"),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "changes", "sampler"), ACCEPTED, ids=lambda x: x if isinstance(x, str) else "")
def test_a_folder_makes_diffusers_picture_and_so_does_the_folder_made_of_it(kind, changes, sampler, made, folder):
    """Mutants seen to fail: spacing, Karras' sigmas, zero SNR, betas, the end or v's history not read; x begun at 1;
    levels of x taken from the schedule's table, in which the terminal SNR is 0, while x goes on from sigma = 4096.
    """
    state(folder, kind, changes)
    picture = theirs(folder, made[1])
    assert read_config(folder).defaults.sampler == sampler
    torch.testing.assert_close(ours(folder, torch.float64), picture, **CLOSE)
    torch.testing.assert_close(ours(folder, torch.float32).double(), picture, rtol=0, atol=2e-5)
    write_configs(folder.with_name("again"), read_config(folder))
    assert read_config(folder.with_name("again")).schedule == read_config(folder).schedule
    torch.testing.assert_close(theirs(folder.with_name("again"), made[1]), picture, **CLOSE)


REFUSED = [
    *(
        (kind, {key: value}, key)
        for kind, key, value in (
            ("HeunDiscreteScheduler", "_class_name", "HeunDiscreteScheduler"),
            (PNDM, "skip_prk_steps", False),
            (PNDM, "timestep_spacing", "linspace"),
            (PNDM, "steps_offset", 2),
            (PNDM, "prediction_type", "sample"),
            (PNDM, "beta_schedule", "squaredcos_cap_v2"),
            (PNDM, "trained_betas", [0.00085 + k * 1e-5 for k in range(1000)]),
            (PNDM, "num_train_timesteps", 10**9),
            (PNDM, "beta_end", 1.5),
            (PNDM, "beta_start", "0.00085"),
            (DDIM, "thresholding", True),
            (EULER, "use_exponential_sigmas", True),
            (EULER, "use_beta_sigmas", True),
            (EULER, "interpolation_type", "log_linear"),
            (EULER, "final_sigmas_type", "sigma_min"),
            (EULER, "sigma_max", 10.0),
            (EULER, "timestep_type", "continuous"),
            (DPM, "solver_order", 3),
            (DPM, "solver_type", "heun"),
            (DPM, "algorithm_type", "sde-dpmsolver++"),
            (DPM, "use_lu_lambdas", True),
            (DPM, "variance_type", "learned"),
            (DPM, "lambda_min_clipped", -5.1),
            (LMS, "use_karras_sigmas", "yes"),
        )
    ),
    (PNDM, {}, "skip_prk_steps"),  # whose default is False
    (DDIM, {"rescale_betas_zero_snr": True}, "a network that predicts v"),
    (DDIM, {"_class_name": EULER}, "_class_name"),  # another class than in the index
]


@pytest.mark.parametrize(("kind", "changes", "key"), REFUSED, ids=lambda x: x if isinstance(x, str) else "")
def test_a_scheduler_that_asks_for_what_we_do_not_compute_is_refused_by_its_key(kind, changes, key, folder):
    """In one short line. Mutant seen to fail: fixed values not looked at."""
    state(folder, kind, PLMS | changes if changes and kind == PNDM else changes)
    with pytest.raises(CheckpointError, match=key) as caught:
        read_config(folder)
    assert "scheduler_config.json: " in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("model_index.json", "_class_name", "StableDiffusionDepth2ImgPipeline"),
        ("model_index.json", "unet", ["diffusers", "UNet3DConditionModel"]),
        ("model_index.json", "vae", [None, None]),
        ("model_index.json", "text_encoder", ["transformers", "T5EncoderModel"]),
        ("text_encoder/config.json", "use_attention_mask", True),
        ("text_encoder/config.json", "layer_norm_eps", 1e-6),
        ("text_encoder/config.json", "num_hidden_layers", 10**9),
        ("text_encoder/config.json", "vocab_size", "many"),
        ("unet/config.json", "layers_per_block", [1, 2]),
        ("unet/config.json", "layers_per_block", 10**9),
        ("unet/config.json", "cross_attention_dim", [32, 16]),
        ("unet/config.json", "only_cross_attention", [True, True]),
        ("unet/config.json", "norm_num_groups", 0),
        ("unet/config.json", "num_attention_heads", 4),
        ("unet/config.json", "attention_head_dim", None),
        ("unet/config.json", "sample_size", None),
        ("unet/config.json", "sample_size", [8, 8, 8]),
        ("unet/config.json", "block_out_channels", 32),
        ("unet/config.json", "down_block_types", None),
        ("unet/config.json", "up_block_types", ["UpBlock2D", "UpBlock2D"]),
        ("vae/config.json", "scaling_factor", 0),
        ("vae/config.json", "scaling_factor", float("nan")),
        ("vae/config.json", "down_block_types", ["DownEncoderBlock2D"]),
        ("vae/config.json", "up_block_types", ["AttnUpDecoderBlock2D", "UpDecoderBlock2D"]),
        ("vae/config.json", "latents_mean", [0.0]),
    ],
)
def test_a_value_that_we_have_no_network_for_is_refused_by_file_and_key(file, key, value, folder):
    """Mutants seen to fail: bounds taken off the layers of the UNet, or of the text encoder."""
    edit(folder / file, **{key: value})
    with pytest.raises(CheckpointError, match=key) as caught:
        read_config(folder)
    assert str(caught.value).startswith(f"{folder / file}: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "changes", "size"),
    [
        ("unet/config.json", {"sample_size": [8, 8]}, 16),
        ("unet/config.json", {"sample_size": [8, 12]}, (16, 24)),
        ("unet/config.json", {"sample_size": 32, "_diffusers_version": "0.4.0"}, 128),
        ("unet/config.json", {"sample_size": 32, "_diffusers_version": "0.9.0.dev0"}, 64),
        ("unet/config.json", {"layers_per_block": [1, 1], "cross_attention_dim": [32, 32]}, 16),
        ("unet/config.json", {"only_cross_attention": [False, False], "use_linear_projection": None}, 16),
        ("vae/config.json", {"scaling_factor": ..., "mid_block_add_attention": ..., "shift_factor": 0}, 16),
        ("text_encoder/config.json", {"hidden_act": ..., "layer_norm_eps": ..., "use_attention_mask": False}, 16),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_other_ways_to_say_the_same_are_read_as_diffusers_reads_them(file, changes, size, made, folder):
    """Old folders, lists of equal numbers, sizes that are not square, what is absent.

    Mutants seen to fail: the old number taken as it is, or in versions before or after; height for width, read or
    written; each kind of list left one; null for no truth value; 0 for no null; another default.
    """
    before = read_config(folder)
    edit(folder / file, **changes)
    config = read_config(folder)
    assert config.defaults.size == size
    assert (config.unet, config.vae, config.texts) == (before.unet, before.vae, before.texts)
    if "sample_size" in changes and size != 16:
        unet = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet")
        pipe = StableDiffusionPipeline(**{**made[1], "unet": unet}, requires_safety_checker=False)
        sides = pipe.unet.config.sample_size
        assert config.defaults.sides == tuple(2 * side for side in (sides if isinstance(sides, list) else [sides] * 2))
        write_configs(folder.with_name("again"), config)
        assert read_config(folder.with_name("again")).defaults == config.defaults


def test_the_tables_know_every_option_of_diffusers_schedulers():
    """A new option there must be looked at here. Mutants seen to fail: a key left out of the table, another default."""
    known = json.loads(Path(sld.checkpoints.__path__[0], "diffusers.json").read_text())["scheduler"]
    without_effect = {
        DDIM: {"dynamic_thresholding_ratio", "clip_sample_range", "sample_max_value"},  # without thresholding, clipping
        DPM: {"dynamic_thresholding_ratio", "sample_max_value", "lower_order_final", "euler_at_final"}  # at order 2
        | {"flow_shift", "time_shift_type"},
    }
    assert known["classes"].keys() == {entry.scheduler for entry in SAMPLERS.values()}
    for kind, own in known["classes"].items():
        options = inspect.signature(getattr(diffusers, kind).__init__).parameters
        usual = {key: option.default for key, option in options.items() if key != "self"}
        keys = known["absent"] | own | {"steps_offset": 0}
        assert {key: usual[key] for key in keys} == keys
        assert usual.keys() - keys == without_effect.get(kind, set())
        assert keys.keys() <= known["fixed"].keys() | set(known["names"].values()) | {
            "prediction_type",
            "timestep_spacing",
            "use_karras_sigmas",
        }


def test_a_sampler_that_diffusers_reads_otherwise_keeps_its_name_in_a_file_of_ours(folder):
    state(folder, PNDM, PLMS | V)
    config = read_config(folder)
    for sampler in ("pndm", "pndm-diffusers"):
        again = folder.with_name(sampler)
        write_configs(again, replace(config, defaults=replace(config.defaults, sampler=sampler)))
        assert read_config(again).defaults.sampler == sampler
        assert (again / "sld.json").exists() == (sampler == "pndm")


def test_what_diffusers_has_no_word_for_is_not_lost_in_silence(folder):
    state(folder, DDIM, ZERO)
    config = read_config(folder)
    with pytest.raises(CheckpointError, match="PNDMScheduler has no rescale_betas_zero_snr"):
        write_configs(folder.with_name("a"), replace(config, defaults=replace(config.defaults, sampler="pndm")))
    with pytest.raises(CheckpointError, match="no steps_offset but 1"):
        write_configs(folder.with_name("b"), replace(config, schedule=replace(config.schedule, steps_offset=0)))


VALUES = [None, True, False, 0, 1, -1, 7, 10**9, 10**30, 0.5, -0.5, 1e300, float("inf"), float("nan"), "", "linear"]
VALUES += ["8", [], [1], [8, 8], [True], ["x"], [[1]], {}, {"a": 1}]


def test_changed_configs_are_read_or_refused_in_one_line_that_names_the_file(folder):
    """No traceback, no endless work. Mutant seen to fail: a list let through where a number stands."""
    dice = random.Random(0)
    files = [folder / name for name in (SCHEDULER, "unet/config.json", "vae/config.json", "text_encoder/config.json")]
    files.append(folder / "model_index.json")
    texts = {path: path.read_text() for path in files}
    refused = 0
    for _ in range(250):
        path = dice.choice(files)
        values = json.loads(texts[path])
        for key in dice.sample(sorted(values), min(len(values), dice.randint(1, 2))):
            values[key] = dice.choice(VALUES)
        path.write_text(json.dumps(values))
        try:
            parts(read_config(folder))
        except CheckpointError as error:
            refused += 1
            assert "\n" not in str(error) and str(folder) in str(error)
        path.write_text(texts[path])
    for text in ("", "[]", "null", "[" * 100_000, '{"a": ', '{"a": ' + "9" * 5000 + "}", "\xff"):
        (folder / SCHEDULER).write_text(text, encoding="latin-1")
        with pytest.raises(CheckpointError, match=r"scheduler_config\.json"):
            read_config(folder)
    assert 60 < refused < 250
