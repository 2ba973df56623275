"""What can be measured of an object's pixels and of its mask: colours, shape, orientation, texture."""

from __future__ import annotations

import dataclasses
import math

import cv2
import numpy as np
from skimage.color import rgb2lab
from skimage.measure import regionprops

PALETTE: tuple[tuple[str, tuple[int, int, int]], ...] = (
    ("red", (220, 30, 35)),
    ("red", (150, 20, 25)),
    ("orange", (245, 130, 30)),
    ("yellow", (245, 215, 50)),
    ("yellow", (205, 180, 35)),
    ("green", (45, 165, 65)),
    ("green", (25, 100, 40)),
    ("green", (130, 205, 80)),
    ("cyan", (60, 205, 215)),
    ("cyan", (20, 140, 150)),
    ("blue", (40, 85, 205)),
    ("blue", (20, 35, 120)),
    ("blue", (90, 155, 230)),
    ("purple", (135, 60, 170)),
    ("purple", (80, 30, 110)),
    ("pink", (245, 125, 180)),
    ("pink", (225, 40, 150)),
    ("brown", (125, 75, 40)),
    ("brown", (85, 50, 25)),
    ("black", (20, 20, 20)),
    ("gray", (85, 85, 85)),
    ("gray", (128, 128, 128)),
    ("gray", (180, 180, 180)),
    ("white", (248, 248, 248)),
)
"""Names with sRGB examples; a pixel has the name of the example that is nearest in CIE Lab."""

_NAMES = tuple(dict.fromkeys(name for name, _ in PALETTE))
_LAB = rgb2lab(np.array([[rgb for _, rgb in PALETTE]], np.uint8))[0]
_NAME_OF = np.array([_NAMES.index(name) for name, _ in PALETTE])

_SAMPLES = 2000
"""Most pixels that colours are counted on."""


def colours(pixels: np.ndarray) -> list[tuple[str, float]]:
    """Names of the colours of RGB uint8 pixels `[N, 3]` with their shares, the commonest first."""
    step = max(1, len(pixels) // _SAMPLES)
    lab = rgb2lab(pixels[None, ::step])[0]
    nearest = ((lab[:, None] - _LAB[None]) ** 2).sum(-1).argmin(1)
    counts = np.bincount(_NAME_OF[nearest], minlength=len(_NAMES))
    order = np.argsort(-counts, kind="stable")
    return [(_NAMES[index], float(counts[index] / counts.sum())) for index in order if counts[index]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Form:
    """Geometry of a mask.

    Attributes:
      area_px: Pixels.
      centroid: x, y of the centre of mass in pixels.
      orientation_deg: Angle of the long axis in [0, 180), counter-clockwise from the x axis; None if there is none.
      elongation: Long over short axis of the ellipse with the same second moments.
      shape: Name of the outline, or `irregular`.
    """

    area_px: int
    centroid: tuple[float, float]
    orientation_deg: float | None
    elongation: float
    shape: str


def form(mask: np.ndarray) -> Form:
    """Measures a bool `[H, W]` mask that holds at least one pixel."""
    measured = regionprops(mask.astype(np.uint8))[0]
    row, column = measured.centroid
    minor = max(measured.axis_minor_length, 1.0)
    elongation = max(measured.axis_major_length / minor, 1.0)
    # skimage measures from the row axis, which points down; ours is the angle that a reader sees.
    angle = (math.degrees(measured.orientation) + 90) % 180
    return Form(
        area_px=int(measured.area),
        centroid=(column + 0.5, row + 0.5),
        orientation_deg=angle if elongation >= 1.2 else None,
        elongation=elongation,
        shape=shape(mask),
    )


def shape(mask: np.ndarray) -> str:
    """An outline's name: ring, triangle, square, rectangle, pentagon, hexagon, circle, ellipse, star, cross, irregular.

    Convex outlines are told apart by how well they fill a circle, a turned rectangle and a triangle, the others by
    the strongest harmonic of the radius as a function of the angle.
    """
    scale = max(1, math.ceil(64 / max(mask.shape)))
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    cut = np.pad(mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(np.uint8) * 255, 3)
    large = cv2.resize(cut, None, fx=2 * scale, fy=2 * scale, interpolation=cv2.INTER_LINEAR)
    contours, tree = cv2.findContours((large > 127).astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    outer = max((i for i in range(len(contours)) if tree[0][i][3] < 0), key=lambda i: cv2.contourArea(contours[i]), default=None)
    if outer is None or cv2.contourArea(contours[outer]) < 24:
        return "irregular"
    contour, area = contours[outer], cv2.contourArea(contours[outer])
    holes = sum(cv2.contourArea(contours[i]) for i in range(len(contours)) if tree[0][i][3] == outer)
    if holes > 0.1 * area:
        return "ring"
    hull = cv2.convexHull(contour)
    return _convex_shape(hull) if area > 0.84 * cv2.contourArea(hull) else _spiky_shape(contour)


def _convex_shape(hull: np.ndarray) -> str:
    area = cv2.contourArea(hull)
    if area > 0.76 * cv2.minEnclosingTriangle(hull)[0]:
        return "triangle"
    (_, (width, height), _) = cv2.minAreaRect(hull)
    aspect = max(width, height) / max(min(width, height), 1.0)
    if area > 0.88 * width * height:
        return "rectangle" if aspect > 1.25 else "square"
    if aspect > 1.25:
        return "ellipse"
    filled = area / (math.pi * cv2.minEnclosingCircle(hull)[1] ** 2)
    corners = len(cv2.approxPolyDP(hull, 0.035 * cv2.arcLength(hull, True), True))
    if filled > 0.88:
        return "circle"
    return {5: "pentagon", 6: "hexagon"}.get(corners, "irregular")


def _spiky_shape(contour: np.ndarray) -> str:
    moments = cv2.moments(contour)
    points = contour[:, 0].astype(float) - (moments["m10"] / moments["m00"], moments["m01"] / moments["m00"])
    radius = np.hypot(*points.T)
    angle = (np.arctan2(points[:, 1], points[:, 0]) / (2 * np.pi) * 64).astype(int) % 64
    furthest = np.zeros(64)
    np.maximum.at(furthest, angle, radius)
    strength = np.abs(np.fft.rfft(furthest))[1:9] / max(furthest.sum(), 1e-9)
    strongest = int(strength.argmax()) + 1
    if strength.max() < 0.06:
        return "irregular"
    return {4: "cross", 5: "star", 6: "star"}.get(strongest, "irregular")


def texture(image: np.ndarray, mask: np.ndarray) -> dict[str, float | str]:
    """Texture of the pixels in a mask: `uniform`, `striped` (one direction prevails) or `noisy`.

    Returns:
      `kind`, `contrast` (standard deviation of the grey level, 0..255) and `coherence` (1 if all edges are parallel).
    """
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    core = cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8), iterations=2).astype(bool)
    core = core if core.sum() >= 16 else mask
    contrast = float(gray[core].std())
    gx, gy = (cv2.Sobel(gray, cv2.CV_32F, dx, 1 - dx)[core] for dx in (1, 0))
    xx, yy, xy = float((gx * gx).mean()), float((gy * gy).mean()), float((gx * gy).mean())
    coherence = math.hypot(xx - yy, 2 * xy) / max(xx + yy, 1e-6)
    kind = "uniform" if contrast < 14 else "striped" if coherence > 0.5 else "noisy"
    return {"kind": kind, "contrast": contrast, "coherence": coherence}
