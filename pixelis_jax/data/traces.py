"""Oracle traces (CoTA) of synthetic scenes: the chain that a scene plans, its calls really run, some with a mistake
first.

Styles: `tools` is the chain itself; `direct` answers at once, for the condition without tools; in `trap` a step of it comes
after a sensible one that leads nowhere, in `self_correct` after a call that is refused. The wrong step is marked
`imitate: false`.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pixelis_jax.data.scenes import FAMILIES, Conclusion, Place, Plan, Scene, chain
from pixelis_jax.data.scenes.scene import BoxF
from pixelis_jax.trajectory import Example, Final, Source, Step, ToolInfo, Trajectory, format_call
from pixelis_jax.verifiers import verify
from tools_host.config import ToolsConfig
from tools_host.environment import EpisodeEnvironment
from tools_host.media import MediaStore
from tools_host.protocol import Box, ToolCall, ToolPool

Style = Literal["tools", "direct", "trap", "self_correct"]
STYLES: tuple[Style, ...] = ("tools", "direct", "trap", "self_correct")

DATASET = "pixelis-scenes"
MEDIA_FOLDER = "media"

BOX_STEP = 20
"""Boxes are rounded to multiples of this, which the tiny policy has one token each for."""

_SWAPPED = 0.75
"""Share of the traps with the wrong one of two tools, where there are two: far off, text and marks look much alike."""

_PAD = 0.06
_JITTER = 0.06


def placer(rng: np.random.Generator | None = None) -> Place:
    """How chains write boxes: padded by 6 % of each side, rounded to multiples of `BOX_STEP`.

    Args:
      rng: Also moves each side by up to 6 %, so that training sees boxes as a policy writes them; None moves nothing.
    """

    def place(box: BoxF, width: int, height: int) -> Box:
        sides = np.asarray(box, np.float64)
        spans = np.array([box[2] - box[0], box[3] - box[1]] * 2)
        sides += spans * _PAD * (-1, -1, 1, 1)
        if rng is not None:
            sides += spans * rng.uniform(-_JITTER, _JITTER, 4)
        scaled = sides / np.array([width, height] * 2) * 1000 / BOX_STEP
        x1, y1, x2, y2 = (int(side) * BOX_STEP for side in np.clip(np.rint(scaled), 0, 1000 // BOX_STEP))
        x1, y1 = min(x1, 1000 - BOX_STEP), min(y1, 1000 - BOX_STEP)
        return x1, y1, max(x2, x1 + BOX_STEP), max(y2, y1 + BOX_STEP)

    return place


def example_id(scene: Scene) -> str:
    """Unique name of a scene's example."""
    return f"{scene.family}-{scene.split}-{scene.index}"


def make_example(scene: Scene, directory: Path) -> Example:
    """Saves a scene's file under `directory/media` and describes it; the media's path is relative to `directory`."""
    path = scene.save(directory / MEDIA_FOLDER)
    return Example(
        id=example_id(scene),
        question=scene.question,
        media=(f"{MEDIA_FOLDER}/{path.name}",),
        verifier=scene.verifier,
        truth=scene.truth,
        source=_source(scene),
        family=scene.family,
    )


def oracle_trajectory(
    scene: Scene,
    example: Example,
    directory: Path,
    pool: ToolPool,
    *,
    config: ToolsConfig,
    style: Style = "tools",
    rng: np.random.Generator | None = None,
    place: Place | None = None,
    store: MediaStore | None = None,
) -> Trajectory:
    """Runs a scene's chain on its file.

    Args:
      scene: The scene.
      example: From `make_example(scene, directory)`.
      directory: Where the example's media are.
      pool: Runs the calls.
      config: Of the pool and of the observations' wording.
      style: See the module.
      rng: Moves boxes and chooses mistakes; None leaves boxes as they are. `trap` and `self_correct` need one.
      place: Writes boxes; by default `placer(rng)`.
      store: Decoded pixels, shared between episodes.

    Returns:
      The trajectory; `scores["task"]` says whether the tools led to the right answer.

    Raises:
      ValueError: If a mistake is asked for without `rng`.
    """
    if style in ("trap", "self_correct") and rng is None:
        raise ValueError(f"style {style!r} needs a generator that chooses the mistake")
    paths = [str(directory / path) for path in example.media]
    environment = EpisodeEnvironment(paths, config, uris=example.media, store=store)
    place = place or placer(rng)
    if style == "direct":
        steps, conclusion = [], Conclusion(thought="", answer=scene.answer)
    else:
        runner = _Runner(environment, pool)
        mistake, at = None, 0
        if rng is not None and style in ("trap", "self_correct"):
            mistake = _trap(rng, scene, place) if style == "trap" else _bad_call(rng)
            at = int(rng.integers(FAMILIES[scene.family].calls))
        conclusion = runner.follow(scene, place, mistake, at)
        steps = runner.steps
    answer = conclusion.answer
    final = None if answer is None else Final(raw=f"{conclusion.thought}<answer>{answer}</answer>", thought=conclusion.thought)
    return Trajectory(
        id=f"{example.id}-{style}",
        example=example.id,
        question=example.question,
        media=tuple(environment.media),
        steps=tuple(steps),
        final=final,
        answer=answer,
        stopped="error" if answer is None else "answer",
        source=_source(scene),
        tools=_tool_infos(config),
        scores={"task": verify(example.verifier, answer, example.truth)},
    )


Mistake = Callable[[Plan], tuple[Plan, str] | None]
"""From a right step: the wrong one to take before it, and what is learnt from it (put before the right thought); None where
there is nothing to get wrong."""


class _Runner:
    """Makes calls in an environment and keeps the steps."""

    def __init__(self, environment: EpisodeEnvironment, pool: ToolPool) -> None:
        self._environment = environment
        self._pool = pool
        self.steps: list[Step] = []

    def follow(self, scene: Scene, place: Place, mistake: Mistake | None, at: int) -> Conclusion:
        """Runs a chain to its end, with a mistake before its step number `at` if there is one."""
        plans = chain(scene, place)
        plan = next(plans)
        right = 0
        while True:
            made = mistake(plan) if mistake is not None and right == at else None
            if made is not None:
                wrong, lesson = made
                self._run(wrong, imitate=False)
                plan = dataclasses.replace(plan, thought=f"{lesson} {plan.thought}")
            right += 1
            step = self._run(plan, imitate=True)
            try:
                plan = plans.send(step.observation)
            except StopIteration as stop:
                conclusion: Conclusion = stop.value
                return conclusion

    def _run(self, plan: Plan, *, imitate: bool) -> Step:
        started = time.perf_counter()
        observation = self._environment.run(plan.call, self._pool)
        step = Step(
            raw=plan.thought + format_call(plan.call),
            thought=plan.thought,
            call=plan.call,
            observation=observation,
            imitate=imitate,
            elapsed_ms=round(1000 * (time.perf_counter() - started), 2),
        )
        self.steps.append(step)
        return step


def _trap(rng: np.random.Generator, scene: Scene, place: Place) -> Mistake:
    """A valid call that cannot help: another object's box, a tool that sees nothing there, or another event.

    Whoever takes the wrong tool has taken text for a mark or a mark for text, and says so: were the thought before the wrong call
    the right one already, it could be copied.
    """
    text, mark = "has text", "has a mark"
    swapped = {"ocr": ("zoom", (text, mark), "There is text."), "zoom": ("ocr", (mark, text), "There is no text.")}

    def mistake(plan: Plan) -> tuple[Plan, str] | None:
        arguments = dict(plan.call.arguments)
        if plan.call.name == "segment" or not {"bbox_2d", "event"} & set(arguments):
            return None
        if "bbox_2d" not in arguments:
            arguments["event"] = "motion" if arguments["event"] == "scene_change" else "scene_change"
            return _with_call(plan, plan.call.name, arguments), "The other event."
        boxes = [other.box_px() for other in scene.objects if other is not scene.asked and other.kind == scene.asked.kind]
        seen = [box for box in boxes if box is not None]
        if plan.call.name in swapped and (not seen or rng.random() < _SWAPPED):
            name, (seen_now, taken_for), lesson = swapped[plan.call.name]
            wrong = _with_call(plan, name, arguments)
            return dataclasses.replace(wrong, thought=plan.thought.replace(seen_now, taken_for)), lesson
        if not seen:
            return None
        arguments["bbox_2d"] = list(place(seen[int(rng.integers(len(seen)))], scene.width, scene.height))
        return _with_call(plan, plan.call.name, arguments), "The other one."

    return mistake


def _bad_call(rng: np.random.Generator) -> Mistake:
    """A call that its tool refuses: a missing medium or region, a box inside out, an unknown argument or event, a time behind
    the end."""

    def mistake(plan: Plan) -> tuple[Plan, str]:
        arguments = dict(plan.call.arguments)
        faults = ["media" if "media" in arguments else "region", "unknown"]
        faults += ["box"] * ("bbox_2d" in arguments) + ["time"] * ("time_s" in arguments) + ["event"] * ("event" in arguments)
        fault = faults[int(rng.integers(len(faults)))]
        if fault in ("media", "region"):
            arguments[fault] = int(rng.integers(10, 20))
        elif fault == "unknown":
            arguments["other"] = 1
        elif fault == "box":
            x1, y1, x2, y2 = arguments["bbox_2d"]
            arguments["bbox_2d"] = [x2, y1, x1, y2]
        elif fault == "time":
            arguments["time_s"] = int(rng.integers(20, 60))
        else:
            arguments["event"] = "read"
        return _with_call(plan, plan.call.name, arguments), "There is an error."

    return mistake


def _with_call(plan: Plan, name: str, arguments: Mapping[str, Any]) -> Plan:
    return dataclasses.replace(plan, call=ToolCall(name=name, arguments=arguments))


def _source(scene: Scene) -> Source:
    return Source(dataset=DATASET, split=scene.split, item=f"{scene.family}/{scene.index}", licence="Apache-2.0")


@functools.lru_cache(maxsize=8)  # Hashes the weights.
def _tool_infos(config: ToolsConfig) -> dict[str, ToolInfo]:
    return {
        name: ToolInfo(backend=str(info["backend"]), version=str(info["version"]), weights_sha256=info["weights_sha256"])
        for name, info in config.tool_versions().items()
    }
