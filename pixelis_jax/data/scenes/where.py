"""`where`: four balls that look alike change places; where does one of them end up?"""

from __future__ import annotations

import numpy as np

from pixelis_jax.data.scenes import draw, layout, palette
from pixelis_jax.data.scenes.backgrounds import background
from pixelis_jax.data.scenes.clips import SIDE, blank_clip
from pixelis_jax.data.scenes.family import FAMILIES, Chain, Conclusion, Draft, Family, Place, Plan
from pixelis_jax.data.scenes.layout import FRAMES, ZONES
from pixelis_jax.data.scenes.scene import FPS, Scene, SceneObject, Split
from pixelis_jax.data.scenes.steps import box_of, call

WORDINGS = (
    "Where does the ball that starts at the {zone} end up?",
    "Where is the ball from the {zone} at the end?",
    "The ball that starts at the {zone}: where does it end up?",
    "Follow the ball that starts at the {zone}. Where does it end?",
    "Tell me where the ball that starts at the {zone} ends up.",
    "Where does the ball from the {zone} go?",
    "A ball starts at the {zone}. Where is it at the end?",
    "Find where the ball from the {zone} ends up.",
    "Look at the ball at the {zone}. Where does it end up?",
    "Say where the ball that starts at the {zone} ends.",
)
HELD_OUT = (
    "At the end, where is the ball that starts at the {zone}?",
    "Tell me where the ball from the {zone} is at the end.",
)


def draw_scene(rng: np.random.Generator, split: Split) -> Draft:
    """Four balls of one look on crossing paths; they start in four zones and end in four zones."""
    end_zone = int(rng.integers(9))
    diameter = int(rng.integers(40, 47))
    paths, starts, ends = layout.crossing_paths(rng, end_zone, SIDE, (diameter + 14, diameter + 14), (26, 26), 50)
    sprite = draw.ball(diameter, palette.shade(rng, str(rng.choice(palette.NAMES))))
    frames = blank_clip(background(rng, split, SIDE))
    corners = np.round(paths - diameter / 2).astype(int)
    for frame in range(FRAMES):
        for ball in range(4):
            draw.paste(frames[frame], sprite, *corners[ball, frame])
    boxes = np.concatenate([corners, corners + diameter], axis=2).astype(np.float32)
    objects = tuple(SceneObject(name="ball", kind="ball", boxes=boxes[ball]) for ball in range(4))
    answer = ZONES[ends[0]]
    return Draft(pixels=frames, objects=objects, target=0, answer=answer, truth=answer, words={"zone": ZONES[starts[0]]})


def chain(scene: Scene, place: Place) -> Chain:
    """Track it to the end and say where it ends."""
    box = place(box_of(scene), scene.width, scene.height)
    seen = yield Plan(thought="Follow that ball.", call=call("track", media=1, bbox_2d=box, time_s=0))
    if seen.data.get("end_s", 0.0) < (FRAMES - 2) / FPS:
        return Conclusion(thought="I lost it.", answer=None)
    return Conclusion(thought="Say where.", answer=str(seen.data["end"]))


FAMILIES.register("where")(
    Family(kind="video", verifier="exact", wordings=WORDINGS, held_out=HELD_OUT, draw=draw_scene, chain=chain)
)
