"""Turn one image file into pixels. This module says which formats are read, and what becomes of every mode."""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Only these formats are read, whatever a file's name says. Others may start programs, as EPS does."""

EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")

DEEP, ANIMATED, TRANSPARENT = "deep", "animated", "transparent"

_GREY_MODES = frozenset({"1", "L", "LA", "La", "I", "F"})
_ORIENTATION = 0x0112  # this tag of EXIF says how the camera was held
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
LARGEST_SIDE = math.isqrt(2**30 // 4 // 3)
"""The side in pixels of the largest square that is made of an image.

It is a square of as many pixels as Pillow decodes, unless a program sets another limit (`PIL.Image.MAX_IMAGE_PIXELS`).
"""

_LARGE = 16_000_000  # images of this many pixels are decoded one at a time, so that memory stays bounded
_one_large = threading.Lock()


@dataclass(frozen=True, eq=False)
class DecodedImage:
    """One decoded image.

    Args:
        pixels: uint8 `[height, width, 3]`.
        grey: whether the image is grey.
        findings: those of `DEEP`, `ANIMATED` and `TRANSPARENT` that apply to it.
    """

    pixels: np.ndarray
    grey: bool
    findings: frozenset[str]


class Unreadable(Exception):
    """An image can't be decoded; the message says why."""


def read_picture(path: str, size: int | tuple[int, int]) -> DecodedImage:
    """Decode an image file as `picture_of` does.

    Raises:
        Unreadable: the file is damaged, is of another format, is too large, or has values whose range is not known.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            large = image.width * image.height > _LARGE
            if not large:
                return picture_of(image, size)
            with _one_large:
                return picture_of(image, size)
    except Unreadable:
        raise
    except Exception as error:  # decoders raise errors of any kind on damaged files
        raise Unreadable(_reason(error)) from error


@contextmanager
def images_bounded() -> Iterator[None]:
    """Refuse images beyond Pillow's limit of pixels, which it only warns about, and silence its other warnings."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def _reason(error: Exception) -> str:
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return f"more pixels than are decoded ({Image.MAX_IMAGE_PIXELS:,}); make it smaller"
    # libraries that replace Image.open, as ultralytics does, may fail in their own way where Pillow knows no format
    if isinstance(error, UnidentifiedImageError) or isinstance(error.__context__, UnidentifiedImageError):
        return f"none of the known formats ({', '.join(FORMATS)})"
    return " ".join(str(error).split()) or type(error).__name__


def picture_of(image: Image.Image, size: int | tuple[int, int]) -> DecodedImage:
    """Turn an image as its EXIF says, cut it about its centre and resize it.

    16-bit images are scaled from 0 to 65535, and floats from 0 to 1. Of an animation, or of several pages, the first
    image is taken. Transparency is dropped.

    Args:
        image: an image of any mode and size; it is not changed.
        size: (width, height) in pixels, or the side of a square.

    Raises:
        Unreadable: its values have no known range.
    """
    width, height = (size, size) if isinstance(size, int) else size
    findings = frozenset(_findings(image))  # some images forget what they were when they are loaded
    grey = image.mode in _GREY_MODES or image.mode.startswith("I;16")
    turn = _turn(image)
    if turn is not None:
        image = image.transpose(turn)
    square = ImageOps.fit(_as_rgb(image), (width, height), Image.Resampling.BILINEAR)
    return DecodedImage(np.asarray(square), grey, findings)


def _turn(image: Image.Image) -> Image.Transpose | None:
    """Return how the image has to be turned to stand upright.

    The result is None when its EXIF says nothing of this, or is damaged.
    """
    try:
        return _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged EXIF raises errors of any kind, and the pixels may be sound
        return None


def _findings(image: Image.Image) -> Iterator[str]:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        yield DEEP
    if image.format != "MPO" and getattr(image, "is_animated", False):  # an MPO's other frames are previews
        yield ANIMATED
    alpha = image.mode in ("LA", "PA", "RGBA") and np.asarray(image.getchannel("A")).min() < 255
    if alpha or "transparency" in image.info:
        yield TRANSPARENT


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode == "I":
        image = _scaled(image, 65535, "whole numbers")
    elif image.mode == "F":
        image = _scaled(image, 1, "floating-point numbers")
    return image.convert("RGB")


def _scaled(image: Image.Image, most: int, kind: str) -> Image.Image:
    """Scale the values of an image from [0, `most`] to 8 bits."""
    values = np.asarray(image)
    least, largest = values.min(), values.max()
    if not (least >= 0 and largest <= most):  # this refuses NaN too
        raise Unreadable(f"{kind} from {least:g} to {largest:g}; expected 0 to {most}")
    return Image.fromarray(np.rint(values * np.float64(255 / most)).astype(np.uint8))
