"""What the page shows of a trajectory: cards with text, and pictures with shapes in the root medium's own pixels."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from pixelis_jax.report import drawing
from pixelis_jax.report.sources import Traced
from pixelis_jax.trajectory import Place, Step, Trajectory, call_place, is_chained, is_valid, repeats
from pixelis_jax.trajectory.regions import region_place
from tools_host.geometry import decode_mask, to_root
from tools_host.images import MediaError
from tools_host.media import MediaStore, media_spec
from tools_host.protocol import Media, MediaView, Region

PICTURE_SIDE = 960
"""Longer side of a picture on the page; shapes keep the original's coordinates."""

_PLACEHOLDER = re.compile(r"<media (\d+)>")

MAX_FRAMES = 6
"""Key frames of one step."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture that the page holds once, however often it is shown; `width` and `height` are those of the original."""

    id: str
    uri: str
    width: int
    height: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """Something drawn on a picture, in the original's pixels: a box `(x, y, w, h)`, polygons, or a path of points."""

    kind: str
    colour: str = ""
    label: str = ""
    box: tuple[int, int, int, int] | None = None
    polygons: tuple[str, ...] = ()
    path: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shot:
    """A picture with shapes and a caption."""

    picture: Picture
    caption: str
    shapes: tuple[Shape, ...] = ()
    derived: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timeline:
    """Spans `(left, width, label)` on a video's length, in percent."""

    end: str
    spans: tuple[tuple[float, float, str], ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepView:
    """One step's card."""

    tool: str
    thought: str
    raw: str
    arguments: str
    text: str
    data: str
    ok: bool
    badges: tuple[str, ...]
    elapsed: str
    shots: tuple[Shot, ...]
    timeline: Timeline | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class TraceView:
    """One trajectory."""

    id: str
    run: str
    family: str
    question: str
    answer: str
    truth: str
    verdict: str
    thought: str
    stopped: str
    model: str
    scores: str
    chained: bool
    tools: tuple[str, ...]
    shots: tuple[Shot, ...]
    steps: tuple[StepView, ...]
    notes: tuple[str, ...]


class Pictures:
    """The pictures of a page, each once."""

    def __init__(self) -> None:
        self._by_key: dict[tuple[Any, ...], Picture] = {}

    def __iter__(self) -> Any:
        return iter(self._by_key.values())

    def add(self, key: tuple[Any, ...], pixels: np.ndarray) -> Picture:
        """The picture for a key; `pixels` RGB uint8 `[H, W, 3]` are encoded the first time."""
        if key not in self._by_key:
            height, width = pixels.shape[:2]
            uri = drawing.data_uri(pixels, PICTURE_SIDE)
            self._by_key[key] = Picture(id=f"p{len(self._by_key)}", uri=uri, width=width, height=height)
        return self._by_key[key]


def verdict(trajectory: Trajectory) -> str:
    """`right`, `wrong`, or `open` if the trajectory carries no score."""
    score = trajectory.scores.get("task", trajectory.scores.get("correct"))
    return "open" if score is None else "right" if score >= 0.5 else "wrong"


def family(trajectory: Trajectory) -> str:
    """The kind of question, as far as the trajectory says."""
    item = trajectory.source.item.partition("/")
    return str(trajectory.sampling.get("family") or (item[0] if item[1] else trajectory.source.dataset))


def view_trace(traced: Traced, run: str, pictures: Pictures, store: MediaStore) -> TraceView:
    """Builds the view of a trajectory.

    Args:
      traced: Trajectory and where its media are.
      run: Name of the source.
      pictures: Takes the pictures.
      store: Opens media. A file that is gone or was changed leaves its pictures out, and a note says so.
    """
    trajectory = traced.trajectory
    painter = _Painter(traced, pictures, store)
    repeated = repeats(trajectory)
    steps = [painter.step(step, again) for step, again in zip(trajectory.steps, repeated, strict=True)]
    model = trajectory.policy
    return TraceView(
        id=trajectory.id,
        run=run,
        family=family(trajectory),
        question=_question(trajectory),
        answer=trajectory.answer or "",
        truth=_text(trajectory.sampling.get("truth")),
        verdict=verdict(trajectory),
        thought=trajectory.final.thought if trajectory.final else "",
        stopped=trajectory.stopped,
        model="" if model is None else f"{model.model} · step {model.step}",
        scores=" · ".join(f"{name} {value:.3g}" for name, value in trajectory.scores.items()),
        chained=is_chained(trajectory),
        tools=tuple(step.tool for step in steps),
        shots=tuple(painter.roots()),
        steps=tuple(steps),
        notes=tuple(dict.fromkeys(painter.notes)),
    )


def view_question(traced: Traced, pictures: Pictures, store: MediaStore) -> tuple[str, tuple[Shot, ...], tuple[str, ...]]:
    """A trajectory's question, the media that it was asked about, and notes on those that could not be shown."""
    painter = _Painter(traced, pictures, store)
    shots = tuple(painter.roots())
    return _question(traced.trajectory), shots, tuple(dict.fromkeys(painter.notes))


class _Painter:
    """Draws one trajectory's places on the pixels that they came from."""

    def __init__(self, traced: Traced, pictures: Pictures, store: MediaStore) -> None:
        self._trajectory, self._root = traced.trajectory, traced.media_root
        self._media = traced.trajectory.media
        self._regions = {r.id: r for step in traced.trajectory.steps for r in step.observation.regions}
        self._pictures, self._store = pictures, store
        self.notes: list[str] = []

    def roots(self) -> list[Shot]:
        """The media of the question; of a video the first, middle and last frame."""
        shots: list[Shot | None] = []
        for medium in self._media:
            if medium.parent is None and medium.kind == "image":
                shots.append(self._shot(medium, None, f"media {medium.id} · {medium.width} × {medium.height} px"))
            elif medium.parent is None:
                duration = medium.duration_s or 0.0
                for time_s in (0.0, duration / 2, duration):
                    shots.append(self._shot(medium, round(time_s, 2), f"media {medium.id} · {time_s:.1f} s"))
        return [shot for shot in shots if shot is not None]

    def step(self, step: Step, repeated: bool) -> StepView:
        """A step's card."""
        badges = [name for name, on in (("repeat", repeated), ("not imitated", not step.imitate)) if on]
        error = step.observation.error
        if error is not None:
            badges.insert(0, error.code)
        call = step.call
        return StepView(
            tool="?" if call is None else call.name,
            thought=step.thought,
            raw=step.raw if call is None else "",
            arguments="" if call is None else json.dumps(dict(call.arguments), ensure_ascii=False),
            text=step.observation.text,
            data=json.dumps(dict(step.observation.data), ensure_ascii=False) if step.observation.data else "",
            ok=is_valid(step),
            badges=tuple(badges),
            elapsed=f"{step.elapsed_ms:.0f} ms" if step.elapsed_ms else "",
            shots=tuple(self._step_shots(step)),
            timeline=self._timeline(step),
        )

    def _step_shots(self, step: Step) -> list[Shot]:
        if step.call is None or not is_valid(step):
            return []
        asked = call_place(step.call, self._media, self._regions)
        if asked is None:
            return []
        root = self._media[asked.root - 1]
        regions = [r for r in step.observation.regions if region_place(self._media, r).root == root.id]
        shots: list[Shot | None] = []
        for time_s in self._times(step, root, asked, regions):
            here = [r for r in regions if time_s is None or self._time_of(r) in (None, time_s)]
            shapes = [*self._asked(asked, root), *self._path(root, regions), *map(self._found, here)]
            when = "" if time_s is None else f" · {time_s:.2f} s"
            shots.append(self._shot(root, time_s, f"media {root.id}{when}", shapes))
        return [shot for shot in [*shots, *map(self._derived, step.observation.media)] if shot is not None]

    def _times(self, step: Step, root: Media, asked: Place, regions: Sequence[Region]) -> list[float | None]:
        """The key frames of a step; `[None]` for an image."""
        if root.kind == "image":
            return [None]
        times = sorted({time for time in map(self._time_of, regions) if time is not None})
        times = times or [(span.start_s + span.end_s) / 2 for span in step.observation.spans]
        start, end = asked.interval_s or (0.0, 0.0)
        if not times and end - start <= 1.0:
            times = [(start + end) / 2]
        picked = np.unique(np.rint(np.linspace(0, len(times) - 1, min(len(times), MAX_FRAMES))).astype(int))
        return [times[index] for index in picked] if times else []

    def _time_of(self, region: Region) -> float | None:
        """The time in the root video at which a region lies."""
        if region.time_s is not None:
            return region.time_s
        medium = self._media[region.media - 1]
        while medium.parent is not None:
            if medium.parent.time_s is not None:
                return medium.parent.time_s
            medium = self._media[medium.parent.media - 1]
        return None

    def _asked(self, asked: Place, root: Media) -> list[Shape]:
        x1, y1, x2, y2 = asked.box_px
        whole = (x1, y1, x2, y2) == (0, 0, root.width, root.height)
        return [] if whole else [Shape(kind="asked", box=(x1, y1, x2 - x1, y2 - y1))]

    def _path(self, root: Media, regions: Sequence[Region]) -> list[Shape]:
        """Where a tracked thing went: its centres in order of time."""
        timed = {time: region for region in regions if (time := self._time_of(region)) is not None}
        if len(timed) < 2:
            return []
        boxes = [region_place(self._media, timed[time]).box_px for time in sorted(timed)]
        points = " L".join(f"{(x1 + x2) / 2:.1f},{(y1 + y2) / 2:.1f}" for x1, y1, x2, y2 in boxes)
        return [Shape(kind="path", path=f"M{points}")]

    def _found(self, region: Region) -> Shape:
        _, (x1, y1, x2, y2) = to_root(self._media, region.media, region.bbox_2d)
        polygons: tuple[str, ...] = ()
        if region.mask is not None:
            # A crop is never resampled, so its pixels lie in the root shifted by its corner.
            _, (left, top, _, _) = to_root(self._media, region.media, (0, 0, 1000, 1000))
            outlines = drawing.outline(decode_mask(region.mask))
            polygons = tuple(" ".join(f"{x + left:.1f},{y + top:.1f}" for x, y in points) for points in outlines)
        label = f"{region.id}" + (f" “{region.text}”" if region.text else "")
        return Shape(
            kind="found",
            colour=drawing.colour(region.id),
            label=label,
            box=(x1, y1, x2 - x1, y2 - y1),
            polygons=polygons,
        )

    def _derived(self, media_id: int) -> Shot | None:
        medium = self._media[media_id - 1]
        kind = medium.parent.kind if medium.parent else medium.kind
        caption = f"media {medium.id} · {kind}, {medium.width} × {medium.height} px of the original"
        shot = self._shot(medium, None, caption)
        return None if shot is None else dataclasses.replace(shot, derived=True)

    def _shot(self, medium: Media, time_s: float | None, caption: str, shapes: Sequence[Shape] = ()) -> Shot | None:
        try:
            view = self._view(medium)
            key = (medium.sha256, _derivations(medium), time_s)
            picture = self._pictures.add(key, view.image(time_s))
        except MediaError as error:
            self.notes.append(str(error))
            return None
        return Shot(picture=picture, caption=caption, shapes=tuple(shapes))

    def _view(self, medium: Media) -> MediaView:
        spec = media_spec(self._media, medium.id, lambda root: str(self._root / (root.uri or "")))
        return self._store.open(spec, drawn=True)

    def _timeline(self, step: Step) -> Timeline | None:
        duration = max((medium.duration_s or 0.0 for medium in self._media), default=0.0)
        if not step.observation.spans or duration <= 0:
            return None
        spans = []
        for span in step.observation.spans:
            left = 100 * min(span.start_s / duration, 1.0)
            width = max(100 * (span.end_s - span.start_s) / duration, 0.8)
            spans.append((round(left, 2), round(min(width, 100 - left), 2), f"{span.start_s:g}–{span.end_s:g} s"))
        return Timeline(end=f"{duration:g} s", spans=tuple(spans))


def _derivations(medium: Media) -> tuple[Any, ...]:
    return () if medium.parent is None else (medium.parent.kind, medium.parent.bbox_2d, medium.parent.time_s)


def _question(trajectory: Trajectory) -> str:
    return _PLACEHOLDER.sub(r"media \1", trajectory.question)


def _text(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
