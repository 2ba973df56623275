"""TRK: follows a thing through a video."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from tools_host.backends.base import Sighting, Tracker
from tools_host.geometry import to_pixels
from tools_host.protocol import Box, Derived, Found, MediaView, ToolFailure, ToolOutput
from tools_host.schema import Seconds, tool
from tools_host.tools.zoom import nearest_time

SAMPLES = 8
"""Most regions returned for one path, the last sighting included."""

_CHUNK = 32
"""Frames that `track_back` holds at once."""


@tool(paper="TRK", version="1", kinds=("video",))
def track(media: MediaView, bbox_2d: Box, time_s: Seconds, until_s: Seconds | None = None, *, backend: Tracker) -> ToolOutput:
    """Follows the thing in a box through a video and says where it goes.

    Args:
      media: Video.
      bbox_2d: Box of the thing at time_s.
      time_s: When it is in the box.
      until_s: When to stop; at the end if left out.
    """
    start = nearest_time(media, time_s)
    if start is None:
        raise ToolFailure("wrong_kind", "an image has no motion", "track needs a video")
    end = float(media.frame_times()[-1]) if until_s is None else until_s
    if end <= start:
        raise ToolFailure("bad_time", f"until_s {end} is not after time_s {start}", "give an until_s after time_s")
    return _output(backend.follow(iter(media.frames(start, end)), _start(bbox_2d, media)), media)


@tool(paper="TRK", version="1", kinds=("video",), checks="track")
def track_back(media: MediaView, bbox_2d: Box, time_s: Seconds, until_s: Seconds, *, backend: Tracker) -> ToolOutput:
    """Follows the thing in a box towards the beginning of a video.

    Args:
      media: Video.
      bbox_2d: Box of the thing at time_s.
      time_s: When it is in the box.
      until_s: Where to stop, before time_s.
    """
    last, first = nearest_time(media, time_s), nearest_time(media, until_s)
    if last is None or first is None:
        raise ToolFailure("wrong_kind", "an image has no motion", "track_back needs a video")
    if first >= last:
        raise ToolFailure("bad_time", f"until_s {until_s} is not before time_s {time_s}", "give an until_s before time_s")
    # Trackers count the seconds for which a thing was hidden, so time has to grow for them.
    path = backend.follow(((last - t, image) for t, image in _backwards(media, first, last)), _start(bbox_2d, media))
    return _output([dataclasses.replace(seen, time_s=last - seen.time_s) for seen in path], media)


def _start(box: Box, media: MediaView) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = to_pixels(box, media.width, media.height)
    return float(x1), float(y1), float(x2), float(y2)


def _backwards(media: MediaView, first: float, last: float) -> Iterator[tuple[float, np.ndarray]]:
    """Frames in `[first, last]`, the last one first; videos are decoded forwards, so a chunk at a time is turned round."""
    times = media.frame_times()
    times = times[(times >= first) & (times <= last)]
    for end in range(len(times), 0, -_CHUNK):
        chunk = times[max(end - _CHUNK, 0) : end]
        yield from reversed(list(media.frames(float(chunk[0]), float(chunk[-1]))))


def _output(path: list[Sighting], media: MediaView) -> ToolOutput:
    regions = tuple(Found(box_px=_within(s.box_px, media), time_s=s.time_s, score=s.score) for s in _sampled(path))
    data = motion(path, media)
    return ToolOutput(
        summary=summary(data),
        regions=regions,
        derived=(Derived(kind="frame", time_s=path[-1].time_s),),
        data=data,
    )


def cell(x: float, y: float, media: MediaView) -> str:
    """Name of the cell of a 3 x 3 grid over the medium, e.g. `top left`, `middle`."""
    row = ("top", "middle", "bottom")[min(2, max(0, int(3 * y / media.height)))]
    column = ("left", "", "right")[min(2, max(0, int(3 * x / media.width)))]
    return f"{row} {column}".strip()


def motion(path: list[Sighting], media: MediaView) -> dict[str, Any]:
    """Measures of a path in pixels, seconds and pixels a second; `direction` is that from first to last, or `none`."""
    centres = np.array([_centre(s) for s in path])
    seconds = path[-1].time_s - path[0].time_s
    net = centres[-1] - centres[0]
    return {
        "start_s": path[0].time_s,
        "end_s": path[-1].time_s,
        "start": cell(float(centres[0, 0]), float(centres[0, 1]), media),
        "end": cell(float(centres[-1, 0]), float(centres[-1, 1]), media),
        "start_px": [float(value) for value in centres[0]],
        "end_px": [float(value) for value in centres[-1]],
        "length_px": _length(centres),
        "distance_px": float(np.hypot(*net)),
        "direction": _direction(net, 0.02 * max(media.width, media.height)),
        "speed_px_s": _length(centres) / seconds if seconds else 0.0,
    }


def summary(data: dict[str, Any]) -> str:
    """One line on a path, e.g. `starts bottom, ends top left after 2.1 s, moves up`."""
    how = "stays" if data["direction"] == "none" else f"moves {data['direction']}"
    return f"starts {data['start']}, ends {data['end']} after {data['end_s'] - data['start_s']:.1f} s, {how}"


def _centre(sighting: Sighting) -> tuple[float, float]:
    x1, y1, x2, y2 = sighting.box_px
    return (x1 + x2) / 2, (y1 + y2) / 2


def _length(centres: np.ndarray) -> float:
    """Length of a path after a moving average over three frames, which takes away a tracker's jitter."""
    if len(centres) > 4:
        centres = np.stack([np.convolve(centres[:, axis], np.full(3, 1 / 3), "valid") for axis in (0, 1)], 1)
    return float(np.hypot(*np.diff(centres, axis=0).T).sum())


def _direction(net: np.ndarray, least: float) -> str:
    """One of eight words, in which up is towards the picture's top; `none` for a shorter move than `least`."""
    if np.hypot(*net) < least:
        return "none"
    names = ("right", "up right", "up", "up left", "left", "down left", "down", "down right")
    return names[round(math.atan2(-net[1], net[0]) / (math.pi / 4)) % 8]


def _within(box_px: tuple[float, float, float, float], media: MediaView) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = box_px
    x1, y1 = min(max(x1, 0.0), media.width - 1.0), min(max(y1, 0.0), media.height - 1.0)
    return x1, y1, min(max(x2, x1 + 1), float(media.width)), min(max(y2, y1 + 1), float(media.height))


def _sampled(path: list[Sighting]) -> list[Sighting]:
    """Sightings at even steps of time, first and last included."""
    picked = np.unique(np.rint(np.linspace(0, len(path) - 1, min(SAMPLES, len(path)))).astype(int))
    return [path[index] for index in picked]
