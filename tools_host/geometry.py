"""Boxes and masks: between 0..1000 and pixels, between a derived medium and its root, and COCO run-length encoding."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from tools_host.images import MAX_PIXELS
from tools_host.protocol import Box, Media, Parent

BoxPx = tuple[int, int, int, int]
"""x1, y1, x2, y2 in pixels, ends exclusive."""

_RUNS = re.compile(r"(?:[P-o]{0,6}[0-O])+")
"""Digits of runs: `P` to `o` go on, `0` to `O` end a run. No run of a mask that fits into memory takes more than seven."""

SCALE = 1000
"""Coordinates run from 0 to this, on both sides of a medium."""


def to_pixels(box: Box, width: int, height: int) -> BoxPx:
    """Pixels of a relative box: `[floor(x1 W/1000), ceil(x2 W/1000))`, clamped to the medium and never empty.

    Args:
      box: Relative box, 0..1000.
      width: Of the medium, in pixels.
      height: Of the medium, in pixels.
    """
    x1, x2 = _pixel_range(box[0], box[2], width)
    y1, y2 = _pixel_range(box[1], box[3], height)
    return x1, y1, x2, y2


def to_relative(box_px: tuple[float, float, float, float], width: int, height: int) -> Box:
    """A relative box whose pixels hold `box_px`, clamped to 0..1000 and never empty.

    It is exact (`to_pixels` gives `box_px` back) up to 1000 pixels a side if the box is at least 2 pixels wide and
    high, and undoes `to_pixels` from 1000 pixels a side on.

    Args:
      box_px: Pixels, ends exclusive; fractions are widened to whole pixels.
      width: Of the medium, in pixels.
      height: Of the medium, in pixels.
    """
    x1, x2 = _relative_range(box_px[0], box_px[2], width)
    y1, y2 = _relative_range(box_px[1], box_px[3], height)
    return x1, y1, x2, y2


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """COCO run-length encoding of a bool `[H, W]` mask, with `counts` as text so that it is JSON."""
    encoded = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in encoded["size"]], "counts": encoded["counts"].decode("ascii")}


def decode_mask(rle: Any, shape: tuple[int, int] | None = None) -> np.ndarray:
    """Bool `[H, W]` of a COCO run-length encoding whose `counts` are text; raises as `check_mask`."""
    check_mask(rle, shape)
    encoded = {"size": list(rle["size"]), "counts": rle["counts"].encode("ascii")}
    return coco_mask.decode(encoded).astype(bool)


def check_mask(rle: Any, shape: tuple[int, int] | None = None) -> None:
    """Checks a run-length encoding that may come from anybody: pycocotools trusts it, and reads beyond its own memory.

    Args:
      rle: `{"size": [H, W], "counts": text}`.
      shape: The H and W that it must have, if known.

    Raises:
      ValueError: If it is something else, its runs do not fill the mask, or the mask has another shape.
    """
    if not isinstance(rle, Mapping) or set(rle) != {"size", "counts"}:
        raise ValueError("a mask has a size and counts")
    size, counts = rle["size"], rle["counts"]
    if not isinstance(size, list | tuple) or len(size) != 2 or any(type(side) is not int or side < 1 for side in size):
        raise ValueError("the size of a mask is two positive integers")
    if size[0] * size[1] > MAX_PIXELS:
        raise ValueError(f"a mask of {size[1]} x {size[0]} pixels is larger than any medium")
    if shape is not None and tuple(size) != tuple(shape):
        raise ValueError(f"the mask is of {size[1]} x {size[0]} pixels, its medium of {shape[1]} x {shape[0]}")
    if not isinstance(counts, str) or not _RUNS.fullmatch(counts):
        raise ValueError("the counts of a mask are no run-length encoding")
    runs = _run_lengths(counts)
    if (runs < 0).any() or int(runs.sum()) != size[0] * size[1]:
        raise ValueError(f"the runs of the mask do not fill {size[1]} x {size[0]} pixels")


def _run_lengths(counts: str) -> np.ndarray:
    """Run lengths, int64 `[N]`. A run is digits of 5 bits, lowest first, the last of them signed; from the fourth run on it is
    the difference to the run before the last (`rleFrString` of the COCO API, https://github.com/cocodataset/cocoapi)."""
    digits = np.frombuffer(counts.encode("ascii"), np.uint8).astype(np.int64) - ord("0")
    last = digits & 32 == 0
    starts = np.flatnonzero(np.concatenate([[True], last[:-1]]))
    place = 5 * (np.arange(len(digits)) - np.repeat(starts, np.diff([*starts, len(digits)])))
    negative = last & (digits & 16 != 0)
    runs = np.add.reduceat(((digits & 31) << place) - np.where(negative, 32 << place, 0), starts)
    for first in (1, 2):
        runs[first::2] = np.cumsum(runs[first::2])
    return runs


def to_root(media: Sequence[Media], media_id: int, box: Box) -> tuple[int, BoxPx]:
    """Follows `parent` from a derived medium to the file that it came from.

    Args:
      media: The episode's media, ids counting from 1 in order.
      media_id: The medium that `box` is relative to.
      box: Relative box.

    Returns:
      Id of the root, and the box in the root's pixels.
    """
    medium = media[media_id - 1]
    x1, y1, x2, y2 = to_pixels(box, medium.width, medium.height)
    while medium.parent is not None:
        left, top = _crop_of(media, medium.parent)[:2]
        x1, y1, x2, y2 = x1 + left, y1 + top, x2 + left, y2 + top
        medium = media[medium.parent.media - 1]
    return medium.id, (x1, y1, x2, y2)


def from_root(media: Sequence[Media], media_id: int, box_px: BoxPx) -> Box | None:
    """The part of a box in a root's pixels that a medium shows, relative to that medium; None if it shows none.

    Args:
      media: The episode's media, ids counting from 1 in order.
      media_id: The derived medium (or a root itself).
      box_px: Pixels of the root that `media_id` descends from.
    """
    medium = media[media_id - 1]
    left, top = to_root(media, media_id, (0, 0, SCALE, SCALE))[1][:2]
    x1, y1 = max(box_px[0] - left, 0), max(box_px[1] - top, 0)
    x2, y2 = min(box_px[2] - left, medium.width), min(box_px[3] - top, medium.height)
    if x1 >= x2 or y1 >= y2:
        return None
    return to_relative((x1, y1, x2, y2), medium.width, medium.height)


def _crop_of(media: Sequence[Media], parent: Parent) -> BoxPx:
    above = media[parent.media - 1]
    return to_pixels(parent.bbox_2d or (0, 0, SCALE, SCALE), above.width, above.height)


def _pixel_range(low: int, high: int, size: int) -> tuple[int, int]:
    # Integer arithmetic: a float quotient such as 290 * 100 / 1000 may land on either side of a whole number.
    start = min(max(low * size // SCALE, 0), size - 1)
    end = min(max(-(-high * size // SCALE), start + 1), size)
    return start, end


def _relative_range(low: float, high: float, size: int) -> tuple[int, int]:
    first = min(max(math.floor(low), 0), size - 1)
    last = min(max(math.ceil(high), first + 1), size)
    # Inwards to the edge's own coordinate, but no further than the last one whose pixels still reach the edge.
    start = min(-(-first * SCALE // size), ((first + 1) * SCALE - 1) // size)
    end = max(last * SCALE // size, (last - 1) * SCALE // size + 1)
    return (start, end) if start < end else (min(start, SCALE - 1), min(start, SCALE - 1) + 1)
