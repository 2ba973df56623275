"""What a family of tasks is, the registry of them, and `generate`."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np

from pixelis_jax.data.scenes import degrade, randomness
from pixelis_jax.data.scenes.scene import SPLITS, BoxF, Scene, SceneObject, Split
from tools_host.protocol import Box, Observation, ToolCall
from tools_host.registry import Registry

Place: TypeAlias = Callable[[BoxF, int, int], Box]
"""Turns a pixel box in a medium of a width and height into the box that a call names: padded, jittered, rounded."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """A call to make next, and the thought before it (at most 12 tokens)."""

    thought: str
    call: ToolCall


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conclusion:
    """How a chain ends. `answer` is None if the observations did not hold one."""

    thought: str
    answer: str | None


Chain: TypeAlias = Generator[Plan, Observation, Conclusion]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Draft:
    """What a family draws; `generate` adds the camera's faults and the rest of a `Scene`.

    Attributes:
      pixels: RGB uint8 `[H, W, 3]` or `[T, H, W, 3]`.
      objects: Everything drawn.
      target: Index of the object asked about.
      answer: The answer.
      truth: What the verifier compares with.
      words: Fills the blanks of the wordings.
    """

    pixels: np.ndarray
    objects: tuple[SceneObject, ...]
    target: int
    answer: str
    truth: Any
    words: dict[str, str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """A kind of task.

    Attributes:
      kind: `image` or `video`.
      verifier: Name of the verifier of its answers.
      wordings: Questions with blanks such as `{colour}`.
      held_out: Wordings that train never sees; the other splits draw from both.
      draw: Draws a scene.
      chain: The calls that lead to the answer; gets each observation and ends with a `Conclusion`.
      calls: How many calls the chain makes when all goes well: traces with a mistake choose its place among them.
    """

    kind: Literal["image", "video"]
    verifier: str
    wordings: Sequence[str]
    held_out: Sequence[str]
    draw: Callable[[np.random.Generator, Split], Draft]
    chain: Callable[[Scene, Place], Chain]
    calls: int = 1


FAMILIES: Registry[Family] = Registry("scene family")
"""Every family by name."""


def generate(family: str, split: Split, index: int, seed: int = 0) -> Scene:
    """Draws a scene; the four arguments decide every byte of it.

    Args:
      family: Name in `FAMILIES`.
      split: `train`, `val`, `test` or `shift`.
      index: Number of the scene, from 0.
      seed: Another seed makes another, disjoint data set.

    Raises:
      KeyError: If there is no such family.
      ValueError: If there is no such split.
    """
    if split not in SPLITS:
        raise ValueError(f"no split {split!r}; there are {', '.join(SPLITS)}")
    entry = FAMILIES[family]
    rng = randomness.generator(family, split, index, seed)
    draft = entry.draw(rng, split)
    wordings = [*entry.wordings] if split == "train" else [*entry.wordings, *entry.held_out]
    return Scene(
        family=family,
        split=split,
        index=index,
        kind=entry.kind,
        pixels=degrade.degrade(rng, split, draft.pixels),
        question=wordings[int(rng.integers(len(wordings)))].format(**draft.words),
        answer=draft.answer,
        verifier=entry.verifier,
        truth=draft.truth,
        objects=draft.objects,
        target=draft.target,
        quality=degrade.quality(rng, split, entry.kind),
    )


def chain(scene: Scene, place: Place) -> Chain:
    """The calls that lead to a scene's answer, by a generator that wants each observation sent in."""
    return FAMILIES[scene.family].chain(scene, place)


def split_digest(split: Split, count: int, seed: int = 0, families: Iterable[str] | None = None) -> str:
    """SHA-256 over pixels, questions and answers of the first `count` scenes of some families (all): freezes a split."""
    digest = hashlib.sha256()
    for family in FAMILIES if families is None else families:
        for index in range(count):
            scene = generate(family, split, index, seed)
            digest.update(scene.pixels.tobytes())
            digest.update(f"{family}\0{scene.question}\0{scene.answer}\0".encode())
    return digest.hexdigest()
