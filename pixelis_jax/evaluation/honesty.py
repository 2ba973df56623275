"""Whether scenes need their tools pointed at the right place: their own chains on the right box, a random one, and everything."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from pixelis_jax.data.scenes import FAMILIES, Place, Split, generate
from pixelis_jax.data.scenes.randomness import generator
from pixelis_jax.data.scenes.scene import BoxF
from pixelis_jax.data.traces import make_example, oracle_trajectory, placer
from pixelis_jax.data.workers import process_pool, single_thread
from tools_host.config import ToolsConfig
from tools_host.pool import InlinePool
from tools_host.protocol import Box

CHAINS = ("oracle", "random box", "whole medium")
"""The chain of a scene's family, with its boxes where they belong, anywhere (same size), and around everything."""

_CHUNK = 10


def chain_scores(
    split: Split, first: int, count: int, *, chains: Sequence[str] = CHAINS, workers: int = 2, seed: int = 0
) -> Iterator[tuple[str, str, list[float]]]:
    """Runs the chains of `count` scenes of every family, from index `first` on.

    Args:
      split: Of the scenes.
      first: Index of the first scene.
      count: Scenes of each family.
      chains: Some of `CHAINS`.
      workers: Processes.
      seed: Of the scenes and of the random boxes.

    Yields:
      Family, chain, and the verifier's score of each scene, in the order of families and chains.
    """
    work = functools.partial(_score, split=split, seed=seed)
    with process_pool(workers, initializer=single_thread) as executor:
        futures = {
            (family, chain): [
                executor.submit(work, family, chain, start, min(start + _CHUNK, first + count))
                for start in range(first, first + count, _CHUNK)
            ]
            for family in FAMILIES
            for chain in chains
        }
        for (family, chain), parts in futures.items():
            yield family, chain, [score for part in parts for score in part.result()]


def _score(family: str, chain: str, start: int, stop: int, *, split: Split, seed: int) -> list[float]:
    config = ToolsConfig(boxes_in_text=False)
    scores = []
    pool = InlinePool(config)
    with tempfile.TemporaryDirectory() as folder:
        for index in range(start, stop):
            scene = generate(family, split, index, seed)
            place = _place(chain, generator(f"{family}/{chain}", split, index, seed))
            example = make_example(scene, Path(folder))
            trajectory = oracle_trajectory(scene, example, Path(folder), pool, config=config, place=place)
            scores.append(trajectory.scores["task"])
    return scores


def _place(chain: str, rng: np.random.Generator) -> Place:
    exact = placer()
    if chain == "oracle":
        return exact
    if chain == "whole medium":
        return lambda box, width, height: (0, 0, 1000, 1000)

    def anywhere(box: BoxF, width: int, height: int) -> Box:
        x1, y1, x2, y2 = box
        w, h = min(abs(x2 - x1), width), min(abs(y2 - y1), height)
        left, top = rng.uniform(0, width - w), rng.uniform(0, height - h)
        return exact((left, top, left + w, top + h), width, height)

    return anywhere
