"""The trackers of OpenCV's contributed modules: KCF (Henriques et al., 2015) and CSRT (Lukezic et al., 2017)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import cv2
import numpy as np

from tools_host.backends.base import BoxPx, Sighting


class OpenCvTracker:
    """Back-ends `track/kcf` and `track/csrt`.

    Args:
      create: Name of OpenCV's function that makes the tracker, e.g. `TrackerKCF_create`.
    """

    def __init__(self, create: str) -> None:
        # OpenCV's type stubs leave the contributed modules out.
        self._create: Callable[[], Any] = getattr(cv2, create)

    def follow(self, frames: Iterator[tuple[float, np.ndarray]], box_px: BoxPx) -> list[Sighting]:
        """See `Tracker.follow`. Ends where the tracker reports that it lost the thing."""
        cv2.setRNGSeed(0)
        time_s, image = next(frames)
        tracker = self._create()
        x1, y1, x2, y2 = (round(value) for value in box_px)
        tracker.init(np.ascontiguousarray(image[..., ::-1]), (x1, y1, max(2, x2 - x1), max(2, y2 - y1)))
        sightings = [Sighting(time_s=time_s, box_px=box_px, score=1.0)]
        for time_s, image in frames:
            found, (x, y, width, height) = tracker.update(np.ascontiguousarray(image[..., ::-1]))
            if not found:
                break
            sightings.append(Sighting(time_s=time_s, box_px=(x, y, x + width, y + height), score=1.0))
        return sightings
