"""`page`: what does the n-th line of a page say? Lines are too small for the thumbnail; the page fills the picture."""

from __future__ import annotations

import cv2
import numpy as np
from PIL import Image, ImageDraw

from pixelis_jax.data.scenes import backgrounds, fonts, randomness
from pixelis_jax.data.scenes.cards import SIDE
from pixelis_jax.data.scenes.cut import ORDINALS
from pixelis_jax.data.scenes.family import FAMILIES, Chain, Conclusion, Draft, Family, Place, Plan
from pixelis_jax.data.scenes.scene import Scene, SceneObject, Split
from pixelis_jax.data.scenes.steps import call

# fmt: off
WORDS = (
    "after", "again", "before", "between", "books", "change", "children", "country", "different", "earth", "father", "first",
    "great", "house", "important", "letter", "light", "little", "mountain", "night", "paper", "people", "point", "river",
    "school", "second", "sentence", "something", "sound", "story", "study", "three", "through", "together", "water", "white",
    "without", "world", "write", "year", "young",
)
# fmt: on
"""What lines are made of, beside one string of the split."""

WORDINGS = (
    "What does the {ordinal} line say?",
    "Read the {ordinal} line.",
    "What is the {ordinal} line of the page?",
    "Tell me what the {ordinal} line says.",
    "What is written in the {ordinal} line?",
    "Say what the {ordinal} line says.",
    "What can you read in the {ordinal} line?",
    "Look at the page. What does the {ordinal} line say?",
    "Find the {ordinal} line. What does it say?",
    "On the page, what does the {ordinal} line say?",
)
HELD_OUT = ("The {ordinal} line: what does it say?", "Tell me what is written in the {ordinal} line.")


def draw_scene(rng: np.random.Generator, split: Split) -> Draft:
    """A sheet with 4 to 7 lines of one font; the light on it is a little uneven."""
    count = int(rng.integers(4, 8))
    lines = [_line(rng, string) for string in randomness.random_strings(rng, split, count)]
    font = str(rng.choice(fonts.names(split)))
    capitals = int(rng.integers(15, 22))
    face = fonts.load(font, fonts.size_for_capitals(font, capitals))
    while max(face.getlength(line) for line in lines) > SIDE - 40:
        capitals -= 1
        face = fonts.load(font, fonts.size_for_capitals(font, capitals))
    step = capitals * rng.uniform(2.2, 3.0)
    left = rng.uniform(14, SIDE - 20 - max(face.getlength(line) for line in lines))
    top = rng.uniform(14, SIDE - 20 - step * count)
    mask = Image.new("L", (SIDE, SIDE))
    pen = ImageDraw.Draw(mask)
    objects = []
    for number, line in enumerate(lines):
        place = (round(left), round(top + number * step))
        pen.text(place, line, fill=255, font=face)
        box = np.array([pen.textbbox(place, line, font=face)], np.float32)
        objects.append(SceneObject(name=f"line {number + 1}", kind="line", boxes=box, text=line))
    asked = int(rng.integers(4))
    return Draft(
        pixels=_printed(rng, split, mask),
        objects=tuple(objects),
        target=asked,
        answer=lines[asked],
        truth=lines[asked],
        words={"ordinal": ORDINALS[asked]},
    )


def _line(rng: np.random.Generator, string: str) -> str:
    """A string of the split among none to four words."""
    parts = [WORDS[int(number)] for number in rng.integers(len(WORDS), size=int(rng.integers(5)))]
    parts.insert(int(rng.integers(len(parts) + 1)), string)
    return " ".join(parts)


def _printed(rng: np.random.Generator, split: Split, mask: Image.Image) -> np.ndarray:
    """Dark ink on white to grey paper of some grain, as a scanner or a camera sees it, RGB uint8 `[SIDE, SIDE, 3]`."""
    paper = rng.uniform(90, 252)
    tint = rng.uniform(-8, 8, 3) * (rng.random() < 0.5)
    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    light = 1 + x * rng.uniform(-0.12, 0.12) + y * rng.uniform(-0.12, 0.12)
    grain = cv2.resize(rng.normal(0, rng.uniform(0, 7), (SIDE // 4, SIDE // 4)), (SIDE, SIDE))
    cover = np.asarray(mask, np.float64)[..., None] / 255 * rng.uniform(0.8, 1.0)
    ink = rng.uniform(0, max(10, paper - 95)) if paper < 165 else rng.uniform(5, 70)
    if rng.random() < 0.3:  # a page is known by the question, not by its paper: some are written on anything
        surface = backgrounds.background(rng, split, SIDE).astype(np.float64)
        surface = surface.mean(axis=-1, keepdims=True) if rng.random() < 0.7 else surface
        paper, ink = paper + (surface - surface.mean()) * rng.uniform(0.1, 0.35), ink * 0.6
    sheet = light[..., None] * (paper + tint) * (1 - cover) + ink * cover + grain[..., None]
    return np.clip(sheet, 0, 255).astype(np.uint8)


def chain(scene: Scene, place: Place) -> Chain:
    """Read the whole page and take the line asked for."""
    del place  # Nothing to point at.
    seen = yield Plan(thought="Look at the text.", call=call("ocr", media=1))
    answer = seen.regions[scene.target].text if len(seen.regions) > scene.target else None
    return Conclusion(thought=f"The {ORDINALS[scene.target]} is region {scene.target + 1}.", answer=answer)


FAMILIES.register("page")(
    Family(kind="image", verifier="exact", wordings=WORDINGS, held_out=HELD_OUT, draw=draw_scene, chain=chain)
)
