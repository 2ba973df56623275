"""`cut`: when is the n-th cut? Short shots fall between the frames that the policy is shown."""

from __future__ import annotations

import numpy as np

from pixelis_jax.data.scenes.backgrounds import photographs
from pixelis_jax.data.scenes.clips import SIDE
from pixelis_jax.data.scenes.family import FAMILIES, Chain, Conclusion, Draft, Family, Place, Plan
from pixelis_jax.data.scenes.layout import FRAMES
from pixelis_jax.data.scenes.scene import FPS, Scene, SceneObject, Split
from pixelis_jax.data.scenes.steps import call

ORDINALS = ("first", "second", "third", "fourth")
SHORTEST = 6
"""Frames of the shortest shot."""

WORDINGS = (
    "When is the {ordinal} cut?",
    "At what time is the {ordinal} cut?",
    "When does the {ordinal} cut come?",
    "Tell me when the {ordinal} cut is.",
    "Find the time of the {ordinal} cut.",
    "At what second is the {ordinal} cut?",
    "There are four cuts. When is the {ordinal} one?",
    "Say when the {ordinal} cut is.",
    "What is the time of the {ordinal} cut?",
    "Look for the {ordinal} cut. When is it?",
)
HELD_OUT = ("Tell me at what second the {ordinal} cut comes.", "The {ordinal} cut: at what time is it?")


def draw_scene(rng: np.random.Generator, split: Split) -> Draft:
    """Five shots of slowly panned photographs; neighbours differ, and a shot may come back."""
    margin = 36
    while True:
        # Cutting back to an earlier shot hides the cuts from whoever sees only a few frames.
        grounds = photographs(rng, split, SIDE + margin, 5)
        order = _order(rng)
        contrasts = [
            np.abs(grounds[a].astype(np.int16) - grounds[b])[::4, ::4].mean() for a, b in zip(order, order[1:], strict=False)
        ]
        if min(contrasts) > 34:
            break
    cuts = _cuts(rng)
    frames = np.empty((FRAMES, SIDE, SIDE, 3), np.uint8)
    objects = []
    for shot, (first, end) in enumerate(zip([0, *cuts], [*cuts, FRAMES], strict=True)):
        x, y = rng.uniform(0, margin, 2)
        pan = rng.uniform(-1.2, 1.2, 2)
        visible = np.full((FRAMES, 4), np.nan, np.float32)
        for frame in range(first, end):
            left, top = (
                int(np.clip(corner + speed * (frame - first), 0, margin)) for corner, speed in zip((x, y), pan, strict=True)
            )
            frames[frame] = grounds[order[shot]][top : top + SIDE, left : left + SIDE]
            visible[frame] = (0, 0, SIDE, SIDE)
        objects.append(SceneObject(name=f"shot {shot + 1}", kind="shot", boxes=visible))
    asked = int(rng.integers(4))
    time = cuts[asked] / FPS
    return Draft(
        pixels=frames,
        objects=tuple(objects),
        target=asked + 1,
        answer=f"{time:g}",
        truth={"value": time, "abs": 0.2},
        words={"ordinal": ORDINALS[asked]},
    )


def _order(rng: np.random.Generator) -> list[int]:
    """Which photograph each of five shots shows; neighbours differ, one may come back."""
    order = [int(ground) for ground in rng.permutation(5)]
    if rng.random() < 0.6:
        place = int(rng.integers(3))
        order[place + 2] = order[place]
    return order


def _cuts(rng: np.random.Generator) -> list[int]:
    """Four frames at which a new shot begins, uniform over all sets in which no shot is shorter than `SHORTEST`."""
    free = FRAMES - 5 * SHORTEST
    offsets = np.sort(rng.choice(free + 4, 4, replace=False)) - np.arange(4)
    return [int(offset) + SHORTEST * (position + 1) for position, offset in enumerate(offsets)]


def chain(scene: Scene, place: Place) -> Chain:
    """List the cuts and take the one asked for."""
    del place  # Nothing to point at.
    seen = yield Plan(thought="Find the cuts.", call=call("localize", media=1, event="scene_change"))
    number = scene.target - 1
    answer = f"{seen.spans[number].start_s:g}" if len(seen.spans) > number else None
    return Conclusion(thought=f"The {ORDINALS[number]} is span {number + 1}.", answer=answer)


FAMILIES.register("cut")(
    Family(kind="video", verifier="time", wordings=WORDINGS, held_out=HELD_OUT, draw=draw_scene, chain=chain)
)
