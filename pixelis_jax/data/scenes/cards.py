"""Pictures of coloured cards, which several families share: some carry a string, some a small mark."""

from __future__ import annotations

import dataclasses

import numpy as np

from pixelis_jax.data.scenes import draw, fonts, layout, palette, randomness
from pixelis_jax.data.scenes.backgrounds import background
from pixelis_jax.data.scenes.scene import SceneObject, Split

SIDE = 512

WORDINGS = (
    "What is on the {colour} card?",
    "What does the {colour} card show?",
    "Tell me what is on the {colour} card.",
    "What can you see on the {colour} card?",
    "On the {colour} card, what is there?",
    "Look at the {colour} card. What is on it?",
    "What is shown on the {colour} card?",
    "Find the {colour} card and tell me what it shows.",
    "One card is {colour}. What is on it?",
    "Say what is on the {colour} card.",
)
HELD_OUT = (
    "Tell me what the {colour} card shows.",
    "What is there on the {colour} card?",
    "What does it say or show on the {colour} card?",
)


@dataclasses.dataclass(frozen=True, eq=False)
class Card:
    """A card to be pasted: its sprite and what it shows."""

    sprite: draw.Sprite
    colour: str
    text: str | None = None
    shape: str | None = None

    def placed(self, x: float, y: float) -> SceneObject:
        """The card as an object that stands still with its top left corner at `(x, y)`."""
        width, height = self.sprite.size
        boxes = np.array([[x, y, x + width, y + height]], np.float32)
        return SceneObject(
            name=f"{self.colour} card",
            kind="card",
            boxes=boxes,
            colour=self.colour,
            text=self.text,
            shape=self.shape,
            written=self.sprite.written,
        )


def make_cards(
    rng: np.random.Generator,
    split: Split,
    kinds: list[str],
    sizes: tuple[int, int],
    capitals: tuple[int, int],
    marks: tuple[int, int],
    flat: float = 1.0,
) -> list[Card]:
    """Cards of different colours, each with its own string or mark.

    Args:
      rng: Random generator.
      split: Chooses fonts and strings.
      kinds: `text`, `shape` or `blank`, a card each.
      sizes: Least and greatest width in pixels.
      capitals: Least and greatest height of capitals in pixels.
      marks: Least and greatest side of a mark in pixels.
      flat: Height of a card as a share of its width.
    """
    colours = randomness.pick(rng, palette.NAMES, len(kinds))
    strings = randomness.random_strings(rng, split, len(kinds))
    # Drawn with replacement: were the marks all different, the others would tell what the asked one is not.
    shapes = [str(shape) for shape in rng.choice(draw.SHAPES, len(kinds))]
    cards = []
    for kind, colour, string, shape in zip(kinds, colours, strings, shapes, strict=True):
        ground = palette.shade(rng, colour)
        width = int(rng.integers(sizes[0], sizes[1] + 1))
        height = round(width * flat * rng.uniform(0.88, 1.0))
        blank = draw.card(rng, width, height, ground)
        if kind == "text":
            font = str(rng.choice(fonts.names(split)))
            sprite = draw.with_text(rng, blank, string, font, int(rng.integers(capitals[0], capitals[1] + 1)), ground)
            cards.append(Card(sprite, colour, text=string))
        elif kind == "shape":
            sprite = draw.with_mark(rng, blank, shape, int(rng.integers(marks[0], marks[1] + 1)), ground)
            cards.append(Card(sprite, colour, shape=shape))
        else:
            cards.append(Card(blank, colour))
    return cards


def still_life(rng: np.random.Generator, split: Split, asked: str) -> tuple[np.ndarray, tuple[SceneObject, ...]]:
    """An image with 5 or 6 cards, four of them of the kind asked about; the first object is the target.

    Args:
      rng: Random generator.
      split: Chooses background, fonts and strings.
      asked: `text` or `shape`.

    Returns:
      RGB uint8 `[SIDE, SIDE, 3]`, and the cards.
    """
    other = "shape" if asked == "text" else "text"
    kinds = [asked] * 4 + [other] * int(rng.integers(1, 3))
    cards = make_cards(rng, split, kinds, (108, 138), (19, 25), (22, 26))
    pixels = background(rng, split, SIDE)
    corners = layout.spread(rng, [card.sprite.size for card in cards], SIDE, 14)
    for card, (x, y) in zip(cards, corners, strict=True):
        draw.paste(pixels, card.sprite, x, y)
    return pixels, tuple(card.placed(x, y) for card, (x, y) in zip(cards, corners, strict=True))
