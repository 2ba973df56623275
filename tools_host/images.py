"""Image files as RGB bytes, with Pillow: EXIF orientation, every colour mode, one clear error for every bad file."""

from __future__ import annotations

import contextlib
import functools
import struct
import warnings
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 120_000_000
"""Larger images are refused before they are decoded: 360 MB of RGB is as much as a worker should hold for one file."""

FORMATS = ("AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "MPO", "PCX", "PNG", "PPM", "TGA", "TIFF", "WEBP")
"""Pillow knows more, among them MPEG videos as images without pixels, and EPS, for which it starts another program."""

DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    RuntimeError,
    EOFError,
    IndexError,
    KeyError,
    struct.error,
    zlib.error,
)
"""What Pillow's parsers raise on damaged files."""


class MediaError(ValueError):
    """A file that is not a usable image or video; its text is one line."""


def is_image(path: str) -> bool:
    """Whether Pillow knows the format from the file's first bytes.

    Raises:
      MediaError: If it does, and the file is damaged or too large.
    """
    try:
        with _opened(path):
            return True
    except UnidentifiedImageError:
        return False


def frame_count(path: str) -> int:
    """Number of frames of an image that `read_image` accepted; more than 1 is an animation, 1 also if they cannot be counted."""
    try:
        with _opened(path) as image:
            return getattr(image, "n_frames", 1)
    except MediaError:
        return 1


def read_image(path: str) -> np.ndarray:
    """RGB uint8 `[H, W, 3]` of an image file, read-only; the first frame of an animation, transparency over white.

    Raises:
      MediaError: If it is no image, damaged, truncated or larger than `MAX_PIXELS`.
    """
    try:
        with _opened(path) as image:
            refuse_huge(path, *image.size)
            pixels = _rgb(ImageOps.exif_transpose(image))
    except UnidentifiedImageError as error:
        raise MediaError(f"{path}: not a readable image") from error
    pixels.flags.writeable = False
    return pixels


@contextlib.contextmanager
def _opened(path: str) -> Iterator[Image.Image]:
    """An opened image. What Pillow raises on a damaged one, here or in the block, becomes a MediaError."""
    with warnings.catch_warnings():
        # Pillow warns of its own size limit, where ours refuses, and of every flaw that it can read over.
        warnings.simplefilter("ignore")
        try:
            with Image.open(path, formats=_supported_formats()) as image:
                yield image
        except (MediaError, UnidentifiedImageError):
            raise
        except Image.DecompressionBombError as error:
            raise MediaError(f"{path}: the image is too large ({error})") from error
        except DECODE_ERRORS as error:
            raise MediaError(f"{path}: damaged or truncated image ({error})") from error


@functools.cache
def _supported_formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def refuse_huge(path: str, width: int, height: int) -> None:
    """Raises MediaError for an image, or a frame of a video, of more than `MAX_PIXELS`."""
    if width * height > MAX_PIXELS:
        limit = MAX_PIXELS // 10**6
        raise MediaError(f"{path}: {width} x {height} pixels are more than the limit of {limit} megapixels")


def _rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I") or image.mode == "F":
        return _deep_grey(image)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        over = image.convert("RGBA")
        paper = Image.new("RGBA", over.size, "white")
        return np.array(Image.alpha_composite(paper, over).convert("RGB"))
    return np.array(image.convert("RGB"))


def _deep_grey(image: Image.Image) -> np.ndarray:
    """Pillow's own conversion clips 16 bits to 8, which turns most pixels white."""
    values = np.asarray(image).astype(np.float64)
    scale = 255.0 / 65535.0
    if image.mode == "F":
        scale = 255.0 if values.max(initial=0) <= 1 else 1.0
    grey = np.clip(np.rint(values * scale), 0, 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)
