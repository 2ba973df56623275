"""`flash_shape`: what does a card show that is there for half a second? A mark: find the moment, then zoom."""

from __future__ import annotations

import functools

from pixelis_jax.data.scenes import flash
from pixelis_jax.data.scenes.family import FAMILIES, Chain, Conclusion, Family, Place, Plan
from pixelis_jax.data.scenes.scene import Scene
from pixelis_jax.data.scenes.steps import box_of, call, flash_frame, mark_seen


def chain(scene: Scene, place: Place) -> Chain:
    """Find when it appears, zoom in on it in the frame that comes back; no observation spells out the answer."""
    seen = yield Plan(thought="Find the moment.", call=call("localize", media=1, event="appearance"))
    if not seen.media:
        return Conclusion(thought="Nothing there.", answer=None)
    box = place(box_of(scene, flash_frame(scene)), scene.width, scene.height)
    yield Plan(
        thought=f"The {scene.asked.colour} card has a mark.",
        call=call("zoom", media=seen.media[0], bbox_2d=box),
    )
    return Conclusion(thought="Say the shape.", answer=mark_seen(scene, box, flash_frame(scene)))


FAMILIES.register("flash_shape")(
    Family(
        kind="video",
        verifier="exact",
        wordings=flash.WORDINGS,
        held_out=flash.HELD_OUT,
        draw=functools.partial(flash.draw_scene, asked="shape"),
        chain=chain,
        calls=2,
    )
)
