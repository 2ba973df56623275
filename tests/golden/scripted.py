"""The golden traces: small media drawn by code, and turns written by hand that call every tool on them.

`python -m tests.golden.scripted` writes `trace.jsonl` and its media anew into this directory. Do that when a tool's
version changes on purpose.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import av
import cv2
import numpy as np

from pixelis_jax.rollout.replay import environment_record
from pixelis_jax.trajectory import (
    Final,
    PolicyInfo,
    Source,
    Step,
    ToolInfo,
    Trajectory,
    format_call,
    parse_turn,
    write_trajectories,
)
from tools_host.config import ToolsConfig
from tools_host.environment import EpisodeEnvironment
from tools_host.pool import InlinePool
from tools_host.protocol import Observation, Shown, ToolCall, ToolPool

HERE = Path(__file__).parent
FPS = 10


def draw_image() -> np.ndarray:
    """RGB uint8 `[240, 320, 3]`: a red disc, a blue card with the letters HK3V9, a green bar."""
    y, x = np.mgrid[:240, :320]
    image = np.stack([200 + x // 16, 205 + y // 12, 190 + (x + y) // 20], axis=-1).astype(np.uint8)
    cv2.circle(image, (75, 80), 38, (205, 40, 40), -1, cv2.LINE_AA)
    cv2.rectangle(image, (170, 40), (300, 100), (245, 245, 250), -1)
    cv2.putText(image, "HK3V9", (178, 84), cv2.FONT_HERSHEY_DUPLEX, 1.15, (20, 30, 90), 2, cv2.LINE_AA)
    cv2.rectangle(image, (60, 170), (200, 205), (40, 140, 70), -1)
    return image


def draw_clip() -> list[np.ndarray]:
    """30 frames RGB uint8 `[144, 192, 3]`: a disc crosses a room, then the scene changes."""
    texture = np.random.default_rng(7).integers(0, 30, (2, 36, 48, 3)).astype(np.uint8)
    rooms = [cv2.resize(grain, (192, 144), interpolation=cv2.INTER_CUBIC) for grain in texture]
    frames = []
    for index in range(30):
        frame = rooms[0] + np.uint8(180) if index < 20 else rooms[1] + np.uint8(40)
        if index < 20:
            cv2.circle(frame, (30 + 6 * index, 50 + 2 * index), 14, (210, 60, 30), -1, cv2.LINE_AA)
            cv2.circle(frame, (26 + 6 * index, 46 + 2 * index), 4, (250, 230, 120), -1, cv2.LINE_AA)
        frames.append(frame)
    return frames


def write_media(directory: Path) -> list[Path]:
    """Writes `scene.png` and `clip.mp4`; the same bytes on every call with the same libraries."""
    paths = [directory / "scene.png", directory / "clip.mp4"]
    cv2.imwrite(str(paths[0]), cv2.cvtColor(draw_image(), cv2.COLOR_RGB2BGR))
    with av.open(str(paths[1]), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"threads": "1", "crf": "20"})
        stream.width, stream.height, stream.pix_fmt = 192, 144, "yuv420p"
        for frame in draw_clip():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return paths


def call(thought: str, name: str, **arguments: object) -> str:
    """A turn with a call."""
    return f"{thought} {format_call(ToolCall(name=name, arguments=arguments))}"


IMAGE_TURNS = (
    call("The card is small.", "zoom", media=1, bbox_2d=[500, 140, 960, 440], label="card"),
    call("Read it.", "ocr", media=2),
    "Now the disc. <tool_call>{'name': 'segment'}</tool_call>",
    call("Cut it out.", "segment", media=1, bbox_2d=[100, 160, 370, 510]),
    call("Measure it.", "properties", region=2),
    call("Too far.", "zoom", media=1, bbox_2d=[900, 900, 100, 950]),
)
CLIP_TURNS = (
    call("When does it change?", "localize", media=1, event="scene_change"),
    call("Follow the disc.", "track", media=1, bbox_2d=[60, 230, 260, 470], time_s=0.0, until_s=1.5),
    call("Look at the end.", "zoom", media=1, bbox_2d=[500, 400, 900, 800], time_s=1.5),
)


def run_script(
    identity: str,
    question: str,
    media: Path,
    turns: Sequence[str],
    final: str,
    pool: ToolPool,
    config: ToolsConfig,
) -> Trajectory:
    """Runs turns written by hand as an agent would run those of a policy."""
    environment = EpisodeEnvironment([str(media)], config, uris=[media.name])
    steps = [_step(raw, environment, pool) for raw in turns]
    for medium in environment.media:
        frames = 2 if medium.kind == "video" else 1
        environment.set_shown(medium.id, Shown(grid=(frames, 4, 4), times_s=(0.5, 2.0) if frames == 2 else ()))
    last = parse_turn(final)
    return Trajectory(
        id=identity,
        example=identity,
        question=question,
        media=tuple(environment.media),
        steps=tuple(steps),
        final=Final(raw=final, thought=last.thought),
        answer=last.answer,
        stopped="answer",
        source=Source(dataset="golden", split="test", item=f"golden/{identity}", licence="Apache-2.0"),
        policy=PolicyInfo(model="by hand"),
        sampling={"environment": environment_record(config)},
        tools={name: ToolInfo(**fields) for name, fields in config.tool_versions().items()},
        scores={"task": 1.0},
    )


def _step(raw: str, environment: EpisodeEnvironment, pool: ToolPool) -> Step:
    turn = parse_turn(raw)
    if turn.call is None:
        assert turn.error is not None
        observation: Observation = environment.observe(None, turn.error)
    else:
        observation = environment.run(turn.call, pool)
    return Step(raw=raw, thought=turn.thought, call=turn.call, observation=observation, elapsed_ms=12.5)


def golden_trajectories(directory: Path, pool: ToolPool, config: ToolsConfig) -> list[Trajectory]:
    """Both episodes, on the media in `directory`."""
    image, clip = directory / "scene.png", directory / "clip.mp4"
    return [
        run_script(
            "image",
            "What is written on the card?",
            image,
            IMAGE_TURNS,
            "It says so. <answer>HK3V9</answer>",
            pool,
            config,
        ),
        run_script("clip", "Where does the disc end up in <media 1>?", clip, CLIP_TURNS, "<answer>right</answer>", pool, config),
    ]


def main() -> None:
    """Writes the golden files."""
    config = ToolsConfig()
    write_media(HERE)
    trajectories = golden_trajectories(HERE, InlinePool(config), config)
    write_trajectories(HERE / "trace.jsonl", trajectories)
    for trajectory in trajectories:
        for step in trajectory.steps:
            print(json.dumps(step.raw)[:90], "->", step.observation.text)


if __name__ == "__main__":
    main()
