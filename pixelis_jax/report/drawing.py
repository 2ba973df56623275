"""Pixels for the report: encoded pictures, mask outlines, and regions burnt into an image."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw

from tools_host.geometry import decode_mask, to_pixels
from tools_host.protocol import Region

COLOURS = ("#ff3d81", "#00b3ff", "#ffb000", "#23c16b", "#b86bff", "#ff6a3d", "#00c2b2", "#d4d400")
"""Colours of regions in order of their ids; readable on dark and light pictures."""

Outline = list[list[tuple[float, float]]]


def colour(region_id: int) -> str:
    """The colour of a region, the same wherever it is drawn."""
    return COLOURS[(region_id - 1) % len(COLOURS)]


def data_uri(pixels: np.ndarray, max_side: int, quality: int = 82) -> str:
    """A picture as a `data:` address of WebP, made smaller if its longer side exceeds `max_side` pixels.

    Args:
      pixels: RGB uint8 `[H, W, 3]`.
      max_side: In pixels.
      quality: 0..100; small pictures are stored without loss, since every pixel of a crop may matter.
    """
    image = Image.fromarray(pixels)
    image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=quality, method=4, lossless=image.width * image.height <= 128 * 128)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def outline(mask: np.ndarray) -> Outline:
    """Outer contours of a bool mask `[H, W]` as polygons in its pixels, thinned to about a thousandth of its size."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    tolerance = max(mask.shape) / 1000
    thinned = [cv2.approxPolyDP(contour, tolerance, True)[:, 0] for contour in contours]
    # A contour runs through pixel centres.
    return [[(float(x) + 0.5, float(y) + 0.5) for x, y in polygon] for polygon in thinned if len(polygon) > 2]


def draw_regions(pixels: np.ndarray, regions: Sequence[Region]) -> np.ndarray:
    """Draws boxes, mask outlines and ids of regions that lie in one medium.

    Args:
      pixels: RGB uint8 `[H, W, 3]` of the medium.
      regions: Its regions.

    Returns:
      A new RGB uint8 `[H, W, 3]`.
    """
    image = Image.fromarray(pixels).convert("RGB")
    draw = ImageDraw.Draw(image)
    width = max(1, round(max(image.size) / 400))
    for region in regions:
        x1, y1, x2, y2 = to_pixels(region.bbox_2d, image.width, image.height)
        draw.rectangle((x1, y1, x2 - 1, y2 - 1), outline=colour(region.id), width=width)
        for polygon in [] if region.mask is None else outline(decode_mask(region.mask)):
            draw.line([*polygon, polygon[0]], fill=colour(region.id), width=width)
        draw.text((x1 + 2 * width, y1 + 2 * width), str(region.id), fill=colour(region.id))
    return np.asarray(image)


def save_png(path: Path, pixels: np.ndarray) -> None:
    """Writes RGB uint8 `[H, W, 3]` without loss."""
    Image.fromarray(pixels).save(path)
