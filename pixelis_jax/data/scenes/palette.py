"""Colour names and their RGB values, far enough apart to be told in a thumbnail."""

from __future__ import annotations

import numpy as np

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (205, 32, 38),
    "orange": (242, 128, 20),
    "yellow": (246, 222, 50),
    "green": (34, 146, 58),
    "cyan": (60, 205, 215),
    "blue": (38, 66, 190),
    "purple": (136, 44, 160),
    "white": (240, 240, 236),
}
NAMES = tuple(COLOURS)


def shade(rng: np.random.Generator, name: str, spread: int = 10) -> np.ndarray:
    """RGB `[3]` float32 of a colour, each channel off by at most `spread`."""
    return np.clip(np.asarray(COLOURS[name], np.float32) + rng.integers(-spread, spread + 1, 3), 0, 255).astype(np.float32)


def luminance(colour: np.ndarray) -> float:
    """Rec. 601 luma of RGB `[3]`, 0..255."""
    return float(np.dot(colour, (0.299, 0.587, 0.114)))


def ink(rng: np.random.Generator, ground: np.ndarray) -> np.ndarray:
    """RGB `[3]` float32 of a nearly black or nearly white ink, whichever stands out from `ground` `[3]`."""
    level = rng.integers(0, 45) if luminance(ground) > 115 else rng.integers(225, 256)
    return np.clip(level + rng.integers(-12, 13, 3), 0, 255).astype(np.float32)
