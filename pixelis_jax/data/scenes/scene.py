"""A synthetic task as data: pixels, a question, its answer, and where everything in it is."""

from __future__ import annotations

import dataclasses
import hashlib
import io
from pathlib import Path
from typing import Any, Literal

import av
import cv2
import numpy as np

from tools_host.protocol import Box

Split = Literal["train", "val", "test", "shift"]
SPLITS: tuple[Split, ...] = ("train", "val", "test", "shift")

BoxF = tuple[float, float, float, float]
"""x1, y1, x2, y2 in pixels, ends exclusive."""

FPS = 10
"""Frames a second of every clip."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class SceneObject:
    """A thing in a scene, where it is and what it shows.

    Attributes:
      name: How a question or a caption names it, e.g. `red card`.
      kind: `card`, `bar`, `ball`, `lamp`, `line` or `shot`.
      boxes: float32 `[T, 4]` in pixels, ends exclusive; T is the number of frames (1 for an image). NaN where it is not
        visible.
      colour: Name of its colour, or None where all of its kind look alike.
      text: String that it carries.
      shape: Name of the mark that it carries.
      angle: Degrees of a bar, anticlockwise from the horizontal.
      lit: Bool `[T]` of a lamp: when it shines.
      text_frames: First and last frame that shows `text`; None if every frame does.
      written: Box of the string or mark, in pixels from the object's top left corner.
    """

    name: str
    kind: str
    boxes: np.ndarray
    colour: str | None = None
    text: str | None = None
    shape: str | None = None
    angle: int | None = None
    lit: np.ndarray | None = None
    text_frames: tuple[int, int] | None = None
    written: tuple[int, int, int, int] | None = None

    def box_px(self, frame: int = 0) -> BoxF | None:
        """Box in pixels at a frame, or None where the object is not visible."""
        row = self.boxes[min(frame, len(self.boxes) - 1)]
        return None if np.isnan(row).any() else (float(row[0]), float(row[1]), float(row[2]), float(row[3]))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """A question about an image or a clip, with its answer.

    Attributes:
      family: Name in `FAMILIES`.
      split: `train`, `val`, `test` or `shift`.
      index: Number within family and split.
      kind: `image` or `video`.
      pixels: RGB uint8: `[H, W, 3]` of an image, `[T, H, W, 3]` of a video at `FPS` frames a second.
      question: At most about 14 words.
      answer: In the wording that the policy learns.
      verifier: Name of the verifier that judges answers.
      truth: What that verifier compares with.
      objects: Everything that was drawn, targets and distractors.
      target: Index in `objects` of what the question asks about.
      quality: Of the file: JPEG quality of an image, constant rate factor of a video.
    """

    family: str
    split: Split
    index: int
    kind: Literal["image", "video"]
    pixels: np.ndarray
    question: str
    answer: str
    verifier: str
    truth: Any
    objects: tuple[SceneObject, ...]
    target: int
    quality: int

    @property
    def width(self) -> int:
        """Pixels across."""
        return self.pixels.shape[-2]

    @property
    def height(self) -> int:
        """Pixels down."""
        return self.pixels.shape[-3]

    @property
    def asked(self) -> SceneObject:
        """The object that the question asks about."""
        return self.objects[self.target]

    def encode(self) -> bytes:
        """The file: a JPEG or an H.264 MP4; the same bytes each time on one machine."""
        if self.kind == "video":
            return encode_video(self.pixels, self.quality)
        parameters = [cv2.IMWRITE_JPEG_QUALITY, self.quality]
        _, data = cv2.imencode(".jpg", cv2.cvtColor(self.pixels, cv2.COLOR_RGB2BGR), parameters)
        return data.tobytes()

    def save(self, directory: Path) -> Path:
        """Writes the file into `directory` under a name that says nothing (a hash of its bytes); returns its path."""
        data = self.encode()
        suffix = ".mp4" if self.kind == "video" else ".jpg"
        path = directory / (hashlib.sha256(data).hexdigest()[:20] + suffix)
        if not path.exists():
            directory.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".partial")
            partial.write_bytes(data)
            partial.rename(path)
        return path


def encode_video(frames: np.ndarray, quality: int) -> bytes:
    """MP4 of RGB uint8 `[T, H, W, 3]` at `FPS`; one thread, since several would make other bytes on each machine.

    Args:
      frames: RGB uint8 `[T, H, W, 3]`, even height and width.
      quality: Constant rate factor of libx264, lower is better.
    """
    target = io.BytesIO()
    with av.open(target, "w", format="mp4") as container:
        options = {"crf": str(quality), "preset": "superfast", "threads": "1"}
        stream = container.add_stream("libx264", rate=FPS, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1
        for frame in frames:
            # OpenCV converts the colours five times as fast as the encoder's own scaler.
            planes = cv2.cvtColor(frame, cv2.COLOR_RGB2YUV_I420)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(planes, format="yuv420p")))
        container.mux(stream.encode(None))
    return target.getvalue()


SQUEEZE = (0.6, 0.95)
"""Least and greatest factor of the side that `reframe` makes shorter."""

CLOSE = (0.05, 1.0)
"""Least and greatest margin around the asked thing in a close-up, as shares of its sides."""


def reframe(scene: Scene, share: float, rng: np.random.Generator) -> Scene:
    """A scene in another frame: no square (users' media are none either), or a close-up of what is asked.

    Scenes with angles stay as they are; close-ups are made of cards in images only.

    Args:
      scene: As drawn.
      share: Of the cases in which it is changed, 0..1.
      rng: Decides.
    """
    if rng.random() >= share or any(thing.angle is not None for thing in scene.objects):
        return scene
    if scene.kind == "image" and scene.asked.kind == "card" and rng.random() < 0.5:
        return close_up(scene, rng.uniform(*CLOSE, 4))
    factors = [rng.uniform(*SQUEEZE), 1.0]
    rng.shuffle(factors)
    return squeezed(scene, *factors)


def close_up(scene: Scene, margins: np.ndarray) -> Scene:
    """An image cut around what is asked; things that are not wholly in it are no longer listed as visible.

    Args:
      scene: An image's.
      margins: Left, top, right, bottom, not negative, as shares of the asked thing's sides.
    """
    x1, y1, x2, y2 = scene.asked.boxes[0]
    spans = np.array([x2 - x1, y2 - y1] * 2)
    window = np.rint(np.array([x1, y1, x2, y2]) + margins * spans * (-1, -1, 1, 1)).astype(int)
    left, top, right, bottom = np.clip(window, 0, [scene.width, scene.height] * 2).tolist()
    corners = np.array([left, top] * 2)
    limits = np.array([right - left, bottom - top] * 2)
    objects: list[SceneObject] = []
    for thing in scene.objects:
        moved = (thing.boxes - corners).astype(np.float32)
        whole = (moved >= 0).all() and (moved <= limits).all()
        objects.append(dataclasses.replace(thing, boxes=moved if whole else np.full_like(moved, np.nan)))
    return dataclasses.replace(scene, pixels=scene.pixels[top:bottom, left:right].copy(), objects=tuple(objects))


def squeezed(scene: Scene, across: float, down: float) -> Scene:
    """The scene resized; sides stay even, for the video encoder.

    Args:
      scene: As drawn.
      across: Factor of its width, above 0.
      down: Factor of its height, above 0.
    """
    width, height = (2 * round(side * factor / 2) for side, factor in ((scene.width, across), (scene.height, down)))
    frames = scene.pixels if scene.kind == "video" else scene.pixels[None]
    frames = np.stack([cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA) for frame in frames])
    scale = np.array([width / scene.width, height / scene.height] * 2)
    objects = tuple(
        dataclasses.replace(
            thing,
            boxes=(thing.boxes * scale).astype(np.float32),
            written=None if thing.written is None else tuple(np.rint(thing.written * scale).astype(int).tolist()),
        )
        for thing in scene.objects
    )
    return dataclasses.replace(scene, pixels=frames if scene.kind == "video" else frames[0], objects=objects)


def relative(box: BoxF, width: int, height: int) -> Box:
    """A pixel box in 0..1000 of a medium, rounded to the nearest integers and clamped."""
    scale = (1000 / width, 1000 / height) * 2
    x1, y1, x2, y2 = (min(1000, max(0, round(side * factor))) for side, factor in zip(box, scale, strict=True))
    return x1, y1, x2, y2
