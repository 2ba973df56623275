"""`follow_read`: four cards that look alike change places, then each shows its string; what does one of them say?"""

from __future__ import annotations

import numpy as np

from pixelis_jax.data.scenes import draw, fonts, layout, palette, randomness
from pixelis_jax.data.scenes.backgrounds import background
from pixelis_jax.data.scenes.clips import SIDE, blank_clip
from pixelis_jax.data.scenes.family import FAMILIES, Chain, Conclusion, Draft, Family, Place, Plan
from pixelis_jax.data.scenes.layout import FRAMES, ZONES
from pixelis_jax.data.scenes.scene import Scene, SceneObject, Split
from pixelis_jax.data.scenes.steps import box_of, call

SHOWN = (53, FRAMES)
"""Frames in which the cards show their strings."""

WORDINGS = (
    "What does the card that starts at the {zone} say at the end?",
    "The card that starts at the {zone}: what does it say at the end?",
    "Follow the card that starts at the {zone}. What does it say?",
    "A card starts at the {zone}. What does it say at the end?",
    "Tell me what the card from the {zone} says at the end.",
    "What is on the card from the {zone} at the end?",
    "At the end, what does the card from the {zone} say?",
    "Look at the card at the {zone}. What does it say at the end?",
    "Find what the card that starts at the {zone} says at the end.",
    "Say what is on the card from the {zone} at the end.",
)
HELD_OUT = (
    "Tell me what is on the card from the {zone} at the end.",
    "What does the card from the {zone} say at the end?",
)


def draw_scene(rng: np.random.Generator, split: Split) -> Draft:
    """Four cards of one look on crossing paths; they stop, and show their strings for the last 0.7 s."""
    width, height = int(rng.integers(80, 87)), int(rng.integers(46, 52))
    paths, starts, _ = layout.crossing_paths(rng, int(rng.integers(9)), SIDE, (width + 6, height + 6), (10, 22), 48)
    ground = palette.shade(rng, str(rng.choice(palette.NAMES)))
    blank = draw.card(rng, width, height, ground)
    strings = randomness.random_strings(rng, split, 4)
    font = str(rng.choice(fonts.names(split)))
    capitals = int(rng.integers(16, 19))
    written = [draw.with_text(rng, blank, string, font, capitals, ground, wander=0, strength=0.7) for string in strings]
    hidden = draw.covered(rng, blank, capitals + 2, ground)
    frames = blank_clip(background(rng, split, SIDE))
    corners = np.round(paths - np.array([width, height]) / 2).astype(int)
    for frame in range(FRAMES):
        for number in range(4):
            draw.paste(frames[frame], written[number] if frame >= SHOWN[0] else hidden, *corners[number, frame])
    boxes = np.concatenate([corners, corners + np.array([width, height])], axis=2).astype(np.float32)
    objects = tuple(
        SceneObject(name="card", kind="card", boxes=boxes[number], text=strings[number], text_frames=(SHOWN[0], SHOWN[1] - 1))
        for number in range(4)
    )
    return Draft(pixels=frames, objects=objects, target=0, answer=strings[0], truth=strings[0], words={"zone": ZONES[starts[0]]})


def chain(scene: Scene, place: Place) -> Chain:
    """Track it to the end, read its last region."""
    box = place(box_of(scene), scene.width, scene.height)
    seen = yield Plan(thought="Follow that card.", call=call("track", media=1, bbox_2d=box, time_s=0))
    if not seen.regions:
        return Conclusion(thought="I lost it.", answer=None)
    seen = yield Plan(thought="Look at the end.", call=call("ocr", region=seen.regions[-1].id))
    return Conclusion(thought="Say it.", answer=seen.regions[0].text if seen.regions else None)


FAMILIES.register("follow_read")(
    Family(kind="video", verifier="exact", wordings=WORDINGS, held_out=HELD_OUT, draw=draw_scene, chain=chain, calls=2)
)
