"""Scripted episodes of a scene: its chain, the chain with calls that it does not need, and what a lazy policy would do.

All calls are really run. `experiments/redundancy.py` rewards the episodes: the chain alone has to earn the most (algorithms.md,
section 2).
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import itertools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pixelis_jax.data.scenes import Conclusion, Scene, chain
from pixelis_jax.data.traces import BOX_STEP, placer
from pixelis_jax.trajectory import Example, Final, Step, Trajectory, format_call
from pixelis_jax.trajectory.regions import box_iou
from pixelis_jax.verifiers import verify
from tools_host.config import ToolsConfig
from tools_host.environment import EpisodeEnvironment
from tools_host.geometry import to_pixels
from tools_host.media import MediaStore
from tools_host.protocol import Box, Observation, ToolCall, ToolError, ToolOutput, ToolPool, ToolRequest

REDUNDANT = ("repeat", "whole", "noise", "abab")
"""The chain and calls that add nothing: one of its own again with its box moved, a zoom on the whole medium, a zoom on a patch
that has nothing to do with the answer, and its first two calls again."""

SCRIPTED = ("loop", "loop_right", "nothing", "nothing_right", "everything")
"""The first call over and over until no more are allowed, or until the right answer; a wrong or the right answer at once; every
tool on the whole medium, and the right answer."""

POLICIES = ("oracle", *REDUNDANT, *SCRIPTED)

SAME_CALLS = {"loop": "loop_right", "nothing_right": "nothing"}
"""Which episodes differ from which only in their last turn."""

REPEAT_IOU = 0.85
WHOLE: Box = (0, 0, 1000, 1000)

_LOOK, _WRONG = "Look at it.", "unknown"


class MemoPool:
    """Runs each distinct call once.

    Args:
      pool: Runs the calls.
    """

    def __init__(self, pool: ToolPool) -> None:
        self._pool = pool
        self._known: dict[str, concurrent.futures.Future[ToolOutput | ToolError]] = {}

    def submit(self, request: ToolRequest) -> concurrent.futures.Future[ToolOutput | ToolError]:
        """Gives what the call gave before, or runs it."""
        if request.key not in self._known:
            self._known[request.key] = self._pool.submit(request)
        return self._known[request.key]

    def close(self) -> None:
        """The inner pool belongs to the caller."""


def scripted_episodes(
    scene: Scene,
    example: Example,
    directory: Path,
    pool: ToolPool,
    *,
    config: ToolsConfig,
    max_steps: int,
    rng: np.random.Generator,
    first: bool,
    store: MediaStore | None = None,
) -> dict[str, Trajectory] | None:
    """Runs all of `POLICIES` on a scene.

    Args:
      scene: The scene.
      example: From `make_example(scene, directory)`.
      directory: Where the example's media are.
      pool: Runs the calls; a `MemoPool` saves most of them.
      config: Of the pool and of the observations' wording.
      max_steps: Calls of an episode.
      rng: Moves boxes and chooses patches.
      first: Whether the redundant call of `repeat`, `whole` and `noise` comes before the chain and not behind it.
      store: Decoded pixels, shared between episodes.

    Returns:
      A trajectory a policy, with `scores["task"]`; None if the chain does not lead to the right answer, since there is then
      nothing to compare with at an equal task reward.
    """
    store = store or MediaStore(config.cache_bytes)

    def begin() -> _Episode:
        paths = [str(directory / path) for path in example.media]
        return _Episode(EpisodeEnvironment(paths, config, uris=example.media, store=store), pool)

    oracle = begin()
    answer = oracle.follow(scene).answer
    if verify(example.verifier, answer, example.truth) != 1:
        return None
    episodes = {"oracle": oracle}
    for name in ("repeat", "whole", "noise"):
        episode = episodes[name] = begin()
        if first:
            episode.run(*_redundant(name, scene, episode, oracle.calls[0], None, rng))
        episode.follow(scene)
        if not first:
            episode.run(*_redundant(name, scene, episode, episode.calls[-1], episode.steps[-1].observation, rng))
    abab = episodes["abab"] = begin()
    abab.follow(scene)
    whole = (_LOOK, _zoom(scene, WHOLE, _moment(abab, abab.calls[-1], abab.steps[-1].observation)))
    pair = [(step.thought, call) for step, call in zip(abab.steps, abab.calls, strict=True)][:2]
    for turn in pair if len(pair) == 2 else [whole, *pair, whole]:
        abab.run(*turn)
    for name in ("loop", "nothing", "everything"):
        episodes[name] = begin()
    for _ in range(max_steps):
        episodes["loop"].run(oracle.steps[0].thought, oracle.calls[0])
    for call in _every_tool(scene, oracle.calls, config):
        episodes["everything"].run(_LOOK, call)
    episodes |= {"loop_right": episodes["loop"], "nothing_right": episodes["nothing"]}
    ends = {name: (episodes[name], answer) for name in POLICIES}
    ends |= {"nothing": (episodes["nothing"], _WRONG), "loop": (episodes["loop"], None)}
    return {name: _trajectory(name, example, *end) for name, end in ends.items()}


def shortened(trajectory: Trajectory, count: int) -> Trajectory:
    """An episode as it would be if the context had been full behind its first `count` steps; an answer is kept."""
    steps = trajectory.steps[:count]
    media = tuple(medium for medium in trajectory.media if medium.parent is None or medium.parent.step < count)
    if trajectory.answer is not None:
        return dataclasses.replace(trajectory, steps=steps, media=media)
    return dataclasses.replace(trajectory, steps=steps, media=media, final=None, stopped="context_full")


class _Episode:
    """Makes calls in an environment and keeps the steps."""

    def __init__(self, environment: EpisodeEnvironment, pool: ToolPool) -> None:
        self.environment = environment
        self._pool = pool
        self.steps: list[Step] = []
        self.calls: list[ToolCall] = []

    def run(self, thought: str, call: ToolCall) -> Observation:
        began = time.perf_counter()
        observation = self.environment.run(call, self._pool)
        took = round(1000 * (time.perf_counter() - began), 2)
        raw = thought + format_call(call)
        self.steps.append(Step(raw=raw, thought=thought, call=call, observation=observation, elapsed_ms=took))
        self.calls.append(call)
        return observation

    def follow(self, scene: Scene) -> Conclusion:
        """Runs the scene's chain to its end."""
        plans = chain(scene, placer())
        plan = next(plans)
        while True:
            observation = self.run(plan.thought, plan.call)
            try:
                plan = plans.send(observation)
            except StopIteration as stop:
                conclusion: Conclusion = stop.value
                return conclusion


def _trajectory(name: str, example: Example, episode: _Episode, answer: str | None) -> Trajectory:
    """An episode with its end; without an answer it goes on calling until it is stopped, as `rollout.agent` ends it."""
    thought = episode.steps[-1].thought if answer is None else ""
    raw = thought + format_call(episode.calls[-1]) if answer is None else f"<answer>{answer}</answer>"
    return Trajectory(
        id=f"{example.id}-{name}",
        example=example.id,
        question=example.question,
        media=tuple(episode.environment.media),
        steps=tuple(episode.steps),
        final=Final(raw=raw, thought=thought),
        answer=answer,
        source=example.source,
        stopped="max_steps" if answer is None else "answer",
        scores={"task": verify(example.verifier, answer, example.truth)},
    )


def _redundant(
    name: str, scene: Scene, episode: _Episode, call: ToolCall, seen: Observation | None, rng: np.random.Generator
) -> tuple[str, ToolCall]:
    """Thought and call that add nothing beside a call of the chain; `seen` is what that call showed, if it was made."""
    if name == "repeat":
        thought = episode.steps[-1].thought if seen is not None else _LOOK
        return thought, _again(call, episode.environment, rng)
    if name == "whole":
        return _LOOK, _zoom(scene, WHOLE, _moment(episode, call, seen))
    last = episode.environment.media[0].duration_s or 0.0
    return _LOOK, _zoom(scene, elsewhere(scene, rng), round(float(rng.uniform(0, last)), 1))


def _zoom(scene: Scene, box: Box, time_s: float) -> ToolCall:
    arguments: dict[str, Any] = {"media": 1, "bbox_2d": list(box)}
    if scene.kind == "video":
        arguments["time_s"] = int(time_s) if float(time_s).is_integer() else time_s
    return ToolCall(name="zoom", arguments=arguments)


def _moment(episode: _Episode, call: ToolCall, seen: Observation | None) -> float:
    """Seconds at which a call looks, or found something."""
    arguments, environment = call.arguments, episode.environment
    if seen is not None and seen.spans:
        return seen.spans[0].start_s
    if "region" in arguments:
        return environment.regions[arguments["region"] - 1].time_s or 0.0
    medium = environment.media[arguments["media"] - 1]
    time_s = medium.parent.time_s if medium.parent is not None else arguments.get("time_s")
    return time_s or 0.0


def _again(call: ToolCall, environment: EpisodeEnvironment, rng: np.random.Generator) -> ToolCall:
    """The call with its box moved; a region that it names is replaced by its box, and no box by nearly the whole medium."""
    arguments: dict[str, Any] = dict(call.arguments)
    if "region" in arguments:
        region = environment.regions[arguments.pop("region") - 1]
        arguments = {"media": region.media, "bbox_2d": region.bbox_2d, **arguments}
        if region.time_s is not None:
            arguments["time_s"] = region.time_s
    return ToolCall(name=call.name, arguments={**arguments, "bbox_2d": list(moved(arguments.get("bbox_2d", WHOLE), rng))})


def moved(box: Sequence[int], rng: np.random.Generator) -> Box:
    """The box of those on the policy's grid whose overlap with a box is nearest to `REPEAT_IOU`; a finer grid for small boxes.

    Args:
      box: 0..1000.
      rng: Chooses among boxes of equal overlap.
    """
    for step in (BOX_STEP, BOX_STEP // 4, 1):
        snapped = [step * round(side / step) for side in box]
        sides = [range(max(side - 2 * step, 0), min(side + 2 * step, 1000) + 1, step) for side in snapped]
        near = [(x1, y1, x2, y2) for x1, y1, x2, y2 in itertools.product(*sides) if x1 < x2 and y1 < y2]
        off = np.array([abs(box_iou(other, box) - REPEAT_IOU) for other in near])
        if off.min() < 0.05 - 1e-9:  # an overlap of exactly 0.8 or 0.9 is too far, however it is rounded
            break
    best = np.flatnonzero(off < off.min() + 1e-9)
    return near[int(rng.choice(best))]


def elsewhere(scene: Scene, rng: np.random.Generator) -> Box:
    """A box of a random size that the asked object never touches, or touches least of 100 where it is everywhere."""
    boxes = np.asarray(scene.asked.boxes, float)
    boxes = boxes[~np.isnan(boxes).any(axis=1)]
    best, least = WHOLE, np.inf
    for _ in range(100):
        width, height = (int(side) * BOX_STEP for side in rng.integers(6, 15, 2))
        x, y = (int(rng.integers(0, (1000 - side) // BOX_STEP + 1)) * BOX_STEP for side in (width, height))
        box = (x, y, x + width, y + height)
        pixels = to_pixels(box, scene.width, scene.height)
        overlap = max(box_iou(pixels, other) for other in boxes)
        if overlap < least:
            best, least = box, overlap
        if least == 0:
            break
    return best


def _every_tool(scene: Scene, calls: Sequence[ToolCall], config: ToolsConfig) -> list[ToolCall]:
    """One call of each tool that takes the medium, on all of it; the event is the chain's where it looks for one."""
    events = [call.arguments["event"] for call in calls if "event" in call.arguments]
    everywhere: Mapping[str, Any] = {"media": 1, "bbox_2d": list(WHOLE)}
    arguments: dict[str, Mapping[str, Any]] = {"localize": {"media": 1, "event": [*events, "motion"][0]}, "ocr": {"media": 1}}
    arguments["track"] = {**everywhere, "time_s": 0}
    names = [name for name in config.tools if scene.kind == "video" or name not in ("track", "localize")]
    return [ToolCall(name=name, arguments=arguments.get(name, everywhere)) for name in names]
