"""What the families of clips share."""

from __future__ import annotations

import numpy as np

from pixelis_jax.data.scenes.layout import FRAMES, UNSEEN

SIDE = 384


def blank_clip(ground: np.ndarray) -> np.ndarray:
    """`FRAMES` copies of an RGB image: uint8 `[FRAMES, H, W, 3]`."""
    return np.repeat(ground[None], FRAMES, axis=0)


def unseen_stretches(rng: np.random.Generator, count: int, least: int, most: int) -> list[tuple[int, int]]:
    """`count` stretches of frames (first, end exclusive), each in another of the runs that the sampled frames miss.

    Args:
      rng: Random generator.
      count: At most 7.
      least: Fewest frames of a stretch.
      most: Most frames of a stretch; a shorter run limits it further.
    """
    runs = [UNSEEN[position] for position in rng.permutation(len(UNSEEN))[:count]]
    stretches = []
    for run in runs:
        length = int(rng.integers(least, min(most, len(run)) + 1))
        first = int(rng.integers(run.start, run.stop - length + 1))
        stretches.append((first, first + length))
    return stretches
