"""Small tools for the tests of the framework, imported by name in the tests and in the workers that they start."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Literal

import numpy as np

from tools_host.backend import backend
from tools_host.geometry import to_pixels
from tools_host.protocol import Box, Derived, Found, MediaView, RegionView, Span, ToolFailure, ToolOutput
from tools_host.schema import Point, Seconds, tool


@tool(paper="LAB", version="1")
def lab_crop(
    media: MediaView, bbox_2d: Box, time_s: Seconds | None = None, kind: Literal["crop", "overlay"] = "crop"
) -> ToolOutput:
    """Crops a box.

    Args:
      media: Image or video to look at.
      bbox_2d: What to cut out.
      time_s: Frame of a video.
      kind: What to show.
    """
    box_px = to_pixels(bbox_2d, media.width, media.height)
    mask = np.zeros((media.height, media.width), dtype=bool)
    mask[box_px[1] : box_px[3], box_px[0] : box_px[2]] = True
    mean = media.image(time_s)[mask].mean()
    found = Found(box_px=box_px, mask=mask, time_s=time_s, text="cut", score=0.123456)
    derived = Derived(kind=kind, box_px=box_px, time_s=time_s, region=0 if kind == "overlay" else None)
    return ToolOutput(summary="cropped", regions=(found,), derived=(derived,), data={"mean": float(mean), "at_s": 1.23456})


@tool(paper="LAB", version="1", kinds=("video",))
def lab_film(media: MediaView, start_s: Seconds | None = None, region: RegionView | None = None) -> ToolOutput:
    """Looks at a video.

    Args:
      media: Video to look at.
      start_s: Where to begin.
      region: Where to look.
    """
    times = [time_s for time_s, _ in media.frames(start_s or 0.0, media.duration_s or 0.0)]
    return ToolOutput(spans=(Span(start_s=times[0], end_s=times[-1], score=1.0),), data={"frames": len(times)})


@tool(paper="LAB", version="1")
def lab_all_types(
    media: MediaView,
    point_2d: Point,
    count: int,
    ratio: float = 0.5,
    flag: bool = False,
    word: str | None = None,
    colour: Literal["red", "blue"] = "red",
    *,
    rng: np.random.Generator,
) -> ToolOutput:
    """Takes one argument of each kind.

    Args:
      media: Any medium.
      point_2d: A point.
      count: How many.
      ratio: How much.
      flag: Whether.
      word: Some text.
      colour: A colour.
    """
    return ToolOutput(summary=f"{point_2d} {count} {ratio} {flag} {word} {colour} {int(rng.integers(10**9))}")


@tool(paper="LAB", version="1")
def lab_fault(how: Literal["sleep", "kill", "hog", "raise", "refuse", "modules", "threads", "pid"], nonce: int = 0) -> ToolOutput:
    """Misbehaves.

    Args:
      how: In which way.
      nonce: Makes a call different from the others.
    """
    if how == "sleep":
        time.sleep(60)
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "hog":
        np.ones(2**36, dtype=np.uint8)
    if how == "raise":
        raise RuntimeError("a bug")
    if how == "refuse":
        raise ToolFailure("missing_argument", "give more", "say what")
    if how == "threads":
        import cv2

        return ToolOutput(data={"cv2": cv2.getNumThreads(), "omp": os.environ.get("OMP_NUM_THREADS")})
    if how == "pid":
        time.sleep(0.05)
        return ToolOutput(data={"pid": os.getpid(), "nonce": nonce})
    return ToolOutput(data={"modules": sorted(name for name in sys.modules if "." not in name)})


@backend("lab_engine", "counter", version="7")
class Counter:
    """Counts how often it was used since it was loaded."""

    def __init__(self, *, start: int = 0) -> None:
        self.count = start

    def next(self) -> int:
        """One more."""
        self.count += 1
        return self.count


@backend("lab_engine", "fixed", version="8")
class Fixed:
    """Always the same."""

    def next(self) -> int:
        """Minus one."""
        return -1


@tool(paper="LAB", version="2")
def lab_engine(nonce: int, *, backend: Counter) -> ToolOutput:
    """Uses a back-end.

    Args:
      nonce: Makes a call different from the others.
    """
    return ToolOutput(data={"count": backend.next()})
