"""`angle`: how is a small bar turned? Zoom, segment, measure."""

from __future__ import annotations

import numpy as np

from pixelis_jax.data.scenes import draw, layout, palette, randomness
from pixelis_jax.data.scenes.backgrounds import background
from pixelis_jax.data.scenes.cards import SIDE
from pixelis_jax.data.scenes.family import FAMILIES, Chain, Conclusion, Draft, Family, Place, Plan
from pixelis_jax.data.scenes.scene import Scene, SceneObject, Split
from pixelis_jax.data.scenes.steps import box_of, call, inside_crop

ANGLES = tuple(range(15, 180, 15))
"""Degrees, anticlockwise from the horizontal. 0 is left out: a bar at 0 and one at 180 look alike."""

WORDINGS = (
    "At what angle is the bar on the {colour} card?",
    "What is the angle of the bar on the {colour} card?",
    "How many degrees is the bar on the {colour} card turned?",
    "Tell me the angle of the bar on the {colour} card.",
    "Find the {colour} card. What is the angle of its bar?",
    "Measure the angle of the bar on the {colour} card.",
    "On the {colour} card, at what angle is the bar?",
    "What angle does the bar on the {colour} card have?",
    "Say at what angle the bar on the {colour} card is turned.",
    "Look at the {colour} card. How many degrees is its bar turned?",
)
HELD_OUT = (
    "Tell me at what angle the bar on the {colour} card is.",
    "The bar on the {colour} card: what is its angle?",
)


def draw_scene(rng: np.random.Generator, split: Split) -> Draft:
    """4 or 5 cards, each with a bar at an angle of its own."""
    count = int(rng.integers(4, 6))
    colours = randomness.pick(rng, palette.NAMES, count)
    angles = [int(angle) for angle in rng.choice(ANGLES, count)]
    pixels = background(rng, split, SIDE)
    made = [_card(rng, colour, angle) for colour, angle in zip(colours, angles, strict=True)]
    corners = layout.spread(rng, [sprite.size for sprite, _ in made], SIDE, 14)
    cards, bars = [], []
    for (sprite, box), colour, angle, (x, y) in zip(made, colours, angles, corners, strict=True):
        draw.paste(pixels, sprite, x, y)
        outline = np.array([[x, y, x + sprite.size[0], y + sprite.size[1]]], np.float32)
        inner = np.array([[x + box[0], y + box[1], x + box[2], y + box[3]]], np.float32)
        cards.append(SceneObject(name=f"{colour} card", kind="card", boxes=outline, colour=colour))
        bars.append(SceneObject(name="bar", kind="bar", boxes=inner, colour=colour, angle=angle))
    answer = str(angles[0])
    return Draft(
        pixels=pixels,
        objects=(*cards, *bars),
        target=0,
        answer=answer,
        truth={"value": angles[0], "abs": 5},
        words={"colour": colours[0]},
    )


def _card(rng: np.random.Generator, colour: str, angle: int) -> tuple[draw.Sprite, tuple[int, int, int, int]]:
    ground = palette.shade(rng, colour)
    width = int(rng.integers(108, 138))
    blank = draw.card(rng, width, round(width * rng.uniform(0.88, 1.0)), ground)
    return draw.with_bar(rng, blank, angle, int(rng.integers(29, 35)), int(rng.integers(7, 10)), ground)


def chain(scene: Scene, place: Place) -> Chain:
    """Zoom to the card, segment the bar in the crop, measure its orientation."""
    box = place(box_of(scene), scene.width, scene.height)
    seen = yield Plan(thought=f"Look at the {scene.asked.colour} card.", call=call("zoom", media=1, bbox_2d=box))
    bar = scene.objects[scene.target + len(scene.objects) // 2].box_px()
    if not seen.media or bar is None:
        return Conclusion(thought="Nothing there.", answer=None)
    inner = place(*inside_crop(bar, box, scene))
    seen = yield Plan(thought="Find the bar.", call=call("segment", media=seen.media[0], bbox_2d=inner))
    if not seen.regions:
        return Conclusion(thought="Nothing there.", answer=None)
    seen = yield Plan(thought="Measure it.", call=call("properties", region=seen.regions[0].id))
    degrees = seen.data.get("orientation_deg")
    return Conclusion(thought="Say the angle.", answer=None if degrees is None else f"{float(degrees):.0f}")


FAMILIES.register("angle")(
    Family(kind="image", verifier="number", wordings=WORDINGS, held_out=HELD_OUT, draw=draw_scene, chain=chain, calls=3)
)
