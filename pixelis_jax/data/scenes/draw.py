"""Sprites: cards, strings, marks, bars, balls and lamps, as an RGB patch with an alpha channel, and how they get onto
pixels."""

from __future__ import annotations

import dataclasses
import functools

import cv2
import numpy as np
from PIL import Image, ImageDraw

from pixelis_jax.data.scenes import fonts
from pixelis_jax.data.scenes.palette import ink

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "diamond", "heart")

_OVERSAMPLE = 8


@dataclasses.dataclass(frozen=True, eq=False)
class Sprite:
    """RGB float32 `[H, W, 3]` in 0..255, alpha float32 `[H, W, 1]` in 0..1, and the box of what stands on it in pixels."""

    rgb: np.ndarray
    alpha: np.ndarray
    written: tuple[int, int, int, int] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.rgb.shape[1], self.rgb.shape[0]


def paste(pixels: np.ndarray, sprite: Sprite, x: int, y: int) -> None:
    """Draws a sprite with its top left corner at `(x, y)`; it must lie inside `pixels` `[H, W, 3]` uint8."""
    width, height = sprite.size
    view = pixels[y : y + height, x : x + width]
    blended = view + sprite.alpha * (sprite.rgb - view)
    view[:] = (blended + 0.5).astype(np.uint8)


def card(rng: np.random.Generator, width: int, height: int, colour: np.ndarray) -> Sprite:
    """A rounded rectangle with a slightly darker rim and a faint gradient."""
    radius = int(rng.integers(8, 22))
    inside = _rounded(width, height, radius)
    rim = np.clip(inside, 0, 3)[..., None] / 3
    slope = np.linspace(-1, 1, height, dtype=np.float32)[:, None, None] * rng.uniform(-8, 8)
    rgb = np.clip(colour + slope, 0, 255) * (0.55 + 0.45 * rim)
    rgb = np.broadcast_to(rgb, (height, width, 3)).astype(np.float32)
    return Sprite(rgb, np.clip(inside + 0.5, 0, 1)[..., None].astype(np.float32))


def with_text(
    rng: np.random.Generator,
    base: Sprite,
    text: str,
    font: str,
    height: int,
    ground: np.ndarray,
    wander: float = 0.35,
    strength: float = 1.0,
) -> Sprite:
    """A card that carries a string with capitals `height` pixels high, somewhere near its middle.

    Args:
      rng: Places the string and chooses its ink.
      base: The blank card; not changed.
      text: The string.
      font: Name from `fonts.names`.
      height: Of capitals, in pixels; made smaller until the string fits.
      ground: RGB `[3]` of the card.
      wander: How far from the middle, as a share of the free room.
      strength: Of the ink, 0..1.
    """
    width, tall = base.size
    while True:
        face = fonts.load(font, fonts.size_for_capitals(font, height))
        left, top, right, bottom = face.getbbox(text)
        if right - left <= width - 14 or height <= 9:
            break
        height -= 1
    slack_x, slack_y = max(0.0, width - (right - left) - 14), max(0.0, tall - (bottom - top) - 14)
    x = (width - (right - left)) / 2 + rng.uniform(-wander, wander) * slack_x - left
    y = (tall - (bottom - top)) / 2 + rng.uniform(-wander, wander) * slack_y - top
    mask = Image.new("L", (width, tall))
    ImageDraw.Draw(mask).text((round(x), round(y)), text, fill=255, font=face)
    cover = np.asarray(mask, np.float32)[..., None] * (strength / 255)
    return Sprite(base.rgb + cover * (ink(rng, ground) - base.rgb), base.alpha, mask.getbbox())


def covered(rng: np.random.Generator, base: Sprite, height: int, ground: np.ndarray) -> Sprite:
    """A card whose string is hidden by a band, `height` pixels high, as dark as the blurred string would be."""
    width, tall = base.size
    cover = np.zeros((tall, width), np.float32)
    cover[(tall - height) // 2 : (tall + height) // 2, 9 : width - 9] = 0.22
    return _stain(base, cover, 0, 0, ink(rng, ground))


def with_mark(rng: np.random.Generator, base: Sprite, shape: str, side: int, ground: np.ndarray) -> Sprite:
    """A card that carries a mark `side` pixels wide, somewhere near its middle; `base` is not changed."""
    width, height = base.size
    cover = _shape_mask(shape, side)
    room = (max(1, width - side - 16), max(1, height - side - 16))
    x = int(8 + room[0] * rng.uniform(0.3, 0.7))
    y = int(8 + room[1] * rng.uniform(0.3, 0.7))
    return dataclasses.replace(_stain(base, cover, x, y, ink(rng, ground)), written=(x, y, x + side, y + side))


def with_bar(
    rng: np.random.Generator, base: Sprite, angle: int, length: int, breadth: int, ground: np.ndarray
) -> tuple[Sprite, tuple[int, int, int, int]]:
    """A card that carries a bar at `angle` degrees, anticlockwise from the horizontal, and the bar's box in it."""
    width, height = base.size
    cover = _bar_mask(angle, length, breadth)
    side = cover.shape[0]
    x = int((width - side) * rng.uniform(0.35, 0.65))
    y = int((height - side) * rng.uniform(0.35, 0.65))
    rows, columns = np.nonzero(cover.max(axis=1) > 0.3)[0], np.nonzero(cover.max(axis=0) > 0.3)[0]
    box = (x + int(columns[0]), y + int(rows[0]), x + int(columns[-1]) + 1, y + int(rows[-1]) + 1)
    return _stain(base, cover, x, y, ink(rng, ground)), box


def ball(diameter: int, colour: np.ndarray) -> Sprite:
    """A shaded disc with a pattern of two darker bands, so that a tracker finds corners on it."""
    centre = (diameter - 1) / 2
    y, x = np.mgrid[:diameter, :diameter].astype(np.float32) - centre
    radius = np.hypot(x, y)
    light = 1.05 - 0.35 * np.hypot(x + diameter / 6, y + diameter / 6)[..., None] / (diameter / 2)
    bands = 1 - 0.55 * ((np.abs(x + y) < diameter / 9) | (np.abs(x - y) < diameter / 18))[..., None]
    alpha = np.clip(diameter / 2 - radius, 0, 1)[..., None]
    return Sprite(np.clip(colour * light * bands, 0, 255).astype(np.float32), alpha.astype(np.float32))


def lamp(diameter: int, colour: np.ndarray, lit: bool) -> Sprite:
    """A round lamp in a dark ring; lit it is nearly white in the middle and bright to the edge."""
    centre = (diameter - 1) / 2
    y, x = np.mgrid[:diameter, :diameter].astype(np.float32) - centre
    radius = np.hypot(x, y)[..., None] / (diameter / 2)
    glow = np.clip(1.25 - radius, 0, 1) ** 0.7
    rgb = colour + (255 - colour) * glow if lit else colour * 0.62
    rgb = np.where(radius > 0.86, np.float32(28), rgb)
    alpha = np.clip((1 - radius) * diameter / 2, 0, 1)
    return Sprite(np.clip(rgb, 0, 255).astype(np.float32), alpha.astype(np.float32))


def _stain(base: Sprite, cover: np.ndarray, x: int, y: int, colour: np.ndarray) -> Sprite:
    rgb = base.rgb.copy()
    view = rgb[y : y + cover.shape[0], x : x + cover.shape[1]]
    view += cover[: view.shape[0], : view.shape[1], None] * (colour - view)
    return Sprite(rgb, base.alpha)


@functools.lru_cache(maxsize=4096)
def _rounded(width: int, height: int, radius: int) -> np.ndarray:
    """Distance in pixels to the edge of a rounded rectangle, positive inside, float32 `[height, width]`."""
    x = np.abs(np.arange(width, dtype=np.float32) - (width - 1) / 2) - (width / 2 - radius)
    y = np.abs(np.arange(height, dtype=np.float32) - (height - 1) / 2) - (height / 2 - radius)
    grid_x, grid_y = np.meshgrid(x, y)
    outside = np.hypot(np.maximum(grid_x, 0), np.maximum(grid_y, 0))
    return radius - outside - np.minimum(np.maximum(grid_x, grid_y), 0)


@functools.lru_cache(maxsize=512)
def _shape_mask(shape: str, side: int) -> np.ndarray:
    large = np.zeros((side * _OVERSAMPLE, side * _OVERSAMPLE), np.float32)
    half = side * _OVERSAMPLE / 2
    if shape in ("circle", "ring"):
        cv2.circle(large, (round(half), round(half)), round(half * 0.95), 1.0, -1)
        if shape == "ring":
            cv2.circle(large, (round(half), round(half)), round(half * 0.55), 0.0, -1)
    else:
        cv2.fillPoly(large, [np.round(half + half * _outline(shape)).astype(np.int32)], 1.0)
    return cv2.resize(large, (side, side), interpolation=cv2.INTER_AREA)


def _outline(shape: str) -> np.ndarray:
    """Corners of a shape in [-1, 1], float `[N, 2]`, y down."""
    if shape == "square":
        return np.array([(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)])
    if shape == "triangle":
        return np.array([(0, -0.95), (0.98, 0.85), (-0.98, 0.85)])
    if shape == "diamond":
        return np.array([(0, -1), (0.72, 0), (0, 1), (-0.72, 0)])
    if shape == "cross":
        arm = 0.28
        return np.array(
            [(-arm, -1), (arm, -1), (arm, -arm), (1, -arm), (1, arm), (arm, arm),
             (arm, 1), (-arm, 1), (-arm, arm), (-1, arm), (-1, -arm), (-arm, -arm)]
        )  # fmt: skip
    turn = np.linspace(0, 2 * np.pi, 11 if shape == "star" else 61)[:-1]
    if shape == "star":
        radius = np.where(np.arange(10) % 2 == 0, 1.0, 0.4)
        return np.stack([radius * np.sin(turn), -radius * np.cos(turn)], 1)
    if shape == "heart":
        x = 16 * np.sin(turn) ** 3
        y = -(13 * np.cos(turn) - 5 * np.cos(2 * turn) - 2 * np.cos(3 * turn) - np.cos(4 * turn))
        return np.stack([x / 16.5, (y - 2.5) / 15.5], 1)
    raise ValueError(f"no shape {shape!r}")


@functools.lru_cache(maxsize=512)
def _bar_mask(angle: int, length: int, breadth: int) -> np.ndarray:
    side = length + 4
    large = np.zeros((side * _OVERSAMPLE, side * _OVERSAMPLE), np.float32)
    turn = np.deg2rad(angle)
    along = np.array([np.cos(turn), -np.sin(turn)]) * length / 2
    across = np.array([np.sin(turn), np.cos(turn)]) * breadth / 2
    corners = np.array([along + across, along - across, -along - across, -along + across])
    cv2.fillPoly(large, [np.round((corners + side / 2) * _OVERSAMPLE).astype(np.int32)], 1.0)
    return cv2.resize(large, (side, side), interpolation=cv2.INTER_AREA)
