"""Pictures to start from as files: what a request says of them, and how they are read. Importing this loads no torch.

A picture is read as a viewer shows it: turned as its EXIF tag says, over white where it is transparent, in three
channels of 8 bits. What would change it in a way that its owner may not expect is said in a warning, or refused.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps

from sld.choices import Strength
from sld.files import sha256
from sld.printable import one_line

LARGEST = 2**26
"""Largest number of pixels of a picture that is read: 8192 x 8192. A damaged or hostile file may claim any size."""


@dataclass(frozen=True)
class PictureFile:
    """A picture as a request names it.

    Attributes:
        path: of its file, as the user gave it.
        sha256: of its file.
    """

    path: str
    sha256: str

    @classmethod
    def of(cls, path: Path) -> PictureFile:
        """Return the description of a file.

        Raises:
            ValueError: it cannot be read.
        """
        try:
            return cls(str(path), sha256(path))
        except OSError as error:
            raise ValueError(f"{path}: the picture cannot be read ({error.strerror})") from error

    def require_same(self) -> Path:
        """Return the path.

        Raises:
            ValueError: the file is lost, or not the one that was named.
        """
        if (now := PictureFile.of(Path(self.path)).sha256) != self.sha256:
            raise ValueError(
                f"{self.path}: this is not the picture of the request: its sha256 is {now[:12]}…, and "
                f"{self.sha256[:12]}… is asked for"
            )
        return Path(self.path)


@dataclass(frozen=True)
class StartFiles:
    """The files that a requested picture starts from.

    Attributes:
        image: the picture.
        strength: the part of the steps that is taken; 1 keeps least of the picture.
        mask: white where the picture is made anew, black where it stays; None to change all of it.
    """

    image: PictureFile
    strength: Strength
    mask: PictureFile | None = None


def usual_strength(masked: bool) -> float:
    """Return the strength of a run for which none is given, with or without a mask; those of diffusers."""
    return 1.0 if masked else 0.8


@dataclass(frozen=True)
class Picture:
    """A picture that has been read.

    Attributes:
        image: in RGB.
        name: for messages.
        changes: what reading it has changed, in words.
    """

    image: Image.Image
    name: str
    changes: tuple[str, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.image.size

    def warn_of_changes(self, size: tuple[int, int]) -> None:
        """Warn of what reading it has changed, and of its resizing to (height, width)."""
        (width, height), (new_height, new_width) = self.size, size
        changes = self.changes
        if self.size != (new_width, new_height):
            bent = abs(width * new_height / (height * new_width) - 1) > 0.05
            shape = ", which changes its shape: cut it first, or give another size" if bent else ""
            changes += (f"it is resized from {_pixels(self.size)} to {_pixels((new_width, new_height))} pixels{shape}",)
        for change in changes:
            warnings.warn(f"{self.name}: {change}", stacklevel=3)


def read_pair(image: Path | Image.Image, mask: Path | Image.Image | None = None) -> tuple[Picture, Image.Image | None]:
    """Return a picture and its mask, of one size.

    Raises:
        ValueError: one cannot be read, the two have different sizes, or the mask has transparent parts.
    """
    picture = read_picture(image)
    if mask is None:
        return picture, None
    covering = read_mask(mask)
    if covering.size != picture.size:
        raise ValueError(
            f"{_name(mask, 'the mask')} has {_pixels(covering.size)} pixels, and its picture {_pixels(picture.size)}: "
            "give a mask of the picture's size"
        )
    return picture, covering


def read_picture(source: Path | Image.Image) -> Picture:
    """Return a picture in RGB, over white where it is transparent.

    Raises:
        ValueError: it cannot be read, or has numbers whose range its file does not say.
    """
    name = _name(source, "the picture")
    image = _opened(source, name)
    changes = []
    if (profile := _profile(image)) and "srgb" not in profile.lower():
        changes.append(f"its colours are those of {profile!r}, and are taken for sRGB")
    if _transparent(image):
        changes.append("its transparent parts are taken for white")
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return Picture(image.convert("RGB"), name, tuple(changes))


def read_mask(source: Path | Image.Image) -> Image.Image:
    """Return a mask, white where the picture is made anew, in grey or RGB.

    Raises:
        ValueError: it cannot be read, or has transparent parts, which could mean either.
    """
    name = _name(source, "the mask")
    image = _opened(source, name)
    if _transparent(image):
        raise ValueError(
            f"{name} has transparent parts: save it in black and white, white where the picture is made anew"
        )
    return image if image.mode == "L" else image.convert("RGB")


def fitted(
    picture: Picture, mask: Image.Image | None, size: tuple[int, int], factor: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return pixels uint8 (H, W, 3) and bool (H, W) of a picture and its mask, at the size of the run.

    Both are resized as diffusers does it (Lanczos).

    Args:
        picture, mask: see `read_pair`.
        size: (height, width).
        factor: side of a latent in pixels; the mask acts on whole latents.

    Raises:
        ValueError: the mask reaches no latent.
    """
    height, width = size
    pixels = np.asarray(picture.image.resize((width, height), Image.Resampling.LANCZOS))
    if mask is None:
        return pixels, None
    anew = np.asarray(mask.resize((width, height), Image.Resampling.LANCZOS).convert("L")) >= 128
    if not anew[::factor, ::factor].any():
        raise ValueError(
            f"the mask of {picture.name} is white nowhere, or only in spots of less than {factor} pixels, so that "
            "nothing would be made anew: it must be white where the picture is made anew"
        )
    return pixels, anew


def own_size(picture: Picture, usual: tuple[int, int], factor: int) -> tuple[int, int]:
    """Return (height, width) of a run that starts from a picture, where the user gives no size: the picture's own.

    Sides are rounded down to multiples of `factor`.

    Args:
        picture: the picture.
        usual: (height, width) of the pictures that the model was trained on.
        factor: side of a latent in pixels.

    Raises:
        ValueError: the picture has less than a quarter, or more than four times, of the model's usual pixels.
    """
    (width, height), pixels = picture.size, usual[0] * usual[1]
    if pixels / 4 <= width * height <= 4 * pixels:
        return max(height // factor, 1) * factor, max(width // factor, 1) * factor
    scale = (pixels / (width * height)) ** 0.5
    near = tuple(max(round(side * scale / factor), 1) * factor for side in picture.size)
    raise ValueError(
        f"{picture.name} has {_pixels(picture.size)} pixels, and this model makes {_pixels((usual[1], usual[0]))}: "
        f"give the size to which it is resized, such as {near[0]}x{near[1]}"
    )


def _name(source: Path | Image.Image, otherwise: str) -> str:
    return str(source) if isinstance(source, Path) else otherwise


def _pixels(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def _opened(source: Path | Image.Image, name: str) -> Image.Image:
    """Return a picture in the mode of its file, turned as its EXIF tag says; with 16 bits, the upper 8 of them."""
    try:
        if isinstance(source, Image.Image):
            return _upright(source)
        with Image.open(source) as image:
            return _upright(image)
    except FileNotFoundError:
        raise ValueError(f"{name}: there is no such file") from None
    except Image.UnidentifiedImageError:
        raise ValueError(f"{name} is no picture that can be read, such as PNG, JPEG or WebP") from None
    except Exception as error:  # Pillow raises errors of any kind for damaged files
        reason = getattr(error, "strerror", None) or one_line(str(error)) or type(error).__name__
        raise ValueError(f"{name}: the picture cannot be read ({reason})") from error


def _upright(image: Image.Image) -> Image.Image:
    if image.width * image.height > LARGEST:
        raise ValueError(f"{_pixels(image.size)} pixels, and at most {LARGEST} are read")
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # a photograph with its depth or preview, which come second
        raise ValueError(f"it holds {frames} pictures, and one is expected")
    image = ImageOps.exif_transpose(image)
    image.load()
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        return Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError("numbers of 32 bits, whose range the file does not say: save it with 8 or 16 bits")
    return image


def _transparent(image: Image.Image) -> bool:
    return image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema() != (255, 255)


def _profile(image: Image.Image) -> str:
    """Return the name of a picture's colour profile; empty if it has none that can be read."""
    try:
        profile = ImageCms.ImageCmsProfile(BytesIO(image.info["icc_profile"]))
        return ImageCms.getProfileDescription(profile).strip()
    except (KeyError, OSError, ImageCms.PyCMSError):
        return ""
