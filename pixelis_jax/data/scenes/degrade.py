"""What makes `shift` shifted, beside its backgrounds and fonts: uneven light, blur, noise and hard compression."""

from __future__ import annotations

import cv2
import numpy as np

from pixelis_jax.data.scenes.scene import Split


def degrade(rng: np.random.Generator, split: Split, pixels: np.ndarray) -> np.ndarray:
    """Pixels as a bad camera would give them, for `shift`; other splits come back unchanged.

    Args:
      rng: One draw for the whole image or clip: light does not flicker.
      split: Only `shift` is degraded.
      pixels: RGB uint8 `[H, W, 3]` or `[T, H, W, 3]`.
    """
    if split != "shift":
        return pixels
    height, width = pixels.shape[-3:-1]
    light = _light(rng, height, width)
    sigma = rng.uniform(0.3, 0.9)
    amount = rng.uniform(3, 9)
    # The noise of a clip stands still, as a sensor's pattern does: fresh noise in each frame makes files ten times as
    # large.
    noise = rng.normal(0, amount, (height, width, 1)).astype(np.float32)
    frames = pixels[None] if pixels.ndim == 3 else pixels
    result = np.empty_like(frames)
    for index, frame in enumerate(frames):
        result[index] = np.clip(cv2.GaussianBlur(frame, (0, 0), sigma) * light + noise, 0, 255)
    return result[0] if pixels.ndim == 3 else result


def quality(rng: np.random.Generator, split: Split, kind: str) -> int:
    """JPEG quality of an image or constant rate factor of a video."""
    if kind == "image":
        return int(rng.integers(45, 71)) if split == "shift" else 92
    return int(rng.integers(25, 30)) if split == "shift" else 19


def _light(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Factors float32 `[H, W, 1]` of a light that falls off to one side."""
    turn = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    slope = (x * np.cos(turn) + y * np.sin(turn)) * rng.uniform(0.05, 0.25)
    return (rng.uniform(0.8, 1.05) + slope)[..., None].astype(np.float32)
