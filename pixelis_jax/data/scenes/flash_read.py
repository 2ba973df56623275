"""`flash_read`: what does a card show that is there for half a second? A string: find the moment, then read."""

from __future__ import annotations

import functools

from pixelis_jax.data.scenes import flash
from pixelis_jax.data.scenes.family import FAMILIES, Chain, Conclusion, Family, Place, Plan
from pixelis_jax.data.scenes.scene import Scene
from pixelis_jax.data.scenes.steps import box_of, call, flash_frame


def chain(scene: Scene, place: Place) -> Chain:
    """Find when it appears, read it in the frame that comes back."""
    seen = yield Plan(thought="Find the moment.", call=call("localize", media=1, event="appearance"))
    if not seen.media:
        return Conclusion(thought="Nothing there.", answer=None)
    box = place(box_of(scene, flash_frame(scene)), scene.width, scene.height)
    seen = yield Plan(thought=f"The {scene.asked.colour} card has text.", call=call("ocr", media=seen.media[0], bbox_2d=box))
    return Conclusion(thought="Say it.", answer=seen.regions[0].text if seen.regions else None)


FAMILIES.register("flash_read")(
    Family(
        kind="video",
        verifier="exact",
        wordings=flash.WORDINGS,
        held_out=flash.HELD_OUT,
        draw=functools.partial(flash.draw_scene, asked="text"),
        chain=chain,
        calls=2,
    )
)
