"""`blink`: when does a lamp light up? Each shines once, between the frames that the policy is shown."""

from __future__ import annotations

import numpy as np

from pixelis_jax.data.scenes import draw, layout, palette, randomness
from pixelis_jax.data.scenes.backgrounds import background
from pixelis_jax.data.scenes.clips import SIDE, blank_clip, unseen_stretches
from pixelis_jax.data.scenes.family import FAMILIES, Chain, Conclusion, Draft, Family, Place, Plan
from pixelis_jax.data.scenes.layout import FRAMES
from pixelis_jax.data.scenes.scene import FPS, Scene, SceneObject, Split
from pixelis_jax.data.scenes.steps import box_of, call

WORDINGS = (
    "When does the {colour} lamp light up?",
    "At what time does the {colour} lamp light up?",
    "When is the {colour} lamp on?",
    "Tell me when the {colour} lamp lights up.",
    "Find the time when the {colour} lamp lights up.",
    "At what second does the {colour} lamp light up?",
    "The {colour} lamp lights up once. When?",
    "Look at the {colour} lamp. When does it light up?",
    "When does the {colour} lamp go on?",
    "Say when the {colour} lamp lights up.",
)
HELD_OUT = ("At what time is the {colour} lamp on?", "Tell me at what second the {colour} lamp goes on.")


def draw_scene(rng: np.random.Generator, split: Split) -> Draft:
    """4 or 5 lamps of different colours, each lit once for 0.4 to 0.6 s."""
    count = int(rng.integers(4, 6))
    colours = randomness.pick(rng, palette.NAMES, count)
    diameters = [int(diameter) for diameter in rng.integers(62, 80, count)]
    stretches = unseen_stretches(rng, count, 4, 5)
    ground = background(rng, split, SIDE)
    corners = layout.spread(rng, [(diameter, diameter) for diameter in diameters], SIDE, 16)
    shades = [palette.shade(rng, colour) for colour in colours]
    for shade, diameter, (x, y) in zip(shades, diameters, corners, strict=True):
        draw.paste(ground, draw.lamp(diameter, shade, lit=False), x, y)
    frames = blank_clip(ground)
    objects = []
    for colour, shade, diameter, (x, y), (first, end) in zip(colours, shades, diameters, corners, stretches, strict=True):
        bright = draw.lamp(diameter, shade, lit=True)
        lit = np.zeros(FRAMES, bool)
        lit[first:end] = True
        for frame in range(first, end):
            draw.paste(frames[frame], bright, x, y)
        box = np.array([[x, y, x + diameter, y + diameter]], np.float32)
        objects.append(SceneObject(name=f"{colour} lamp", kind="lamp", boxes=box, colour=colour, lit=lit))
    start = stretches[0][0] / FPS
    return Draft(
        pixels=frames,
        objects=tuple(objects),
        target=0,
        answer=f"{start:g}",
        truth={"value": start, "abs": 0.3},
        words={"colour": colours[0]},
    )


def chain(scene: Scene, place: Place) -> Chain:
    """Look for the moment at which something appears in the lamp's box."""
    box = place(box_of(scene), scene.width, scene.height)
    seen = yield Plan(
        thought=f"Look at the {scene.asked.colour} lamp.", call=call("localize", media=1, bbox_2d=box, event="appearance")
    )
    return Conclusion(thought="Say when.", answer=f"{seen.spans[0].start_s:g}" if seen.spans else None)


FAMILIES.register("blink")(
    Family(kind="video", verifier="time", wordings=WORDINGS, held_out=HELD_OUT, draw=draw_scene, chain=chain)
)
