"""The zoom call of Qwen3-VL's published cookbook, mapped to `zoom`."""

from __future__ import annotations

from collections.abc import Sequence

from tools_host.arguments import check
from tools_host.protocol import Box, Media, ToolCall, ToolFailure, ToolOutput
from tools_host.schema import describe


def image_zoom_in_tool(bbox_2d: Box, label: str, img_idx: int) -> ToolOutput:
    """Zoom in on a region of an image by cropping it, optionally naming the object in it.

    Args:
      bbox_2d: The region to zoom in on, as [x1, y1, x2, y2] with numbers from 0 to 1000.
      label: The name of the object in the region.
      img_idx: The index of the image, counting images from 0.
    """
    raise AssertionError("the call is mapped to zoom before anything runs")


QWEN_ZOOM = describe(image_zoom_in_tool, paper="ZOOM", version="1", kinds=("image",))
"""Described, but not registered: it exists in the dialect alone."""


def to_native(call: ToolCall, media: Sequence[Media]) -> ToolCall:
    """Maps `image_zoom_in_tool` to `zoom`; other calls stay as they are.

    Args:
      call: A call in the dialect.
      media: The episode's media; `img_idx` counts the images among them from 0.

    Raises:
      ToolFailure: If its arguments are wrong.
    """
    if call.name != QWEN_ZOOM.name:
        return call
    arguments = check(QWEN_ZOOM, call.arguments, media, ()).arguments
    images = [medium.id for medium in media if medium.kind == "image"]
    index = arguments["img_idx"]
    if not 0 <= index < len(images):
        known = f"img_idx counts from 0 to {len(images) - 1}" if images else "there is no image"
        raise ToolFailure("no_such_media", f"image {index} does not exist; {known}")
    native = {"media": images[index], "bbox_2d": list(arguments["bbox_2d"]), "label": arguments["label"]}
    return ToolCall(name="zoom", arguments=native)
