"""How fast and how right the tools are, on scenes drawn over real photographs: `pixelis bench tools`."""

from __future__ import annotations

import dataclasses
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from tools_host.config import ToolsConfig
from tools_host.environment import EpisodeEnvironment
from tools_host.geometry import decode_mask, to_relative
from tools_host.pool import InlinePool
from tools_host.protocol import Box, Observation, ToolCall, ToolError

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (215, 35, 40),
    "orange": (245, 130, 30),
    "yellow": (245, 215, 50),
    "green": (45, 160, 65),
    "blue": (40, 85, 205),
    "purple": (135, 60, 170),
    "pink": (245, 125, 180),
    "black": (20, 20, 20),
    "white": (248, 248, 248),
}
"""sRGB of the names that scenes use."""

LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ23456789"
"""Without 0, O, 1 and I, which many fonts draw alike."""

_PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket", "brick", "grass", "gravel")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table: processor time of a call in milliseconds, and the share right."""

    tool: str
    calls: int
    median_ms: float
    p95_ms: float
    right: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
    """A call and the check of what it returns."""

    call: ToolCall
    right: Callable[[Observation], bool]


def background(rng: np.random.Generator, size: int) -> np.ndarray:
    """A random cut of a photograph or a texture, RGB uint8 `[size, size, 3]`."""
    from skimage import data

    photo = getattr(data, str(rng.choice(_PHOTOGRAPHS)))()
    photo = np.stack([photo] * 3, -1) if photo.ndim == 2 else photo[..., :3]
    scale = max(size / min(photo.shape[:2]), 1.0) * rng.uniform(1.0, 1.4)
    photo = cv2.resize(photo, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    y, x = (int(rng.integers(0, side - size + 1)) for side in photo.shape[:2])
    return np.ascontiguousarray(photo[y : y + size, x : x + size])


def polygon(kind: str, centre: tuple[float, float], radius: float, angle_deg: float) -> np.ndarray:
    """Corners `[N, 2]` of a shape turned counter-clockwise; a `bar` is four times as long as wide."""
    if kind == "bar":
        points = np.array([[-1, -0.25], [1, -0.25], [1, 0.25], [-1, 0.25]])
    elif kind == "cross":
        a = 1 / 3
        points = np.array(
            [[-a, -1], [a, -1], [a, -a], [1, -a], [1, a], [a, a], [a, 1], [-a, 1], [-a, a], [-1, a], [-1, -a], [-a, -a]]
        )
    else:
        corners = {"triangle": 3, "square": 4, "star": 10, "circle": 48}[kind]
        turn = np.arange(corners) * 2 * np.pi / corners
        reach = np.where(np.arange(corners) % 2, 0.45, 1.0) if kind == "star" else np.ones(corners)
        points = np.stack([reach * np.cos(turn), reach * np.sin(turn)], 1)
    c, s = math.cos(math.radians(angle_deg)), math.sin(math.radians(angle_deg))
    return points @ np.array([[c, -s], [s, c]]) * radius + np.array(centre)


def paint(image: np.ndarray, points: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Fills a polygon in place, anti-aliased; returns its mask bool `[H, W]`."""
    fine = np.zeros((image.shape[0] * 4, image.shape[1] * 4), np.uint8)
    cv2.fillPoly(fine, [np.round(points * 4).astype(np.int32)], 255)
    alpha = cv2.resize(fine, image.shape[1::-1], interpolation=cv2.INTER_AREA).astype(np.float32)[..., None] / 255
    image[:] = np.rint(image * (1 - alpha) + alpha * np.array(colour, np.float32)).astype(np.uint8)
    return alpha[..., 0] > 0.5


def write_video(path: Path, frames: list[np.ndarray], fps: int = 10) -> None:
    """Encodes RGB uint8 frames as H.264; one thread, so that the same frames give the same bytes."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height = frames[0].shape[1], frames[0].shape[0]
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "20"}
        stream.codec_context.thread_count = 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())


def loose_box(box_px: tuple[float, float, float, float], rng: np.random.Generator, size: int) -> Box:
    """A relative box that leaves 10 to 25 % of margin on every side, as a model's coarse grounding does."""
    x1, y1, x2, y2 = box_px
    m = rng.uniform(0.1, 0.25, 4)
    w, h = x2 - x1, y2 - y1
    return to_relative((x1 - m[0] * w, y1 - m[1] * h, x2 + m[2] * w, y2 + m[3] * h), size, size)


def draw_image(rng: np.random.Generator, path: Path, size: int = 512) -> list[Trial]:
    """Writes a picture with a shape, a turned bar and a card with a code; returns calls whose answers are known."""
    image = background(rng, size)
    names = [str(name) for name in rng.permutation(list(COLOURS))]
    kind, angle = str(rng.choice(["triangle", "square", "star", "circle", "cross"])), float(rng.uniform(0, 180))
    mask = paint(image, polygon(kind, (130, 130), rng.uniform(15, 45), rng.uniform(0, 360)), COLOURS[names[0]])
    bar = paint(image, polygon("bar", (370, 140), rng.uniform(25, 60), angle), COLOURS[names[1]])
    code = "".join(rng.choice(list(LETTERS), rng.integers(3, 7)))
    card = _paint_card(image, code, (120, 330), rng)
    image = _noisy(image, rng)
    cv2.imwrite(str(path), image[..., ::-1])
    box, bar_box, card_box = (
        loose_box(_box(mask), rng, size),
        loose_box(_box(bar), rng, size),
        loose_box(card, rng, size),
    )
    return [
        Trial(call=_call("zoom", bbox_2d=box), right=lambda o: len(o.media) == 1),
        Trial(call=_call("segment", bbox_2d=box), right=lambda o: _iou(o, mask) >= 0.85),
        Trial(call=_call("properties", bbox_2d=bar_box), right=lambda o: _is_bar(o, names[1], angle)),
        Trial(call=_call("ocr", bbox_2d=card_box), right=lambda o: o.data["text"] == code),
    ]


def draw_clip(rng: np.random.Generator, path: Path, size: int = 384, frames: int = 60) -> list[Trial]:
    """Writes a clip of four identical discs that move and a card that comes and goes; returns calls on it."""
    scene = background(rng, size)
    colour = COLOURS[str(rng.choice(list(COLOURS)))]
    radius = float(rng.uniform(12, 20))
    starts = np.array([[60.0, 150.0], [320.0, 160.0], [70.0, 330.0], [310.0, 330.0]])
    ends = rng.uniform(radius + 5, size - radius - 5, (4, 2)).clip((0, 110))
    first, last = int(rng.integers(15, 25)), int(rng.integers(35, 50))
    code = "".join(rng.choice(list(LETTERS), 4))
    still, until = int(rng.integers(5, 12)), int(rng.integers(42, 52))
    pictures = []
    for index in range(frames):
        picture = scene.copy()
        if first <= index < last:
            _paint_card(picture, code, (110, 15), np.random.default_rng(first))
        along = min(max((index - still) / (until - still), 0.0), 1.0)
        for position in starts + (ends - starts) * along:
            paint(picture, polygon("circle", tuple(position), radius, 0), colour)
        pictures.append(_noisy(picture, rng))
    write_video(path, pictures)
    which = int(rng.integers(4))
    x, y = starts[which]
    seed_box = loose_box((x - radius, y - radius, x + radius, y + radius), rng, size)
    card_time = (first / 10, (last - 1) / 10)
    end = ends[which]
    return [
        Trial(call=_call("track", bbox_2d=seed_box, time_s=0), right=lambda o: _ends_at(o, end, radius)),
        Trial(
            call=_call("localize", event="motion", bbox_2d=[0, 290, 1000, 1000]),
            right=lambda o: _is_when(o, still / 10, until / 10),
        ),
        Trial(call=_call("localize", event="appearance"), right=lambda o: _is_when(o, *card_time)),
        Trial(
            call=_call("localize", event="text", text=code, bbox_2d=[0, 0, 1000, 290]),
            right=lambda o: _is_when(o, *card_time),
        ),
    ]


def measure_tools(scenes: int = 12, seed: int = 0, config: ToolsConfig | None = None) -> list[Row]:
    """Times every tool in this process, on one thread, with the video decoded before.

    Args:
      scenes: Pictures and clips to draw.
      seed: Of the drawing.
      config: Tools and back-ends.

    Returns:
      A row per tool, and `mix` over all calls.
    """
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            times, right = _run_trials(Path(folder), scenes, seed, config or ToolsConfig())
    finally:
        cv2.setNumThreads(threads)
    return [
        _row(name, [t for tool in tools for t in times[tool]], [r for tool in tools for r in right[tool]])
        for name, tools in [*((tool, (tool,)) for tool in times), ("mix", tuple(times))]
    ]


def _run_trials(
    folder: Path, scenes: int, seed: int, config: ToolsConfig
) -> tuple[dict[str, list[float]], dict[str, list[bool]]]:
    pool = InlinePool(config)
    times: dict[str, list[float]] = {name: [] for name in config.tools}
    right: dict[str, list[bool]] = {name: [] for name in config.tools}
    for scene in range(-1, scenes):  # the first round loads models and is not counted
        rng = np.random.default_rng((seed, scene + 1))
        for draw, name in ((draw_image, "scene.png"), (draw_clip, "scene.mp4")):
            path = folder / f"{scene}-{name}"
            trials = draw(rng, path)
            environment = EpisodeEnvironment([str(path)], config)
            for trial in trials:
                request = environment.prepare(trial.call)
                if isinstance(request, ToolError):
                    raise ValueError(f"{trial.call}: {request.message}")
                if trial is trials[0]:
                    _decode(environment, pool)
                began = time.process_time()
                output = pool.submit(request).result()
                elapsed = time.process_time() - began
                observation = environment.observe(trial.call, output)
                if scene >= 0:
                    times[trial.call.name].append(elapsed)
                    right[trial.call.name].append(observation.ok and trial.right(observation))
    pool.close()
    return times, right


def _decode(environment: EpisodeEnvironment, pool: InlinePool) -> None:
    request = environment.prepare(_call("zoom", bbox_2d=(0, 0, 500, 500)))
    assert not isinstance(request, ToolError)
    pool.submit(request).result()


def _row(name: str, times: list[float], right: list[bool]) -> Row:
    ms = 1000 * np.array(times)
    return Row(
        tool=name,
        calls=len(times),
        median_ms=float(np.median(ms)),
        p95_ms=float(np.percentile(ms, 95)),
        right=float(np.mean(right)),
    )


def _call(name: str, **arguments: object) -> ToolCall:
    return ToolCall(
        name=name, arguments={"media": 1, **{k: list(v) if isinstance(v, tuple) else v for k, v in arguments.items()}}
    )


def _noisy(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.clip(image + rng.normal(0, 3, image.shape), 0, 255).astype(np.uint8)


def _paint_card(
    image: np.ndarray, code: str, corner: tuple[int, int], rng: np.random.Generator
) -> tuple[float, float, float, float]:
    """Draws a code on a card; returns the card's box in pixels."""
    font = int(rng.choice([cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_DUPLEX, cv2.FONT_HERSHEY_TRIPLEX]))
    scale = float(rng.uniform(0.7, 1.4))
    (width, height), _ = cv2.getTextSize(code, font, scale, 2)
    x, y = corner
    box = (x, y, x + width + 24, y + height + 24)
    dark = bool(rng.integers(2))
    cv2.rectangle(image, box[:2], box[2:], (25, 30, 60) if dark else (250, 245, 225), -1)
    cv2.putText(image, code, (x + 12, y + height + 12), font, scale, (255, 240, 120) if dark else (40, 10, 90), 2, cv2.LINE_AA)
    return tuple(float(value) for value in box)  # type: ignore[return-value]


def _box(mask: np.ndarray) -> tuple[float, float, float, float]:
    ys, xs = np.nonzero(mask)
    return float(xs.min()), float(ys.min()), float(xs.max() + 1), float(ys.max() + 1)


def _iou(observation: Observation, truth: np.ndarray) -> float:
    if not observation.regions or observation.regions[0].mask is None:
        return 0.0
    mask = decode_mask(observation.regions[0].mask)
    return float((mask & truth).sum() / (mask | truth).sum())


def _is_bar(observation: Observation, colour: str, angle_deg: float) -> bool:
    angle = observation.data["orientation_deg"]
    off = 90.0 if angle is None else abs((angle - angle_deg + 90) % 180 - 90)
    return observation.data["colour"] == colour and off <= 5


def _ends_at(observation: Observation, end: np.ndarray, radius: float) -> bool:
    return math.hypot(*(np.array(observation.data["end_px"]) - end)) < radius


def _is_when(observation: Observation, start_s: float, end_s: float) -> bool:
    spans = observation.spans
    return len(spans) == 1 and abs(spans[0].start_s - start_s) <= 0.2 and abs(spans[0].end_s - end_s) <= 0.2
