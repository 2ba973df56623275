"""Clips in which one more card flashes up among cards that stay, for `flash_read` and `flash_shape`."""

from __future__ import annotations

import dataclasses

import numpy as np

from pixelis_jax.data.scenes import draw, layout
from pixelis_jax.data.scenes.backgrounds import background
from pixelis_jax.data.scenes.cards import make_cards
from pixelis_jax.data.scenes.clips import SIDE, blank_clip, unseen_stretches
from pixelis_jax.data.scenes.family import Draft
from pixelis_jax.data.scenes.layout import FRAMES
from pixelis_jax.data.scenes.scene import Split

WORDINGS = (
    "What is on the {colour} card that flashes up?",
    "One {colour} card flashes up. What is on it?",
    "What does the {colour} card that flashes up show?",
    "Tell me what is on the {colour} card that flashes up.",
    "The {colour} card flashes up. What does it show?",
    "One {colour} card is there for a moment. What is on it?",
    "Find the {colour} card that flashes up. What is on it?",
    "What can you see on the {colour} card that flashes up?",
    "When the {colour} card flashes up, what does it show?",
    "Say what is on the {colour} card that flashes up.",
)
HELD_OUT = (
    "What is there on the {colour} card that flashes up?",
    "Tell me what the {colour} card shows when it flashes up.",
)


def draw_scene(rng: np.random.Generator, split: Split, asked: str) -> Draft:
    """4 cards that stay, one that flashes up for half a second; four of the five are of the asked kind, the flashing
    one too.

    Args:
      rng: Random generator.
      split: Chooses background, fonts and strings.
      asked: `text` or `shape`.
    """
    other = "shape" if asked == "text" else "text"
    cards = make_cards(rng, split, [asked] * 4 + [other], (96, 118), (18, 22), (22, 26), flat=0.85)
    ground = background(rng, split, SIDE)
    corners = layout.spread(rng, [card.sprite.size for card in cards], SIDE, 10)
    for card, (x, y) in zip(cards[1:], corners[1:], strict=True):
        draw.paste(ground, card.sprite, x, y)
    frames = blank_clip(ground)
    ((first, end),) = unseen_stretches(rng, 1, 5, 6)
    for frame in range(first, end):
        draw.paste(frames[frame], cards[0].sprite, *corners[0])
    objects = [card.placed(x, y) for card, (x, y) in zip(cards, corners, strict=True)]
    shown = np.full((FRAMES, 4), np.nan, np.float32)
    shown[first:end] = objects[0].boxes[0]
    objects[0] = dataclasses.replace(objects[0], boxes=shown)
    answer = str(cards[0].text if asked == "text" else cards[0].shape)
    return Draft(pixels=frames, objects=tuple(objects), target=0, answer=answer, truth=answer, words={"colour": cards[0].colour})
