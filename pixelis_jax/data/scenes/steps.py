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


def flashed_box(scene: Scene) -> BoxF:
    """The asked object's box in the first frame that shows it."""
    return box_of(scene, int(np.argmax(~np.isnan(scene.asked.boxes[:, 0]))))
