"""`read`: what does a card show? A string, too small for the thumbnail; same pictures and wordings as `shape`."""

from __future__ import annotations

import numpy as np

from pixelis_jax.data.scenes import cards
from pixelis_jax.data.scenes.family import FAMILIES, Chain, Conclusion, Draft, Family, Place, Plan
from pixelis_jax.data.scenes.scene import Scene, Split
from pixelis_jax.data.scenes.steps import box_of, call


def draw(rng: np.random.Generator, split: Split) -> Draft:
    """5 or 6 cards; the asked one carries a string."""
    pixels, objects = cards.still_life(rng, split, "text")
    answer = str(objects[0].text)
    return Draft(pixels=pixels, objects=objects, target=0, answer=answer, truth=answer, words={"colour": str(objects[0].colour)})


def chain(scene: Scene, place: Place) -> Chain:
    """Read the card."""
    box = place(box_of(scene), scene.width, scene.height)
    seen = yield Plan(thought=f"The {scene.asked.colour} card has text.", call=call("ocr", media=1, bbox_2d=box))
    return Conclusion(thought="Say it.", answer=seen.regions[0].text if seen.regions else None)


FAMILIES.register("read")(
    Family(kind="image", verifier="exact", wordings=cards.WORDINGS, held_out=cards.HELD_OUT, draw=draw, chain=chain)
)
