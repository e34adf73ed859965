"""Pictures to start from: how files are read, what a run keeps of them, and the command line.

Mutants that failed here: EXIF left alone, transparent parts black, 16 bits cut at 255, a mask by its lower half, a
picture that is not the one of the sidecar, one posterior for all images, images told apart by their noise alone, a
mask that is forgotten by the last step.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from running import here

import sld
from sld.config import SAMPLERS
from sld.image_to_image import read_start
from sld.starting import fitted, own_size, read_pair, read_picture

RAMP = np.arange(64 * 48, dtype=np.uint16).reshape(48, 64)
PICTURE = Image.fromarray(np.dstack([RAMP % 256, RAMP // 12, 255 - RAMP % 256]).astype(np.uint8))
LEFT = Image.fromarray(np.where(np.arange(64) < 32, 255, 0).astype(np.uint8)[None].repeat(48, 0))
RIGHT_KEPT = (slice(None), slice(None), slice(None), slice(8, None))


def pixels(image):
    return np.asarray(read_picture(image).image)


def saved(image, path, **options):
    image.save(path, **options)
    return path


def transparent(alpha):
    image = PICTURE.convert("RGBA")
    image.putalpha(alpha)
    return image


@pytest.fixture(scope="module")
def pipe():
    return sld.load()


def final(pipe, prompt, seeds, start, steps=4, **options):
    sampler = pipe.sampler(options.pop("sampler", None), steps, start.strength)
    *_, last = pipe.sample(prompt, seeds, sampler=sampler, start=start, **options)
    return last.x


def test_a_picture_is_read_as_a_viewer_shows_it(tmp_path):
    """EXIF's orientation, transparent and opaque alpha, grey, palettes, one bit, 16 bits, CMYK."""
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn to the right
    turned = saved(PICTURE.transpose(Image.Transpose.ROTATE_90), tmp_path / "turned.png", exif=exif)
    assert np.array_equal(pixels(turned), np.asarray(PICTURE))

    assert np.array_equal(pixels(saved(transparent(255), tmp_path / "opaque.png")), np.asarray(PICTURE))
    assert not read_picture(transparent(255)).changes
    seen = read_picture(saved(transparent(0), tmp_path / "clear.png"))
    assert np.all(np.asarray(seen.image) == 255) and "transparent parts are taken for white" in seen.changes[0]

    grey = PICTURE.convert("L")
    for image in (grey, grey.convert("LA")):
        assert np.array_equal(pixels(image), np.asarray(grey.convert("RGB")))
    wide = saved(Image.fromarray((RAMP * 16).astype(np.uint16)), tmp_path / "16.png")
    assert np.array_equal(pixels(wide)[..., 0], (RAMP * 16) >> 8)
    palette = PICTURE.convert("P")
    assert np.array_equal(pixels(saved(palette, tmp_path / "p.png")), np.asarray(palette.convert("RGB")))
    assert set(np.unique(pixels(saved(PICTURE.convert("1"), tmp_path / "1.png")))) == {0, 255}
    assert pixels(saved(PICTURE.convert("CMYK"), tmp_path / "cmyk.jpg")).shape == (48, 64, 3)


def test_colours_that_are_not_srgb_are_told(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    (said,) = read_picture(saved(PICTURE, tmp_path / "lab.png", icc_profile=profile)).changes
    assert "taken for sRGB" in said
    usual = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert not read_picture(saved(PICTURE, tmp_path / "srgb.png", icc_profile=usual)).changes


def test_what_is_no_picture_is_named_in_one_line(tmp_path):
    whole = BytesIO()
    PICTURE.save(whole, format="PNG")
    (tmp_path / "cut.png").write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    (tmp_path / "text.png").write_text("a fox")
    PICTURE.save(tmp_path / "two.gif", save_all=True, append_images=[LEFT.convert("RGB")])
    PICTURE.convert("F").save(tmp_path / "f.tif")
    expected = {
        "none.png": "there is no such file",
        ".": "Is a directory",
        "text.png": "no picture that can be read",
        "cut.png": "cannot be read",
        "two.gif": "holds 2 pictures",
        "f.tif": "numbers of 32 bits",
    }
    for name, message in expected.items():
        with pytest.raises(ValueError, match=message) as error:
            read_picture(tmp_path / name)
        assert str(error.value).startswith(str(tmp_path / name)) and "\n" not in str(error.value)


def test_a_mask_is_white_where_the_picture_is_made_anew(tmp_path):
    for mask in (LEFT, LEFT.convert("RGB"), LEFT.convert("1"), LEFT.convert("RGBA")):
        _, anew = fitted(*read_pair(PICTURE, mask), (48, 64), 4)
        assert anew is not None and anew[:, :32].all() and not anew[:, 32:].any()
    with pytest.raises(ValueError, match="transparent parts"):
        read_pair(PICTURE, transparent(LEFT))
    with pytest.raises(ValueError, match="32 x 32 pixels, and its picture 64 x 48"):
        read_pair(PICTURE, LEFT.resize((32, 32)))
    thin = Image.fromarray(np.where(np.arange(64) == 5, 255, 0).astype(np.uint8)[None].repeat(48, 0))
    for mask in (Image.new("L", (64, 48)), thin):
        with pytest.raises(ValueError, match="nothing would be made anew"):
            fitted(*read_pair(PICTURE, mask), (48, 64), 4)


def test_a_size_that_does_not_fit_is_resized_with_a_notice_or_refused():
    def at(width, height):
        return read_picture(PICTURE.resize((width, height)))

    assert own_size(at(640, 488), (512, 512), 8) == (488, 640) and own_size(at(647, 490), (512, 512), 8) == (488, 640)
    with pytest.raises(ValueError, match=r"4000 x 3000 pixels, and this model makes 512 x 512.*such as 592x440"):
        own_size(at(4000, 3000), (512, 512), 8)
    with pytest.raises(ValueError, match="such as 512x512"):
        own_size(at(64, 64), (512, 512), 8)
    with pytest.warns(UserWarning, match="from 647 x 490 to 640 x 488 pixels$"):
        at(647, 490).warn_of_changes((488, 640))
    with pytest.warns(UserWarning, match="which changes its shape"):
        at(640, 480).warn_of_changes((512, 512))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        at(640, 480).warn_of_changes((480, 640))


def test_python_takes_pictures_and_says_what_is_missing(pipe, tmp_path):
    (made,) = pipe("a bear at the beach", image=saved(PICTURE, tmp_path / "a.png"), strength=0.5, steps=2)
    assert made.size == (64, 48)
    assert pipe.sampler(steps=50, strength=0.29).timesteps == pipe.sampler(steps=50).timesteps[36:]
    with pytest.raises(ValueError, match="give image too"):
        pipe("a bear", mask=LEFT)
    with pytest.raises(ValueError, match="leaves none of 2 steps"):
        pipe("a bear", image=PICTURE, strength=0.4, steps=2)
    with pytest.raises(ValueError, match="from one picture, or from 2; got 3"):
        pipe(["a bear"] * 2, image=[PICTURE] * 3, steps=2)
    with pytest.raises(ValueError, match="this model inpaints: give a picture and a mask"):
        inpainting = replace(pipe.config, unet=replace(pipe.config.unet, inpaints=True))
        next(iter(replace(pipe, config=inpainting).sample("a bear", start=read_start(PICTURE, pipe.config))))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_any_sampler_keeps_what_the_mask_leaves(pipe, sampler):
    """Under SLD, which acts from the first evaluation. What stays are the picture's latents themselves."""
    start = read_start(PICTURE, pipe.config, 0.5, LEFT)
    clean = pipe.vae.encode(start.pictures, torch.randn((1, 4, 12, 16), generator=torch.Generator().manual_seed(3)))
    x = final(pipe, "a bear", 3, start, guidance=pipe.guidance("max"), sampler=sampler)
    assert torch.equal(x[RIGHT_KEPT], clean[RIGHT_KEPT]) and not torch.equal(x, clean)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_part_of_the_steps_visits_the_levels_of_the_whole_run(pipe, sampler):
    """Killed by: Karras' levels spread over what is left."""
    whole, part = (pipe.sampler(sampler, 8, strength) for strength in (1.0, 0.5))
    for own, all_of_it in zip(part.levels(pipe.schedule), whole.levels(pipe.schedule), strict=True):
        assert torch.equal(own[-3:], all_of_it[-3:])
    assert len(part.timesteps) == 4 + sampler.startswith("pndm")


@pytest.mark.parametrize("masks", [None, [LEFT, LEFT.transpose(Image.Transpose.FLIP_LEFT_RIGHT), LEFT]])
def test_an_image_has_the_same_bits_in_any_batch(pipe, masks):
    pipe = replace(pipe, numerics="invariant")
    images, seeds = [PICTURE, PICTURE.transpose(Image.Transpose.FLIP_TOP_BOTTOM), PICTURE], [1, 1, 2]
    options = {"guidance": pipe.guidance("max"), "sampler": "euler-ancestral"}
    together = final(pipe, "a bear", seeds, read_start(images, pipe.config, 0.5, masks), **options)
    for k, (image, seed) in enumerate(zip(images, seeds, strict=True)):
        start = read_start(image, pipe.config, 0.5, masks and masks[k])
        assert torch.equal(final(pipe, "a bear", seed, start, **options)[0], together[k])


def test_a_run_from_a_picture_goes_on_from_any_state(pipe):
    start = read_start(PICTURE, pipe.config, 0.75, LEFT)
    run = {"sampler": pipe.sampler("euler-ancestral", 4, 0.75), "start": start}
    states = list(pipe.sample("a bear", 5, **run))
    *_, last = pipe.sample("a bear", 5, **run, state=states[1])
    assert torch.equal(last.x, states[-1].x)


def test_the_command_line_records_the_picture_and_finds_it_again(tmp_path):
    """By its path, beside the sidecar, or where --image says; another picture in its place is refused."""
    saved(PICTURE, tmp_path / "a.png"), saved(LEFT, tmp_path / "m.png")
    base = ("generate", "a bear", "--steps", 4)
    run = here(*base, "--image", "a.png", "--mask", "m.png", "--strength", 0.5, "--out", "o", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    sidecar = tmp_path / "o" / "a-bear-medium-0.json"
    recorded = json.loads(sidecar.read_text())["request"]["start"]
    assert (
        recorded["strength"] == 0.5 and recorded["mask"]["path"] == "m.png" and len(recorded["image"]["sha256"]) == 64
    )

    for name in ("a.png", "m.png"):
        (tmp_path / name).rename(tmp_path / "o" / name)
    again = here("generate", "--again", sidecar, "--out", "again", cwd=tmp_path)
    assert (again.returncode, again.stderr) == (0, "")
    made = [Image.open(folder / "a-bear-medium-0.png").tobytes() for folder in (tmp_path / "o", tmp_path / "again")]
    assert made[0] == made[1]

    (tmp_path / "o" / "a.png").rename(tmp_path / "moved.png")
    saved(LEFT, tmp_path / "a.png")
    lost = here("generate", "--again", sidecar, "--out", "again", cwd=tmp_path)
    assert lost.returncode == 2 and "starts from a.png" in lost.stderr and "--image" in lost.stderr
    assert here("generate", "--again", sidecar, "--image", "moved.png", "--out", "2", cwd=tmp_path).returncode == 0
