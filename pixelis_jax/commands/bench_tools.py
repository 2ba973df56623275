"""The `tools` benchmark: times calls on scenes drawn for it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

from tools_host.config import ToolsConfig
from tools_host.environment import EpisodeEnvironment
from tools_host.geometry import to_relative
from tools_host.media import MediaStore
from tools_host.pool import InlinePool
from tools_host.protocol import ToolCall, ToolError, ToolPool

MEDIAN_BUDGET_MS = 30.0
P95_BUDGET_MS = 150.0
SIZE = (512, 384)
FPS, FRAMES = 10, 20
SCENES = 8

BoxPx = tuple[int, int, int, int]


def measure_tools(calls: int, seed: int = 0) -> list[dict[str, Any]]:
    """Times distinct calls of every tool in this process.

    Args:
      calls: For each tool.
      seed: Of the scenes, the calls and the bootstrap.

    Returns:
      A row for each tool and one for all: milliseconds and their ratios to the budget.
    """
    cv2.setNumThreads(1)
    rng = np.random.default_rng(seed)
    config = ToolsConfig()
    times: dict[str, list[float]] = {name: [] for name in config.tools}
    with tempfile.TemporaryDirectory() as directory:
        pool, store = InlinePool(config), MediaStore()
        scenes = [_Scene(Path(directory) / str(index), rng) for index in range(min(SCENES, calls))]
        for scene in scenes:
            # Loads models and decodes files, as the first call of a worker does.
            _time_calls(scene, pool, config, store, rng)
        while min(map(len, times.values())) < calls:
            scene = scenes[len(times["zoom"]) % len(scenes)]
            for name, elapsed in _time_calls(scene, pool, config, store, rng):
                times[name].append(elapsed)
    everything = [elapsed for name in times for elapsed in times[name][:calls]]
    return [_row(name, values[:calls], rng) for name, values in times.items()] + [_row("all", everything, rng)]


class _Scene:
    """A picture with a disc and a word, and a clip in which the disc moves; both written to files."""

    def __init__(self, stem: Path, rng: np.random.Generator) -> None:
        self.image, self.clip = stem.with_suffix(".png"), stem.with_suffix(".mp4")
        width, height = SIZE
        grain = rng.integers(90, 190, (height // 16, width // 16, 3)).astype(np.uint8)
        room = cv2.resize(grain, SIZE, interpolation=cv2.INTER_CUBIC)
        radius = int(rng.integers(18, 40))
        centre = (int(rng.integers(60, 200)), int(rng.integers(60, height - 60)))
        word = "".join(rng.choice(list("ACEFHKLMNPRTUVWXY34679"), 5))
        corner = (int(rng.integers(260, 340)), int(rng.integers(60, height - 40)))
        picture = _with_disc(room, centre, radius)
        cv2.rectangle(picture, (corner[0] - 8, corner[1] - 34), (corner[0] + 132, corner[1] + 12), (245, 245, 245), -1)
        cv2.putText(picture, word, corner, cv2.FONT_HERSHEY_DUPLEX, 1.0, (30, 20, 20), 2, cv2.LINE_AA)
        cv2.imwrite(str(self.image), picture)
        self.disc: BoxPx = (centre[0] - radius, centre[1] - radius, centre[0] + radius, centre[1] + radius)
        self.word: BoxPx = (corner[0] - 8, corner[1] - 34, corner[0] + 133, corner[1] + 13)
        step = (int(rng.integers(5, 12)), int(rng.integers(-2, 3)))
        frames = [_with_disc(room, (centre[0] + i * step[0], centre[1] + i * step[1]), radius) for i in range(FRAMES)]
        with av.open(str(self.clip), "w") as container:
            stream = container.add_stream("libx264", rate=FPS)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="bgr24")))
            container.mux(stream.encode(None))


def _with_disc(room: np.ndarray, centre: tuple[int, int], radius: int) -> np.ndarray:
    picture = room.copy()
    cv2.circle(picture, centre, radius, (30, 40, 210), -1, cv2.LINE_AA)
    cv2.circle(picture, (centre[0] - radius // 3, centre[1] - radius // 3), radius // 4, (200, 240, 250), -1, cv2.LINE_AA)
    return picture


def _time_calls(
    scene: _Scene, pool: ToolPool, config: ToolsConfig, store: MediaStore, rng: np.random.Generator
) -> list[tuple[str, float]]:
    environment = EpisodeEnvironment([str(scene.image), str(scene.clip)], config, store=store)
    times = []
    for call in _calls(scene, rng):
        request = environment.prepare(call)
        if isinstance(request, ToolError):
            raise RuntimeError(f"the benchmark's own call is wrong: {request.message}")
        start = time.perf_counter()
        output = pool.submit(request).result()
        times.append((call.name, 1000 * (time.perf_counter() - start)))
        if isinstance(output, ToolError):
            raise RuntimeError(f"{call.name} failed: {output.message}")
    return times


def _calls(scene: _Scene, rng: np.random.Generator) -> Iterator[ToolCall]:
    disc = _jittered(scene.disc, rng)
    yield ToolCall(name="zoom", arguments={"media": 1, "bbox_2d": disc})
    yield ToolCall(name="segment", arguments={"media": 1, "bbox_2d": disc})
    yield ToolCall(name="track", arguments={"media": 2, "bbox_2d": disc, "time_s": 0.0})
    yield ToolCall(name="ocr", arguments={"media": 1, "bbox_2d": _jittered(scene.word, rng)})
    yield ToolCall(name="localize", arguments={"media": 2, "event": "motion"})
    yield ToolCall(name="properties", arguments={"media": 1, "bbox_2d": disc})


def _jittered(box: BoxPx, rng: np.random.Generator) -> list[int]:
    """The box with a margin of up to ten pixels a side, so that no two calls are the same."""
    x1, y1, x2, y2 = np.asarray(box) + rng.integers(0, 11, 4) * (-1, -1, 1, 1)
    return list(to_relative((x1, y1, x2, y2), *SIZE))


def _row(name: str, values: list[float], rng: np.random.Generator) -> dict[str, Any]:
    array = np.asarray(values)
    resampled = rng.choice(array, (2000, len(array)))
    medians, tails = np.median(resampled, axis=1), np.percentile(resampled, 95, axis=1)
    median, tail = float(np.median(array)), float(np.percentile(array, 95))
    return {
        "tool": name,
        "calls": len(values),
        "median_ms": round(median, 2),
        "median_interval_ms": [round(float(edge), 2) for edge in np.percentile(medians, [2.5, 97.5])],
        "p95_ms": round(tail, 2),
        "p95_interval_ms": [round(float(edge), 2) for edge in np.percentile(tails, [2.5, 97.5])],
        "median_ratio": round(median / MEDIAN_BUDGET_MS, 3),
        "p95_ratio": round(tail / P95_BUDGET_MS, 3),
    }
