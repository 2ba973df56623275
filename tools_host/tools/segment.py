"""SEG: outlines an object."""

from __future__ import annotations

import numpy as np

from tools_host.backends.base import Segmenter
from tools_host.geometry import to_pixels
from tools_host.protocol import Box, Derived, Found, MediaView, ToolFailure, ToolOutput
from tools_host.schema import Point, Seconds, tool
from tools_host.tools.zoom import nearest_time


@tool(paper="SEG", version="1")
def segment(
    media: MediaView,
    bbox_2d: Box | None = None,
    point_2d: Point | None = None,
    time_s: Seconds | None = None,
    *,
    backend: Segmenter,
) -> ToolOutput:
    """Outlines one object, given by a box around it or by a point on it.

    Args:
      media: Image or video.
      bbox_2d: Box around the object, roughly.
      point_2d: Point on the object, in place of a box.
      time_s: Frame of a video; the first if left out.
    """
    if (bbox_2d is None) == (point_2d is None):
        raise ToolFailure(
            "missing_argument" if bbox_2d is None else "unknown_argument",
            "segment takes either bbox_2d or point_2d",
            "give a box around one object, or a point on it",
        )
    time = nearest_time(media, time_s)
    image = media.image(time)
    if bbox_2d is not None:
        box: tuple[float, float, float, float] = to_pixels(bbox_2d, media.width, media.height)
    else:
        assert point_2d is not None
        box = box_around(image, (point_2d[0] * media.width / 1000, point_2d[1] * media.height / 1000))
    found = backend.segment(image, box)
    if found is None:
        return ToolOutput(summary="nothing stands out there")
    mask, score = found
    region = Found(box_px=mask_box(mask), mask=mask, time_s=time, score=score)
    share = mask.sum() / ((box[2] - box[0]) * (box[3] - box[1]))
    return ToolOutput(
        regions=(region,),
        derived=(Derived(kind="overlay", box_px=context_box(region.box_px, media), time_s=time, region=0),),
        data={"area_px": int(mask.sum()), "share_of_box": float(share)},
    )


def mask_box(mask: np.ndarray) -> tuple[float, float, float, float]:
    """Tight box of a bool `[H, W]` mask, exclusive ends."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def context_box(box_px: tuple[float, float, float, float], media: MediaView) -> tuple[float, float, float, float]:
    """The box with half its longer side around it, so that an overlay shows the object large and in its place."""
    x1, y1, x2, y2 = box_px
    margin = max(8.0, 0.5 * max(x2 - x1, y2 - y1))
    return (
        max(0.0, x1 - margin),
        max(0.0, y1 - margin),
        min(float(media.width), x2 + margin),
        min(float(media.height), y2 + margin),
    )


def box_around(image: np.ndarray, point: tuple[float, float]) -> tuple[float, float, float, float]:
    """Box around the patch of even colour that holds a point, in pixels.

    A flood fill with the widest tolerance that still stops before a quarter of the picture; where even the narrowest
    leaks, a box of a tenth of the picture.
    """
    import cv2

    height, width = image.shape[:2]
    x, y = min(int(point[0]), width - 1), min(int(point[1]), height - 1)
    smooth = cv2.medianBlur(image, 5)
    for tolerance in (40, 30, 22, 16, 11, 7):
        filled = np.zeros((height + 2, width + 2), np.uint8)
        flags = 4 | cv2.FLOODFILL_MASK_ONLY | cv2.FLOODFILL_FIXED_RANGE | (1 << 8)
        area, *_, (x1, y1, w, h) = cv2.floodFill(smooth, filled, (x, y), 0, (tolerance,) * 3, (tolerance,) * 3, flags)
        if area <= 0.25 * height * width and max(w / width, h / height) < 0.8:
            return float(x1), float(y1), float(x1 + w), float(y1 + h)
    reach_x, reach_y = 0.05 * width, 0.05 * height
    return max(0.0, x - reach_x), max(0.0, y - reach_y), min(float(width), x + reach_x), min(float(height), y + reach_y)
