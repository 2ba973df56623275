"""What the base model is trained on, before it has ever seen a tool: to say what is where.

A question about one object teaches a small model next to nothing about boxes; a caption that lists every object with its box,
in random order, teaches it within minutes (`docs/training.md`). So most samples are captions: of whole scenes and their mirror
images (drawing a scene costs more than learning from it), of crops such as `zoom` will return, and of single frames such as
`localize` will return. The others are the scenes' own questions with their answers, and questions that say their answer among
others: to copy what was read takes a small model as long to learn as to look.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Literal

import numpy as np

from pixelis_jax.data.scenes import FPS, Scene, SceneObject, cut, palette, randomness, relative
from pixelis_jax.data.scenes.draw import SHAPES
from pixelis_jax.data.scenes.layout import ZONES
from pixelis_jax.data.scenes.scene import BoxF
from pixelis_jax.trajectory.grammar import ANSWER_CLOSE, ANSWER_OPEN

DESCRIBE = "Describe it."
"""The question of every caption."""

Kind = Literal["image", "clip", "frame", "crop", "asked", "copy"]
KINDS: tuple[Kind, ...] = ("image", "clip", "frame", "crop", "asked", "copy")
"""What a sample is: a caption of a whole image or clip, of one frame of a clip, of one card; the scene's own question; or a
question that says its answer."""

INKS = ("text", "mark", "bar", *SHAPES)
"""What can stand on a thing: from afar the first three, in a crop text, bar, or the shape of the mark."""

Ink = tuple[BoxF, str]

CROPS = 5
"""Samples of kind `crop` a card, each cut another way."""

COPIES = 6
"""Samples of kind `copy` a scene."""

Mirror = tuple[bool, bool]
MIRRORS: tuple[Mirror, ...] = ((False, False), (True, False), (False, True), (True, True))
"""Whether a sample is mirrored left to right, and top to bottom."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LookSample:
    """Pixels, a question and what to say, without tools.

    Attributes:
      kind: See `KINDS`.
      pixels: RGB uint8, `[H, W, 3]` or sampled frames `[N, H, W, 3]`.
      times_s: Seconds of the frames; None for an image.
      question: What is asked.
      turn: The policy's one turn.
      boxes: The boxes that the turn names, in its order, before they were rounded: x1, y1, x2, y2 in 0..1000.
      inks: Boxes of strings, marks and bars, as above, each with its word of `INKS`.
    """

    kind: Kind
    pixels: np.ndarray
    times_s: np.ndarray | None
    question: str
    turn: str
    boxes: tuple[BoxF, ...] = ()
    inks: tuple[Ink, ...] = ()


def look_samples(scene: Scene, rng: np.random.Generator, *, video_frames: int, step: int) -> Iterator[LookSample]:
    """The samples that one scene gives.

    Args:
      scene: A drawn scene.
      rng: Orders the objects, jitters the crops, picks frames.
      video_frames: Frames of a clip that the model sees, sampled uniformly as the environment does.
      step: Boxes are rounded to multiples of this, in 0..1000.
    """
    if scene.kind == "image":
        for mirror in MIRRORS:
            yield _describe("image", scene.pixels, None, scene, 0, mirror, rng, step)
        yield from _crops(scene, scene.pixels, 0, rng, step)
        yield _ask(scene, scene.pixels, None)
        yield from _copies(scene, scene.pixels, rng)
        return
    frames = np.linspace(0, len(scene.pixels) - 1, video_frames).round().astype(int)
    clip, times = scene.pixels[frames], frames / FPS
    if any(thing.kind != "shot" for thing in scene.objects):
        frame = _telling_frame(scene, rng)
        for mirror in MIRRORS:
            yield _describe("clip", clip, times, scene, 0, mirror, rng, step)
            yield _describe("frame", scene.pixels[frame], None, scene, frame, mirror, rng, step)
        yield from _crops(scene, scene.pixels[frame], frame, rng, step)
    yield _ask(scene, clip, times)
    yield from _copies(scene, scene.pixels[0], rng)


def _ask(scene: Scene, pixels: np.ndarray, times_s: np.ndarray | None) -> LookSample:
    turn = f"{ANSWER_OPEN}{scene.answer}{ANSWER_CLOSE}"
    return LookSample(kind="asked", pixels=pixels, times_s=times_s, question=scene.question, turn=turn)


def _copies(scene: Scene, pixels: np.ndarray, rng: np.random.Generator) -> Iterator[LookSample]:
    """Questions that say their answer, half of them by a name and half by a number; the pixels do not matter."""
    for number in range(COPIES):
        question, turn = _named(scene, rng) if number % 2 else _numbered(rng)
        yield LookSample(kind="copy", pixels=pixels, times_s=None, question=question, turn=turn)


def _numbered(rng: np.random.Generator) -> tuple[str, str]:
    """`When is the second cut? span 1: 0.5-0.6 s; span 2: 2.2-2.3 s`, as `localize` words what it found, in a family's words."""
    times = np.sort(rng.choice(np.arange(1, 60), len(cut.ORDINALS), replace=False))
    spans = [f"span {number}: {first / 10:g}-{(first + 1) / 10:g} s" for number, first in enumerate(times, 1)]
    asked = int(rng.integers(len(times)))
    wording = cut.WORDINGS[int(rng.integers(len(cut.WORDINGS)))].format(ordinal=cut.ORDINALS[asked])
    separator = ("; ", "\n")[int(rng.integers(2))]
    turn = f"The {cut.ORDINALS[asked]} is span {asked + 1}.{ANSWER_OPEN}{times[asked] / 10:g}{ANSWER_CLOSE}"
    return f"{wording} {separator.join(spans)}", turn


def _named(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    """`red "K7XW"; blue 3.5; green top left. What is blue?`"""
    colours = randomness.pick(rng, palette.NAMES, int(rng.integers(2, 5)))
    strings = randomness.random_strings(rng, scene.split, len(colours))
    values = []
    for string in strings:
        number, zone = f"{rng.integers(0, 1800) / 10:g}", ZONES[int(rng.integers(len(ZONES)))]
        values.append((string, number, zone)[int(rng.integers(3))])
    written = [f'"{value}"' if value in strings else value for value in values]
    asked = int(rng.integers(len(colours)))
    said = "; ".join(f"{colour} {value}" for colour, value in zip(colours, written, strict=True))
    return f"{said}. What is {colours[asked]}?", f"{ANSWER_OPEN}{values[asked]}{ANSWER_CLOSE}"


def _describe(
    kind: Kind,
    pixels: np.ndarray,
    times_s: np.ndarray | None,
    scene: Scene,
    frame: int,
    mirror: Mirror,
    rng: np.random.Generator,
    step: int,
) -> LookSample:
    across, down = mirror
    turn, boxes, inks = _caption(scene, frame, mirror, rng, step)
    pixels = pixels[..., :: -1 if down else 1, :: -1 if across else 1, :]
    return LookSample(
        kind=kind,
        pixels=np.ascontiguousarray(pixels),
        times_s=times_s,
        question=DESCRIBE,
        turn=turn,
        boxes=boxes,
        inks=inks,
    )


def _telling_frame(scene: Scene, rng: np.random.Generator) -> int:
    """A frame that a key frame could be: for a thing that is not there at first, one in which it is."""
    late = [thing for thing in scene.objects if thing.box_px(0) is None and not np.isnan(thing.boxes).all()]
    if not late:
        return int(rng.integers(len(scene.pixels)))
    return int(rng.choice(np.flatnonzero(~np.isnan(late[0].boxes[:, 0]))))


def _caption(
    scene: Scene, frame: int, mirror: Mirror, rng: np.random.Generator, step: int
) -> tuple[str, tuple[BoxF, ...], tuple[Ink, ...]]:
    """`red card [120, 140, 260, 400] text` for every visible object, in random order; the boxes unrounded; the inks."""
    parts: list[str] = []
    boxes: list[BoxF] = []
    inks: list[Ink] = []
    for index in rng.permutation(len(scene.objects)):
        thing = scene.objects[index]
        box = thing.box_px(frame)
        if box is None or thing.kind in ("bar", "shot"):
            continue
        content = _content(thing, scene, frame)
        written = _written(thing, box, scene)
        if content and written is not None:
            inks.append((relative(_mirrored(written, mirror, scene), scene.width, scene.height), content))
        box = _mirrored(box, mirror, scene)
        boxes.append(relative(box, scene.width, scene.height))
        parts.append(f"{thing.name}{_where(thing, box, scene)} {round_box(boxes[-1], step)} {content}".rstrip())
    return "; ".join(parts), tuple(boxes), tuple(inks)


def _written(thing: SceneObject, box: BoxF, scene: Scene) -> BoxF | None:
    """Where the string, mark or bar of a thing is, in pixels."""
    bar = _bar_of(thing, scene)
    if bar is not None:
        return bar.box_px(0)
    if thing.written is None:
        return None
    x1, y1, x2, y2 = thing.written
    return box[0] + x1, box[1] + y1, box[0] + x2, box[1] + y2


def _mirrored(box: BoxF, mirror: Mirror, scene: Scene) -> BoxF:
    x1, y1, x2, y2 = box
    if mirror[0]:
        x1, x2 = scene.width - x2, scene.width - x1
    if mirror[1]:
        y1, y2 = scene.height - y2, scene.height - y1
    return x1, y1, x2, y2


def _where(thing: SceneObject, box: BoxF, scene: Scene) -> str:
    """Names the zone of a thing that no colour tells from its like."""
    if thing.colour is not None:
        return ""
    column, row = (min(2, int(3 * (box[i] + box[i + 2]) / 2 / side)) for i, side in enumerate((scene.width, scene.height)))
    return " at the " + ZONES[3 * row + column]


def _content(thing: SceneObject, scene: Scene, frame: int) -> str:
    """What can be told of an object from afar: whether it carries text, a mark or a bar, but not which."""
    if thing.text is not None and (thing.text_frames is None or thing.text_frames[0] <= frame <= thing.text_frames[1]):
        return "text"
    if thing.shape is not None:
        return "mark"
    return "bar" if thing.kind == "card" and _bar_of(thing, scene) is not None else ""


def _bar_of(card: SceneObject, scene: Scene) -> SceneObject | None:
    if card.kind != "card":
        return None
    return next((thing for thing in scene.objects if thing.kind == "bar" and thing.colour == card.colour), None)


def _crops(scene: Scene, pixels: np.ndarray, frame: int, rng: np.random.Generator, step: int) -> Iterator[LookSample]:
    """Every coloured card, cut as loosely or tightly as a model's own box is."""
    cards = [thing for thing in scene.objects if thing.kind == "card" and thing.colour and thing.box_px(frame) is not None]
    for card in cards:
        for _ in range(CROPS):
            yield _crop(scene, pixels, frame, card, rng, step)


def _crop(scene: Scene, pixels: np.ndarray, frame: int, card: SceneObject, rng: np.random.Generator, step: int) -> LookSample:
    """A card as a zoom would show it."""
    box = card.box_px(frame)
    assert box is not None
    x1, y1, x2, y2 = box
    w, h = x2 - x1, y2 - y1
    left, top, right, bottom = rng.uniform(-0.12, 0.25, 4)
    x1, x2 = max(0, round(x1 - left * w)), min(scene.width, round(x2 + right * w))
    y1, y2 = max(0, round(y1 - top * h)), min(scene.height, round(y2 + bottom * h))
    bar = _bar_of(card, scene)
    text = "bar" if bar is not None else card.shape or "text"
    written = _written(card, box, scene)
    boxes: tuple[BoxF, ...] = ()
    inks: tuple[Ink, ...] = ()
    if written is not None:
        inner = (max(written[0], x1) - x1, max(written[1], y1) - y1, min(written[2], x2) - x1, min(written[3], y2) - y1)
        inks = ((relative(inner, x2 - x1, y2 - y1), text),)
        boxes = (inks[0][0],) if bar is not None else ()
    turn = f"bar {round_box(boxes[0], step)}" if boxes else text
    shown = pixels[y1:y2, x1:x2]
    return LookSample(kind="crop", pixels=shown, times_s=None, question=DESCRIBE, turn=turn, boxes=boxes, inks=inks)


def round_box(box: BoxF, step: int) -> list[int]:
    """A box in 0..1000 with its sides at the nearest multiples of `step`, never empty."""
    x1, y1, x2, y2 = (round(value / step) * step for value in box)
    x1, y1 = min(x1, 1000 - step), min(y1, 1000 - step)
    return [x1, y1, max(x2, x1 + step), max(y2, y1 + step)]
