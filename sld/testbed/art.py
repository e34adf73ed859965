"""The drawings of the embedded world: sprites of the Fluent emoji set (MIT) and backdrops drawn here.

The sprites are not part of the repository. They come from version 1.2.6 of the npm package
`@iconify-json/fluent-emoji-flat`, whose `icons.json` is looked for in the folder named by the environment variable
`SLD_ART`, by default `~/.cache/sld/fluent-emoji-flat`. Backdrops need nothing but Pillow.
"""

import hashlib
import io
import json
import os
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SIZE = 64
VARIANTS = 100
"""Number of different backdrops of each place."""

ICONS_SHA256 = "f5f4cf457c0db2ad5a2e42e033e02e0c87d10e43d0164cfffb3bb84914970a63"
ART_MISSING = """the emoji sprites are not at {path}; fetch them with
  npm pack @iconify-json/fluent-emoji-flat@1.2.6
  mkdir -p {path.parent}
  tar -xzf iconify-json-fluent-emoji-flat-1.2.6.tgz --strip-components=1 -C {path.parent} package/icons.json
or set SLD_ART to the folder that holds icons.json"""

Colour = tuple[int, int, int]
Point = tuple[float, float]

_SUPERSAMPLE = 4
_HALO = 1.3  # width of the light outline, in pixels


class ArtError(RuntimeError):
    """The emoji sprites are missing or are not the expected ones."""


def icons_path() -> Path:
    """Return the path at which the sprites are looked for."""
    folder = os.environ.get("SLD_ART", "~/.cache/sld/fluent-emoji-flat")
    return Path(folder).expanduser() / "icons.json"


@cache
def _icons(path: Path) -> dict[str, str]:
    """Return the body of each icon's SVG, by the icon's name.

    Raises:
        ArtError: the file is missing, or is not the one of version 1.2.6.
    """
    if not path.is_file():
        raise ArtError(ART_MISSING.format(path=path))
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != ICONS_SHA256:
        raise ArtError(f"{path} is not the icons.json of version 1.2.6: sha256 {digest}, expected {ICONS_SHA256}")
    return {name: icon["body"] for name, icon in json.loads(content)["icons"].items()}


@cache
def _icon(name: str) -> Image.Image:
    """Return an icon in large size, cropped to its visible part."""
    body = _icons(icons_path())[name]
    import resvg_py  # here, since only drawing sprites needs the extra `train`

    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32" width="256" height="256">{body}</svg>'
    png = resvg_py.svg_to_bytes(svg_string=svg, width=256, height=256, skip_system_fonts=True)
    image = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    return image.crop(image.getbbox())


@cache
def sprite(icon: str, size: int, angle: int) -> np.ndarray:
    """Draw an icon with a soft light outline, which keeps it legible on any backdrop.

    Args:
        icon: name in the emoji set.
        size: the longer side of the upright icon without its outline, in pixels.
        angle: counter-clockwise, in degrees.

    Returns:
        RGBA as uint8 (s, s, 4), where s is a few pixels more than `size`. Colours are not multiplied by alpha. The
        array is shared between calls: do not write to it.

    Raises:
        ArtError: the emoji set is missing or another version.
    """
    image = _icon(icon)
    scale = _SUPERSAMPLE * size / max(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
    side = _SUPERSAMPLE * (size + 10)
    canvas = Image.new("RGBA", (side, side))
    canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    canvas = canvas.rotate(angle, Image.Resampling.BICUBIC)
    spread = canvas.getchannel("A").filter(ImageFilter.GaussianBlur(_HALO * _SUPERSAMPLE))
    halo = Image.new("RGBA", canvas.size, (255, 252, 240))
    halo.putalpha(spread.point([min(4 * level, 235) for level in range(256)]))
    pixels = np.asarray(Image.alpha_composite(halo, canvas).reduce(_SUPERSAMPLE))
    pixels.setflags(write=False)
    return pixels


class _Canvas:
    """A picture that is being drawn. Coordinates are pixels of the finished picture; y points down."""

    def __init__(self, top: Colour, bottom: Colour) -> None:
        """Start with a vertical gradient."""
        side = SIZE * _SUPERSAMPLE
        ramp = np.linspace(0, 1, side)[:, None] * (np.array(bottom) - top) + top
        self.image = Image.fromarray(np.repeat(ramp[:, None], side, axis=1).astype(np.uint8))
        self.draw = ImageDraw.Draw(self.image)

    def box(self, x0: float, y0: float, x1: float, y1: float, colour: Colour) -> None:
        self.polygon([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], colour)

    def disc(self, x: float, y: float, rx: float, ry: float, colour: Colour) -> None:
        self.draw.ellipse([_SUPERSAMPLE * v for v in (x - rx, y - ry, x + rx, y + ry)], fill=colour)

    def polygon(self, points: Sequence[Point], colour: Colour) -> None:
        self.draw.polygon([(_SUPERSAMPLE * x, _SUPERSAMPLE * y) for x, y in points], fill=colour)

    def line(self, points: Sequence[Point], width: float, colour: Colour) -> None:
        scaled = [(_SUPERSAMPLE * x, _SUPERSAMPLE * y) for x, y in points]
        self.draw.line(scaled, fill=colour, width=round(_SUPERSAMPLE * width), joint="curve")

    def ground(self, y: float, swell: float, wavelength: float, phase: float, colour: Colour) -> None:
        """Fill everything below a wave."""
        x = np.linspace(0, SIZE, 33)
        edge = y + swell * np.sin(2 * np.pi * (x / wavelength + phase))
        self.polygon([(0, SIZE), *zip(x.tolist(), edge.tolist(), strict=True), (SIZE, SIZE)], colour)

    def fir(self, x: float, foot: float, height: float, colours: Sequence[Colour]) -> None:
        """Draw a conifer of three tiers, with one colour for each tier, from the bottom up."""
        for tier, colour in enumerate(colours):
            base = foot - 0.24 * height * tier
            half, rise = height * (0.34 - 0.07 * tier), height * 0.52
            self.polygon([(x - half, base), (x, base - rise), (x + half, base)], colour)


def _beach(rng: np.random.Generator) -> _Canvas:
    canvas = _Canvas((92, 190, 245), (190, 232, 250))
    horizon, shore = rng.uniform(20, 24), rng.uniform(34, 39)
    canvas.disc(rng.uniform(8, 56), rng.uniform(7, 11), 5.5, 5.5, (255, 236, 110))
    canvas.box(0, horizon, SIZE, SIZE, (22, 150, 190))
    for y in np.linspace(horizon + 3, shore - 4, 3):
        x = rng.uniform(0, 40)
        canvas.line([(x, y), (x + rng.uniform(10, 22), y)], 1, (120, 210, 225))
    phase = rng.uniform()
    canvas.ground(shore, 1.5, 30, phase, (240, 252, 252))
    canvas.ground(shore + 2.2, 1.5, 30, phase, (244, 214, 146))
    for _ in range(14):
        canvas.disc(rng.uniform(0, SIZE), rng.uniform(shore + 6, SIZE), 0.9, 0.6, (222, 184, 112))
    return canvas


def _forest(rng: np.random.Generator) -> _Canvas:
    canvas = _Canvas((150, 205, 140), (60, 120, 70))
    for x in np.arange(-2, SIZE + 8, 9) + rng.uniform(-3, 3):
        canvas.fir(x, 42, rng.uniform(34, 44), [(52, 118, 70), (58, 126, 76), (64, 134, 82)])
    for x in np.arange(2, SIZE + 8, 15) + rng.uniform(-5, 5):
        canvas.box(x - 1.6, 40, x + 1.6, 50, (92, 58, 36))
        canvas.fir(x, 45, rng.uniform(38, 50), [(16, 72, 44), (20, 82, 50), (26, 92, 56)])
    canvas.ground(47, 1.2, 40, rng.uniform(), (38, 84, 40))
    for _ in range(16):
        x, y = rng.uniform(0, SIZE), rng.uniform(52, SIZE)
        canvas.polygon([(x - 1, y), (x, y - 3), (x + 1, y)], (74, 132, 58))
    return canvas


def _snow(rng: np.random.Generator) -> _Canvas:
    canvas = _Canvas((120, 160, 215), (196, 220, 244))
    peak = rng.uniform(10, 54)
    for x, height in ((peak, 24), (peak - 30, 17), (peak + 30, 17)):
        canvas.polygon([(x - 26, 36), (x, 36 - height), (x + 26, 36)], (112, 138, 186))
        canvas.polygon([(x - 9, 36 - height * 0.66), (x, 36 - height), (x + 9, 36 - height * 0.66)], (244, 249, 255))
    for x in np.arange(3, SIZE + 8, 19) + rng.uniform(-6, 6):
        canvas.fir(x, 41, rng.uniform(16, 22), [(60, 104, 122), (96, 142, 158), (236, 244, 252)])
    canvas.ground(38, 2, 50, rng.uniform(), (206, 225, 245))
    canvas.ground(50, 1.6, 44, rng.uniform(), (180, 206, 236))
    for _ in range(16):
        canvas.disc(rng.uniform(0, SIZE), rng.uniform(0, SIZE), 0.8, 0.8, (255, 255, 255))
    return canvas


def _desert(rng: np.random.Generator) -> _Canvas:
    canvas = _Canvas((255, 128, 66), (255, 214, 120))
    canvas.disc(rng.uniform(10, 54), rng.uniform(12, 16), 8, 8, (255, 240, 170))
    canvas.ground(30, 5, 60, rng.uniform(), (226, 150, 70))
    canvas.ground(40, 4, 46, rng.uniform(), (206, 124, 54))
    canvas.ground(53, 2.5, 52, rng.uniform(), (182, 100, 44))
    for x in (rng.uniform(2, 8), rng.uniform(31, 35), rng.uniform(57, 62)):
        top = rng.uniform(14, 19)
        canvas.line([(x, top), (x, 38)], 2.8, (44, 112, 62))
        canvas.line([(x - 4, top + 6), (x - 4, top + 11), (x + 4, top + 11), (x + 4, top + 4)], 2, (44, 112, 62))
    return canvas


def _meadow(rng: np.random.Generator) -> _Canvas:
    canvas = _Canvas((120, 200, 255), (214, 240, 255))
    for x, y in ((rng.uniform(4, 24), rng.uniform(6, 11)), (rng.uniform(38, 60), rng.uniform(6, 13))):
        for dx, r in ((-5, 3), (0, 4.2), (5, 3)):
            canvas.disc(x + dx, y, r * 1.3, r, (255, 255, 255))
    canvas.ground(26, 4, 64, rng.uniform(), (160, 218, 104))
    canvas.ground(36, 3, 50, rng.uniform(), (128, 200, 78))
    for y in np.linspace(30, 62, 18):
        x, petal = rng.uniform(0, SIZE), ((255, 110, 160), (255, 226, 70), (250, 250, 250))[rng.integers(3)]
        canvas.disc(x, y, 1.5, 1.5, petal)
        canvas.disc(x, y, 0.6, 0.6, (240, 150, 40))
    return canvas


def _city(rng: np.random.Generator) -> _Canvas:
    canvas = _Canvas((160, 196, 226), (222, 234, 242))
    left = rng.uniform(-6, 0)
    while left < SIZE:
        width, top = rng.uniform(9, 14), rng.uniform(3, 22)
        wall = ((96, 116, 146), (124, 138, 160), (82, 100, 128))[rng.integers(3)]
        canvas.box(left, top, left + width, 54, wall)
        for y in np.arange(top + 2, 50, 5):
            for x in np.arange(left + 1.8, left + width - 2, 3.4):
                canvas.box(x, y, x + 1.8, y + 2.6, (250, 226, 150) if rng.uniform() < 0.4 else (176, 206, 230))
        left += width + rng.uniform(0.4, 1.5)
    canvas.box(0, 49, SIZE, 52, (196, 198, 202))
    canvas.box(0, 52, SIZE, SIZE, (74, 76, 84))
    for x in np.arange(rng.uniform(-8, 0), SIZE, 13):
        canvas.box(x, 57.5, x + 7, 59.2, (245, 240, 220))
    return canvas


def _alley(rng: np.random.Generator) -> _Canvas:
    canvas = _Canvas((22, 22, 62), (50, 40, 92))
    middle = rng.uniform(30, 35)
    canvas.disc(middle, rng.uniform(6, 9), 3, 3, (240, 236, 200))
    floor = 44
    for near, far in ((0, middle - 6), (SIZE, middle + 6)):
        canvas.polygon([(near, -14), (far, 12), (far, floor), (near, SIZE + 6)], (52, 42, 98))
        for course in range(12):
            at = course / 11
            near_y, far_y = -14 + at * (SIZE + 20), 12 + at * (floor - 12)
            canvas.line([(near, near_y), (far, far_y)], 0.7, (28, 22, 60))
            for joint in np.arange(0.06 + 0.11 * (course % 2), 1, 0.22):
                x, y = near + joint * (far - near), near_y + joint * (far_y - near_y)
                rise = (1 - joint) * (SIZE + 20) / 11 + joint * (floor - 12) / 11
                canvas.line([(x, y), (x, y + rise)], 0.7, (28, 22, 60))
    canvas.polygon([(0, SIZE + 6), (middle - 6, floor), (middle + 6, floor), (SIZE, SIZE + 6)], (26, 24, 52))
    for x in (rng.uniform(5, 14), rng.uniform(50, 59)):
        y = rng.uniform(7, 15)
        canvas.box(x - 2.4, y - 3.4, x + 2.4, y + 3.4, (20, 16, 44))
        canvas.box(x - 1.7, y - 2.7, x + 1.7, y + 2.7, (250, 200, 90) if rng.uniform() < 0.7 else (70, 70, 130))
    return canvas


def _party(rng: np.random.Generator) -> _Canvas:
    canvas = _Canvas((72, 8, 84), (140, 18, 110))
    lights = ((255, 90, 120), (255, 220, 80), (90, 230, 240), (130, 255, 140), (255, 150, 60))
    for _ in range(4):
        x, foot = rng.uniform(4, 60), rng.uniform(0, SIZE)
        canvas.polygon([(x, 0), (foot - 7, 52), (foot + 7, 52)], (150, 40, 140))
    canvas.box(0, 52, SIZE, SIZE, (58, 10, 76))
    for k, x in enumerate(np.arange(rng.uniform(-12, 0), SIZE, 8)):
        if k % 2:
            canvas.polygon([(x, 52), (x + 8, 52), (1.4 * x - 8, SIZE), (1.4 * x - 20, SIZE)], (176, 44, 150))
    sag, first = rng.uniform(5, 8), rng.integers(5)
    string = [(x, 4 + sag * np.sin(np.pi * (x % 32) / 32)) for x in np.linspace(0, SIZE, 65)]
    canvas.line(string, 0.7, (30, 4, 40))
    for k, (x, y) in enumerate(string[2::6]):
        canvas.disc(x, y + 1.6, 2, 2.4, lights[(k + first) % 5])
    for _ in range(12):
        x, y = rng.uniform(0, SIZE), rng.uniform(16, SIZE)
        canvas.box(x, y, x + 1.5, y + 1.5, lights[rng.integers(5)])
    return canvas


def _graveyard(rng: np.random.Generator) -> _Canvas:
    canvas = _Canvas((58, 82, 84), (124, 150, 132))
    canvas.disc(rng.uniform(24, 56), rng.uniform(9, 12), 6.5, 6.5, (228, 236, 204))
    trunk = rng.uniform(3, 9)
    bark = (30, 42, 44)
    canvas.line([(trunk, 46), (trunk + 1, 22), (trunk - 2, 4)], 2.4, bark)
    for y, dx in ((24, 12), (17, -8), (13, 10), (9, 5)):
        canvas.line([(trunk, y), (trunk + dx, y - 7)], 1.3, bark)
    canvas.ground(40, 2, 60, rng.uniform(), (72, 98, 78))
    for x in np.arange(4, SIZE + 6, 15) + rng.uniform(-3, 3):
        y, tall = rng.uniform(38, 44), rng.uniform(15, 20)
        canvas.disc(x, y - tall, 4.4, 4.4, (104, 116, 120))
        canvas.box(x - 4.4, y - tall, x + 4.4, y, (104, 116, 120))
        canvas.box(x - 0.7, y - tall - 2, x + 0.7, y - tall + 6, (66, 78, 84))
        canvas.box(x - 2.4, y - tall, x + 2.4, y - tall + 1.4, (66, 78, 84))
    canvas.ground(52, 1.6, 36, rng.uniform(), (52, 74, 58))
    for _ in range(5):
        canvas.disc(rng.uniform(0, SIZE), rng.uniform(44, 62), rng.uniform(8, 14), 0.9, (140, 164, 148))
    return canvas


def _factory(rng: np.random.Generator) -> _Canvas:
    canvas = _Canvas((206, 196, 180), (238, 224, 196))
    brick, mortar, roof = (186, 84, 58), (150, 62, 44), (112, 60, 50)
    chimney = rng.uniform(8, 56)
    for puff in range(4):
        canvas.disc(chimney + 4 * puff - 2, 4 - puff, 3.5 + puff, 2.5 + 0.6 * puff, (156, 148, 144))
    canvas.box(chimney - 2.6, 5, chimney + 2.6, 30, mortar)
    canvas.box(chimney - 3.2, 5, chimney + 3.2, 7.5, roof)
    eaves = rng.uniform(21, 24)
    for x in np.arange(rng.uniform(-12, 0), SIZE, 14):
        canvas.polygon([(x, eaves), (x, eaves - 8), (x + 14, eaves)], roof)
        canvas.polygon([(x + 1, eaves - 1), (x + 1, eaves - 6), (x + 5, eaves - 1)], (226, 214, 170))
    canvas.box(0, eaves, SIZE, 56, brick)
    for course, y in enumerate(np.arange(eaves + 3, 56, 3.5)):
        canvas.line([(0, y), (SIZE, y)], 0.5, mortar)
        for x in np.arange(3.5 * (course % 2), SIZE, 7):
            canvas.line([(x, y), (x, y + 3.5)], 0.5, mortar)
    canvas.box(0, 54, SIZE, SIZE, (146, 128, 110))
    for x in np.arange(rng.uniform(-8, 0), SIZE, 11):
        canvas.polygon([(x, 60), (x + 5, 60), (x + 2, SIZE), (x - 3, SIZE)], (232, 186, 60))
    return canvas


BACKDROPS: dict[str, Callable[[np.random.Generator], _Canvas]] = {
    "beach": _beach,
    "forest": _forest,
    "snow": _snow,
    "desert": _desert,
    "meadow": _meadow,
    "city": _city,
    "alley": _alley,
    "party": _party,
    "graveyard": _graveyard,
    "factory": _factory,
}


@cache
def backdrop(place: str, variant: int) -> np.ndarray:
    """Draw the backdrop of a place.

    Args:
        place: a key of `BACKDROPS`.
        variant: which of its backdrops, 0 to `VARIANTS` - 1; their shapes and colours differ a little.

    Returns:
        RGB as uint8 (64, 64, 3). The array is shared between calls: do not write to it.
    """
    rng = np.random.default_rng([list(BACKDROPS).index(place), variant])
    picture = np.asarray(BACKDROPS[place](rng).image.reduce(_SUPERSAMPLE))
    light = rng.uniform(0.93, 1.07) * rng.uniform(0.96, 1.04, size=3)
    pixels = np.clip(picture * light, 0, 255).astype(np.uint8)
    pixels.setflags(write=False)
    return pixels
