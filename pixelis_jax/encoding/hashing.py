"""Perceptual hashes: which media show the same picture, whatever their files hold."""

from __future__ import annotations

from collections.abc import Sequence

import imagehash
import numpy as np
from PIL import Image

NEAR = 4
"""Two media whose 64-bit perceptual hashes differ in at most this many bits are near-duplicates."""


def frames_hash(frames: Sequence[np.ndarray]) -> int:
    """64-bit pHash of an image, or of a video by some of its frames side by side (here: first, middle and last).

    Args:
      frames: One or more, uint8 `[H, W, 3]` each, of one size.

    Returns:
      In `[0, 2^64)`; the number of bits in which two differ is their distance.
    """
    bits = imagehash.phash(Image.fromarray(np.concatenate(list(frames), axis=1))).hash.ravel()
    return int("".join("1" if bit else "0" for bit in bits), 2)
