"""ZOOM: looks closer."""

from __future__ import annotations

from tools_host.geometry import to_pixels
from tools_host.protocol import Box, Derived, MediaView, ToolOutput
from tools_host.schema import Seconds, tool


@tool(paper="ZOOM", version="1")
def zoom(media: MediaView, bbox_2d: Box, time_s: Seconds | None = None, label: str | None = None) -> ToolOutput:
    """Shows a box of an image or of a video frame at its original resolution.

    Args:
      media: Image or video to look at.
      bbox_2d: What to look at.
      time_s: Frame of a video; the first if left out.
      label: What you look for.
    """
    box = to_pixels(bbox_2d, media.width, media.height)
    time = nearest_time(media, time_s)
    width, height = box[2] - box[0], box[3] - box[1]
    summary = f"{label}, {width} x {height} px" if label else f"{width} x {height} px"
    data = {"width": width, "height": height} | ({} if time is None else {"time_s": time})
    return ToolOutput(summary=summary, derived=(Derived(kind="crop", box_px=box, time_s=time),), data=data)


def nearest_time(media: MediaView, time_s: float | None) -> float | None:
    """Time of the frame that is used for `time_s` (default: the first); None for an image."""
    if media.kind == "image":
        return None
    times = media.frame_times()
    return float(times[abs(times - (times[0] if time_s is None else time_s)).argmin()])
