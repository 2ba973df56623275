"""PROP: measures an object."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tools_host.geometry import BoxPx, to_pixels
from tools_host.protocol import Box, MediaView, RegionView, ToolFailure, ToolOutput
from tools_host.schema import Seconds, tool
from tools_host.tools.zoom import nearest_time


@tool(paper="PROP", version="1")
def properties(
    media: MediaView | None = None,
    bbox_2d: Box | None = None,
    time_s: Seconds | None = None,
    region: RegionView | None = None,
    other: RegionView | None = None,
) -> ToolOutput:
    """Measures an object: colour, shape, orientation, area, texture; with other also distance, relation and size ratio.

    Args:
      media: Image or video, with bbox_2d.
      bbox_2d: Box around the object.
      time_s: Frame of a video; the first if left out.
      region: A region found before, in place of media and bbox_2d.
      other: A region to compare with.
    """
    view, box, mask, time = _subject(media, bbox_2d, time_s, region)
    image = view.image(time)
    measured, inside = _measure(image, box, mask)
    words = [measured["colour"]]
    if measured["shape"] not in ("irregular", "unknown"):
        words[0] += f" {measured['shape']}"
    if measured["texture"] != "uniform":
        words.append(str(measured["texture"]))
    if measured["orientation_deg"] is not None:
        words.append(f"orientation {round(measured['orientation_deg']) % 180} deg")
    words.append(f"area {measured['area_px']} px")
    if other is not None:
        compared = _compare(inside, other, view)
        measured |= compared
        words += [f"{compared['relation']} the other", f"distance {compared['distance_px']:.0f} px"]
        words.append(f"size ratio {compared['size_ratio']:.2f}")
    return ToolOutput(summary=", ".join(words), data=measured)


def _subject(
    media: MediaView | None, bbox_2d: Box | None, time_s: float | None, region: RegionView | None
) -> tuple[MediaView, BoxPx, np.ndarray | None, float | None]:
    """The medium, box, mask and time that the arguments name."""
    if region is not None:
        if bbox_2d is not None:
            raise ToolFailure("unknown_argument", "region already says where, so bbox_2d cannot be given too", "give one of them")
        time = nearest_time(region.media, time_s if time_s is not None else region.time_s)
        return region.media, region.box_px, region.mask if time_s is None else None, time
    if media is None or bbox_2d is None:
        raise ToolFailure("missing_argument", "properties needs an object", "give a region, or media and bbox_2d")
    return media, to_pixels(bbox_2d, media.width, media.height), None, nearest_time(media, time_s)


def _measure(image: np.ndarray, box: BoxPx, mask: np.ndarray | None) -> tuple[dict[str, Any], np.ndarray]:
    """Measures as JSON values, and the mask `[H, W]` that they were taken on."""
    import cv2

    from tools_host.backends import measures
    from tools_host.backends.grabcut import GrabCutSegmenter

    measured_on = "mask"
    if mask is None:
        found = GrabCutSegmenter().segment(image, box)
        measured_on = "box" if found is None else "object"
        if found is not None:
            mask = found[0]
        else:
            mask = np.zeros(image.shape[:2], bool)
            mask[box[1] : box[3], box[0] : box[2]] = True
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    window = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    pixels, part = image[window], mask[window]
    form = measures.form(part)
    core = cv2.erode(np.pad(part, 1).astype(np.uint8), np.ones((3, 3), np.uint8))[1:-1, 1:-1].astype(bool)
    named = measures.colours(pixels[core if core.sum() >= 12 else part])
    texture = measures.texture(np.ascontiguousarray(pixels), part)
    outlined = measured_on != "box"
    return {
        "measured_on": measured_on,
        "colour": named[0][0],
        "colour_share": named[0][1],
        "second_colour": named[1][0] if len(named) > 1 and named[1][1] >= 0.05 else None,
        "second_share": named[1][1] if len(named) > 1 and named[1][1] >= 0.05 else 0.0,
        "area_px": form.area_px,
        "area_share": form.area_px / mask.size,
        "centroid": [
            1000 * (form.centroid[0] + float(columns[0])) / image.shape[1],
            1000 * (form.centroid[1] + float(rows[0])) / image.shape[0],
        ],
        "shape": form.shape if outlined else "unknown",
        "orientation_deg": form.orientation_deg if outlined else None,
        "elongation": form.elongation,
        "texture": texture["kind"],
        "contrast": texture["contrast"],
        "coherence": texture["coherence"],
    }, mask


def _compare(mask: np.ndarray, other: RegionView, view: MediaView) -> dict[str, Any]:
    """Relation of an object to another region of a medium of the same size."""
    if (other.media.width, other.media.height) != (view.width, view.height):
        raise ToolFailure("no_such_region", "other lies in another medium", "compare two regions of one medium")
    if other.mask is not None:
        second = other.mask
    else:
        _, second = _measure(other.media.image(nearest_time(other.media, other.time_s)), other.box_px, None)
    (x, y), (u, v) = _centre(mask), _centre(second)
    return {
        "relation": _relation(x - u, y - v),
        "distance_px": math.hypot(x - u, y - v),
        "size_ratio": float(mask.sum() / max(1, second.sum())),
        "other_area_px": int(second.sum()),
    }


def _centre(mask: np.ndarray) -> tuple[float, float]:
    ys, xs = np.nonzero(mask)
    return float(xs.mean()) + 0.5, float(ys.mean()) + 0.5


def _relation(dx: float, dy: float) -> str:
    """Where a thing lies that is `dx` to the right and `dy` below another one."""
    sideways = "left of" if dx < 0 else "right of"
    upright = "above" if dy < 0 else "below"
    if abs(dx) > 2.4 * abs(dy):
        return sideways
    if abs(dy) > 2.4 * abs(dx):
        return upright
    return f"{upright} and {sideways}"
