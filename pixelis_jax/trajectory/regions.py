"""Where a trajectory looked: places in root coordinates, their overlap, repeats, and the process metrics that follow.

Definitions: `docs/algorithms.md`, sections 0 (valid call, repeat), 3.4 (footprint) and 6 (RaPR, RaCPR).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from pixelis_jax.trajectory.types import Step, Trajectory
from tools_host.geometry import to_root
from tools_host.protocol import Box, Media, Region, ToolCall

REPEAT_IOU = 0.7
"""Two calls of one tool are at the same place above this overlap, in space and in time."""

INSTANT_S = 0.5
"""Seconds that a single time stands for, so that two neighbouring frames overlap."""

POINT_SIDE = 50
"""Side of the square that a point stands for, in thousandths of its medium."""

PixelBox = tuple[int, int, int, int]
Interval = tuple[float, float]

_ALIASES = {"image_zoom_in_tool": "zoom"}
_TIME_SPANS = {"localize": ("start_s", "end_s"), "track": ("time_s", "until_s")}
_PLACE_ARGUMENTS = frozenset(
    {"media", "img_idx", "region", "bbox_2d", "point_2d", "time_s", "until_s", "start_s", "end_s", "other"}
)
_NOTES = frozenset({"label"})  # changes nothing in what a call does, so a loop cannot hide behind a new label


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """A box in pixels of a root medium (ends exclusive) and, for a video, an interval in seconds."""

    root: int
    box_px: PixelBox
    interval_s: Interval | None = None


def box_iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of two boxes (x1, y1, x2, y2) in the same units; 0 for empty boxes."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    both = max(width, 0.0) * max(height, 0.0)
    either = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both
    return both / either if either > 0 else 0.0


def mask_iou(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two bool masks `[H, W]`; 0 if both are empty."""
    either = np.count_nonzero(a | b)
    return np.count_nonzero(a & b) / either if either else 0.0


def time_iou(a: Interval, b: Interval) -> float:
    """Intersection over union of two intervals in seconds (tIoU); 1 for two equal instants."""
    both = min(a[1], b[1]) - max(a[0], b[0])
    either = max(a[1], b[1]) - min(a[0], b[0])
    return max(both, 0.0) / either if either > 0 else float(a == b)


def place(media: Sequence[Media], media_id: int, box: Box, interval_s: Interval | None = None) -> Place:
    """A box of a medium in pixels of its root.

    Args:
      media: Media of the episode, ids counting from 1 in order.
      media_id: The medium that the box is relative to.
      box: 0..1000.
      interval_s: Seconds, if the medium is a video. A frame that was cut from a video brings its own time.

    Raises:
      IndexError: if the episode has no such medium.
    """
    root_id, box_px = to_root(media, media_id, box)
    medium = media[media_id - 1]
    while medium.parent is not None:
        if medium.parent.time_s is not None:
            interval_s = _instant(medium.parent.time_s)
        medium = media[medium.parent.media - 1]
    return Place(root=root_id, box_px=box_px, interval_s=interval_s if medium.kind == "video" else None)


def region_place(media: Sequence[Media], region: Region) -> Place:
    """A region in pixels of its root."""
    return place(media, region.media, region.bbox_2d, None if region.time_s is None else _instant(region.time_s))


def call_place(call: ToolCall, media: Sequence[Media], regions: Mapping[int, Region]) -> Place | None:
    """Where a call looks: the box, point, region or whole medium that it names; None if its arguments name no place."""
    arguments = call.arguments
    try:
        region = regions[arguments["region"]] if "region" in arguments else None
        medium = _medium(arguments, media, region)
        box = region.bbox_2d if region is not None and region.media == medium.id else _box(arguments)
        interval = _interval(call, medium, None if region is None else region.time_s)
        return place(media, medium.id, box, interval)
    except (KeyError, IndexError, TypeError, ValueError, OverflowError):
        return None


def is_valid(step: Step) -> bool:
    """Whether a step's call parsed, passed the tool's schema and was answered without an error."""
    return step.call is not None and step.observation.ok and step.observation.error is None


def is_repeat(call: ToolCall, earlier: Iterable[ToolCall], media: Sequence[Media], regions: Mapping[int, Region]) -> bool:
    """Whether a call does again what any earlier one did: same tool, same place, other arguments equal.

    Args:
      call: The call.
      earlier: Calls before it.
      media: Media of the episode.
      regions: Regions of the episode by id.
    """
    here = call_place(call, media, regions)
    return here is not None and any(
        _tool(call) == _tool(before)
        and _rest(call) == _rest(before)
        and same_place(here, call_place(before, media, regions))
        and _same_other(call, before, media, regions)
        for before in earlier
    )


def same_place(a: Place | None, b: Place | None) -> bool:
    """Whether two places overlap by more than `REPEAT_IOU` in space and in time."""
    if a is None or b is None or a.root != b.root or box_iou(a.box_px, b.box_px) <= REPEAT_IOU:
        return False
    if a.interval_s is None or b.interval_s is None:
        return a.interval_s == b.interval_s
    return time_iou(a.interval_s, b.interval_s) > REPEAT_IOU


def repeats(trajectory: Trajectory) -> tuple[bool, ...]:
    """For each step, whether its call repeats one of an earlier step."""
    regions, calls, result = _regions(trajectory), list[ToolCall](), []
    for step in trajectory.steps:
        result.append(step.call is not None and is_repeat(step.call, calls, trajectory.media, regions))
        if step.call is not None:
            calls.append(step.call)
    return tuple(result)


def operations(trajectory: Trajectory) -> tuple[str, ...]:
    """The tools that a trajectory's valid calls used, in order; another dialect's name is that of the tool it stands for."""
    return tuple(_tool(step.call) for step in trajectory.steps if is_valid(step))


def footprint(trajectory: Trajectory) -> tuple[Place, ...]:
    """Where a trajectory's valid calls led: the regions that each returned, or the place it named if it found none."""
    known, places = _regions(trajectory), list[Place | None]()
    for step in trajectory.steps:
        if is_valid(step) and step.call is not None:
            found = [region_place(trajectory.media, region) for region in step.observation.regions]
            places += found or [call_place(step.call, trajectory.media, known)]
    return tuple(item for item in places if item is not None)


def footprint_iou(a: Sequence[Place], b: Sequence[Place]) -> float:
    """Overlap of two footprints, as area times span: union against union; 1 if both are empty, 0 if one is."""
    if not a or not b:
        return float(not a and not b)
    both = either = 0.0
    for root in {item.root for item in (*a, *b)}:
        x, y, t, covered_a, covered_b = _grids([i for i in a if i.root == root], [i for i in b if i.root == root])
        volume = np.diff(x)[:, None, None] * np.diff(y)[None, :, None] * np.diff(t)[None, None, :]
        both += float(volume[covered_a & covered_b].sum())
        either += float(volume[covered_a | covered_b].sum())
    return both / either if either > 0 else 0.0


def has_valid_call(trajectory: Trajectory) -> bool:
    """What RaPR counts: at least one valid tool call."""
    return any(is_valid(step) for step in trajectory.steps)


def is_chained(trajectory: Trajectory) -> bool:
    """What RaCPR counts: valid calls of two tools, no repeats, and one that uses an earlier one's region or medium."""
    valid = [step for step in trajectory.steps if is_valid(step)]
    tools = {_tool(step.call) for step in valid if step.call is not None}
    if len(tools) < 2 or any(repeats(trajectory)):
        return False
    media, regions = set[int](), set[int]()
    for step in valid:
        if step.call is not None and _uses(step.call, trajectory.media, media, regions):
            return True
        media |= set(step.observation.media)
        regions |= {region.id for region in step.observation.regions}
    return False


def rapr(trajectories: Iterable[Trajectory]) -> float:
    """RaPR over the answered trajectories; NaN if there are none."""
    return _share([has_valid_call(item) for item in trajectories if item.answer is not None])


def racpr(trajectories: Iterable[Trajectory]) -> float:
    """RaCPR over the answered trajectories; NaN if there are none."""
    return _share([is_chained(item) for item in trajectories if item.answer is not None])


def valid_share(trajectories: Iterable[Trajectory]) -> float:
    """Share of valid calls; 1 over zero calls, since the invalid share of none is 0."""
    valid = [is_valid(step) for item in trajectories for step in item.steps]
    return float(np.mean(valid)) if valid else 1.0


def _share(values: Sequence[bool]) -> float:
    return float(np.mean(values)) if values else float("nan")


def _tool(call: ToolCall | None) -> str:
    return "" if call is None else _ALIASES.get(call.name, call.name)


def _rest(call: ToolCall) -> dict[str, Any]:
    return {key: value for key, value in call.arguments.items() if key not in _PLACE_ARGUMENTS | _NOTES}


def _same_other(call: ToolCall, before: ToolCall, media: Sequence[Media], regions: Mapping[int, Region]) -> bool:
    a, b = call.arguments.get("other"), before.arguments.get("other")
    if a == b:
        return True
    if not isinstance(a, int) or not isinstance(b, int) or a not in regions or b not in regions:
        return False
    return same_place(region_place(media, regions[a]), region_place(media, regions[b]))


def _medium(arguments: Mapping[str, Any], media: Sequence[Media], region: Region | None) -> Media:
    if "img_idx" in arguments:
        return [medium for medium in media if medium.kind == "image"][arguments["img_idx"]]
    media_id = arguments.get("media", region.media if region is not None else 1)
    return {medium.id: medium for medium in media}[media_id]


def _box(arguments: Mapping[str, Any]) -> Box:
    if "bbox_2d" in arguments:
        x1, y1, x2, y2 = (round(value) for value in arguments["bbox_2d"])
        return x1, y1, x2, y2
    if "point_2d" in arguments:
        x, y = (round(value) for value in arguments["point_2d"])
        half = POINT_SIDE // 2
        return max(x - half, 0), max(y - half, 0), min(x + half, 1000), min(y + half, 1000)
    return 0, 0, 1000, 1000


def _interval(call: ToolCall, medium: Media, region_time_s: float | None) -> Interval:
    arguments = call.arguments
    start_name, end_name = _TIME_SPANS.get(_tool(call), ("time_s", None))
    start = arguments.get(start_name)
    start = float((region_time_s or 0.0) if start is None else start)
    if end_name is None:
        return _instant(start)
    end = arguments.get(end_name)
    return start, float((medium.duration_s or start) if end is None else end)


def _instant(time_s: float) -> Interval:
    return time_s - INSTANT_S / 2, time_s + INSTANT_S / 2


def _regions(trajectory: Trajectory) -> dict[int, Region]:
    return {region.id: region for step in trajectory.steps for region in step.observation.regions}


def _uses(call: ToolCall, media: Sequence[Media], made: set[int], found: set[int]) -> bool:
    arguments = call.arguments
    images = [medium.id for medium in media if medium.kind == "image"]
    try:
        if arguments.get("region") in found or arguments.get("other") in found or arguments.get("media") in made:
            return True
        return "img_idx" in arguments and images[arguments["img_idx"]] in made
    except (TypeError, IndexError):  # a trace may say that a call was valid which could not have been
        return False


def _grids(a: Sequence[Place], b: Sequence[Place]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Cuts space and time at every edge: cell borders x `[X]`, y `[Y]`, t `[Z]`, and which cells a and b cover."""
    cells = [(place.box_px, place.interval_s or (0.0, 1.0)) for place in (*a, *b)]
    x = np.unique([[box[0], box[2]] for box, _ in cells]).astype(float)
    y = np.unique([[box[1], box[3]] for box, _ in cells]).astype(float)
    t = np.unique([interval for _, interval in cells])
    covered = np.zeros((2, len(x) - 1, len(y) - 1, max(len(t) - 1, 0)), bool)
    for which, (box, interval) in zip(itertools.chain([0] * len(a), [1] * len(b)), cells, strict=True):
        (x1, x2), (y1, y2) = np.searchsorted(x, [box[0], box[2]]), np.searchsorted(y, [box[1], box[3]])
        t1, t2 = np.searchsorted(t, interval)
        covered[which, x1:x2, y1:y2, t1:t2] = True
    return x, y, t, covered[0], covered[1]
