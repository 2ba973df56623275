"""Small helpers of the oracle chains."""

from __future__ import annotations

import numpy as np

from pixelis_jax.data.scenes.scene import BoxF, Scene
from tools_host.geometry import to_pixels
from tools_host.protocol import Box, ToolCall


def call(name: str, **arguments: object) -> ToolCall:
    """A call; arguments stand in the order in which they are given, as the model will write them."""
    values = {key: list(value) if isinstance(value, tuple) else value for key, value in arguments.items()}
    return ToolCall(name=name, arguments=values)


def box_of(scene: Scene, frame: int = 0) -> BoxF:
    """The asked object's box in pixels at a frame where it is visible.

    Raises:
      ValueError: If it is not visible then.
    """
    box = scene.asked.box_px(frame)
    if box is None:
        raise ValueError(f"{scene.asked.name} is not visible in frame {frame} of {scene.family} {scene.index}")
    return box


def inside_crop(box: BoxF, crop: Box, scene: Scene) -> tuple[BoxF, int, int]:
    """A pixel box of a scene in the pixels of a crop of it, with the crop's width and height."""
    x1, y1, x2, y2 = to_pixels(crop, scene.width, scene.height)
    moved = (box[0] - x1, box[1] - y1, box[2] - x1, box[3] - y1)
    return moved, x2 - x1, y2 - y1


def mark_seen(scene: Scene, crop: Box, frame: int = 0) -> str | None:
    """What a policy can make out in a crop: the mark on the card that it shows, if it shows one large enough.

    Args:
      scene: The scene.
      crop: Box of the crop, 0..1000.
      frame: Of a clip.

    Returns:
      The shape on the card that lies most in the crop, if most of it does and it takes up at least a third of the
      crop's width; or None.
    """
    x1, y1, x2, y2 = to_pixels(crop, scene.width, scene.height)
    best, most = None, 0.6
    for thing in scene.objects:
        box = thing.box_px(frame)
        if thing.shape is None or box is None or 3 * (box[2] - box[0]) < x2 - x1:
            continue
        width, height = min(x2, box[2]) - max(x1, box[0]), min(y2, box[3]) - max(y1, box[1])
        share = max(0.0, width) * max(0.0, height) / ((box[2] - box[0]) * (box[3] - box[1]))
        if share > most:
            best, most = thing.shape, share
    return best


def flash_frame(scene: Scene) -> int:
    """First frame that shows the asked object."""
    return int(np.argmax(~np.isnan(scene.asked.boxes[:, 0])))
