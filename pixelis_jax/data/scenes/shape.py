"""`shape`: what does a card show? A mark, too small for the thumbnail; same pictures and wordings as `read`."""

from __future__ import annotations

import numpy as np

from pixelis_jax.data.scenes import cards
from pixelis_jax.data.scenes.family import FAMILIES, Chain, Conclusion, Draft, Family, Place, Plan
from pixelis_jax.data.scenes.scene import Scene, Split
from pixelis_jax.data.scenes.steps import box_of, call, mark_seen


def draw(rng: np.random.Generator, split: Split) -> Draft:
    """5 or 6 cards; the asked one carries a mark."""
    pixels, objects = cards.still_life(rng, split, "shape")
    answer = str(objects[0].shape)
    return Draft(pixels=pixels, objects=objects, target=0, answer=answer, truth=answer, words={"colour": str(objects[0].colour)})


def chain(scene: Scene, place: Place) -> Chain:
    """Zoom in; the answer is what the crop shows, which no observation spells out."""
    box = place(box_of(scene), scene.width, scene.height)
    yield Plan(thought=f"The {scene.asked.colour} card has a mark.", call=call("zoom", media=1, bbox_2d=box))
    return Conclusion(thought="Say the shape.", answer=mark_seen(scene, box))


FAMILIES.register("shape")(
    Family(kind="image", verifier="exact", wordings=cards.WORDINGS, held_out=cards.HELD_OUT, draw=draw, chain=chain)
)
