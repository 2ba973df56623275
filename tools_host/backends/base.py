"""What a back-end of each tool must offer. A user's own (SAM, PaddleOCR) implements one of these protocols."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np

BoxPx = tuple[float, float, float, float]
"""x1, y1, x2, y2 in pixels, exclusive ends."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """A line of text: its box in pixels of the picture that was read, and a score in 0..1."""

    box_px: BoxPx
    text: str
    score: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sighting:
    """Where a followed thing is in a frame; `score` in 0..1 falls when it was predicted rather than seen."""

    time_s: float
    box_px: BoxPx
    score: float


class Segmenter(Protocol):
    """Finds the object in a box."""

    def segment(self, image: np.ndarray, box_px: BoxPx) -> tuple[np.ndarray, float] | None:
        """Outlines the object in a box.

        Args:
          image: RGB uint8 `[H, W, 3]`.
          box_px: Box around it, in pixels.

        Returns:
          Mask `[H, W]` bool and score in 0..1, or None if there is no object.
        """
        ...


class Tracker(Protocol):
    """Follows a thing through a video."""

    def follow(self, frames: Iterator[tuple[float, np.ndarray]], box_px: BoxPx) -> list[Sighting]:
        """One sighting per frame while the thing is in sight.

        Args:
          frames: `(time_s, RGB uint8 [H, W, 3])`; the box belongs to the first.
          box_px: Box of the thing in the first frame.
        """
        ...


class TextReader(Protocol):
    """Reads text."""

    def read(self, image: np.ndarray) -> tuple[Line, ...]:
        """Lines of an RGB uint8 `[H, W, 3]` image in reading order; boxes in its pixels."""
        ...


class LazyReader:
    """A `TextReader` that is loaded when it first reads.

    Args:
      load: Makes the reader.
    """

    def __init__(self, load: Callable[[], TextReader]) -> None:
        self._load = load

    def read(self, image: np.ndarray) -> tuple[Line, ...]:
        """See `TextReader.read`."""
        return self._load().read(image)
