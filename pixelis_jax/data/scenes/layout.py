"""Where things stand and how they move, without touching each other; and the nine zones that questions name."""

from __future__ import annotations

import numpy as np

# As the track tool words them: the answer can be copied from what it says.
ZONES = (
    "top left", "top", "top right",
    "middle left", "middle", "middle right",
    "bottom left", "bottom", "bottom right",
)  # fmt: skip

FRAMES = 60
"""Frames of a clip: 6 s."""

UNSEEN = (range(1, 8), range(10, 16), range(18, 25), range(27, 33), range(35, 42), range(44, 50), range(52, 59))
"""Runs of frames that none of 8 frames sampled evenly from 60 falls on, whichever way the sampler rounds."""


def spread(rng: np.random.Generator, sizes: list[tuple[int, int]], side: int, gap: int) -> list[tuple[int, int]]:
    """Top left corners of rectangles that keep `gap` pixels from each other and 6 from the border.

    Args:
      rng: Random generator.
      sizes: Width and height of each rectangle.
      side: Of the square that they stand in.
      gap: Least distance between two of them.

    Raises:
      ValueError: If no arrangement was found in 200 attempts.
    """
    for _ in range(200):
        boxes: list[tuple[int, int, int, int]] = []
        for width, height in sizes:
            # 40 candidates at once; the first free one is taken.
            xs = rng.integers(6, side - width - 5, 40)
            ys = rng.integers(6, side - height - 5, 40)
            free = np.ones(40, bool)
            for x1, y1, x2, y2 in boxes:
                apart = (xs >= x2 + gap) | (xs + width + gap <= x1) | (ys >= y2 + gap) | (ys + height + gap <= y1)
                free &= apart
            if not free.any():
                break
            first = int(np.argmax(free))
            boxes.append((int(xs[first]), int(ys[first]), int(xs[first]) + width, int(ys[first]) + height))
        else:
            return [(x1, y1) for x1, y1, _, _ in boxes]
    raise ValueError(f"{len(sizes)} rectangles do not fit into {side} pixels")


def zone_point(rng: np.random.Generator, zone: int, side: int, reach: tuple[float, float]) -> np.ndarray:
    """A point `[2]` in a zone, at most `reach` pixels (x, y) from its middle."""
    middle = (np.array([zone % 3, zone // 3]) + 0.5) * side / 3
    return middle + rng.uniform(-1, 1, 2) * reach


def crossing_paths(
    rng: np.random.Generator,
    end_zone: int,
    side: int,
    apart: tuple[float, float],
    reach: tuple[float, float],
    last: int,
) -> tuple[np.ndarray, list[int], list[int]]:
    """Paths of four things that cross each other's tracks but never meet.

    Args:
      rng: Random generator.
      end_zone: Zone in which the first one ends; given, so that rejected attempts cannot bias the answer.
      side: Of the square frame, in pixels.
      apart: At each moment two centres differ by at least this much in x or in y.
      reach: How far from the middle of its zone a path may begin and end, in x and y.
      last: Frame from which on nothing moves.

    Returns:
      Centres float `[4, FRAMES, 2]`, the zones of the starts, the zones of the ends; starts differ, ends differ.
    """
    margin = np.asarray(apart) * 0.62
    while True:
        starts = [int(zone) for zone in rng.permutation(9)[:4]]
        others = [zone for zone in rng.permutation(9) if zone != end_zone]
        ends = [end_zone, *(int(zone) for zone in others[:3])]
        paths: list[np.ndarray] = []
        for start, end in zip(starts, ends, strict=True):
            path = _free_path(rng, zone_point(rng, start, side, reach), zone_point(rng, end, side, reach), paths,
                              side, apart, margin, last)  # fmt: skip
            if path is None:
                break
            paths.append(path)
        else:
            return np.stack(paths), starts, ends


def _free_path(
    rng: np.random.Generator,
    start: np.ndarray,
    end: np.ndarray,
    others: list[np.ndarray],
    side: int,
    apart: tuple[float, float],
    margin: np.ndarray,
    last: int,
) -> np.ndarray | None:
    """One of 120 random cubic curves, float `[FRAMES, 2]`, that keeps clear of `others` and is neither short nor fast."""
    handles = rng.uniform(margin, side - margin, (120, 2, 2))
    share = _ease(np.clip((np.arange(FRAMES) - 3) / (last - 3), 0, 1))[None, :, None]
    curves = (
        (1 - share) ** 3 * start
        + 3 * (1 - share) ** 2 * share * handles[:, None, 0]
        + 3 * (1 - share) * share**2 * handles[:, None, 1]
        + share**3 * end
    )
    steps = np.hypot(*np.moveaxis(np.diff(curves, axis=1), -1, 0))
    good = (steps.max(1) < 11.5) & (steps.sum(1) > 0.55 * side)
    for other in others:
        gap = np.abs(curves - other)
        good &= ((gap[..., 0] >= apart[0]) | (gap[..., 1] >= apart[1])).all(1)
    return curves[int(np.argmax(good))] if good.any() else None


def _ease(share: np.ndarray) -> np.ndarray:
    """Starts and stops softly: speed rises over the first and falls over the last fifth."""
    ramp = 0.2
    top = 1 / (1 - ramp)
    rising = top * share**2 / (2 * ramp)
    falling = 1 - top * (1 - share) ** 2 / (2 * ramp)
    return np.where(share < ramp, rising, np.where(share > 1 - ramp, falling, top * (share - ramp / 2)))
