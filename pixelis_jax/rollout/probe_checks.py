"""One check a tool: the same again from slightly different arguments, against what random regions give (docs/ttrl.md).

A check is a generator. It yields lists of calls on the episode's root media, is sent their results, and returns the result on the
call itself and the mean result on random regions, both in [0, 1]. All is done in pixels of the root: what a tool found on a crop
is checked where the crop was cut from, with all that lies around it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Mapping, Sequence

import jiwer
import numpy as np

from pixelis_jax.trajectory import Place, box_iou, call_place, mask_iou, region_place
from pixelis_jax.trajectory.regions import INSTANT_S, Interval
from tools_host.geometry import SCALE, decode_mask, to_relative, to_root
from tools_host.protocol import Found, Media, Observation, Region, Span, ToolCall, ToolError, ToolOutput

Result = ToolOutput | ToolError
Check = Generator[list[ToolCall], list[Result], tuple[float, float]]
Prompt = tuple[float, ...]
"""A box (x1, y1, x2, y2) or a point (x, y) in pixels of a root."""

NOTHING = (0.0, 0.0)
"""Of a result that is empty, or so large that it says nothing."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProbeSettings:
    """How results are checked.

    Attributes:
      jitter: how far each side of a prompt moves at most, as a share of the box.
      pad: how much larger a crop is read again, as a share of the box on each side.
      draws: random regions of a check. One alone may happen to lie on another thing, which is as good as the right one.
      span_draws: random placements of spans, which cost no call.
      most_area: share of the medium (of spans: of its duration) above which a result says nothing.
      unknown: fidelity of the trajectories of a group in which nothing can be checked.
    """

    jitter: float = 0.1
    pad: float = 0.1
    draws: int = 4
    span_draws: int = 64
    most_area: float = 0.9
    unknown: float = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subject:
    """A valid call with what it found, and the episode that both speak of."""

    call: ToolCall
    observation: Observation
    media: Sequence[Media]
    regions: Mapping[int, Region]

    @property
    def place(self) -> Place:
        """Where it looked, in its root."""
        place = call_place(self.call, self.media, self.regions)
        if place is None:
            raise ValueError(f"a valid call of {self.call.name} that names no place: {dict(self.call.arguments)}")
        return place

    def found(self, region: Region) -> Place:
        """Where a region lies in its root."""
        return region_place(self.media, region)

    def fills(self, place: Place, most: float) -> bool:
        """Whether a place covers more than a share of its root."""
        root, (x1, y1, x2, y2) = self.media[place.root - 1], place.box_px
        return (x2 - x1) * (y2 - y1) > most * root.width * root.height


def segment_again(subject: Subject, settings: ProbeSettings, rng: np.random.Generator) -> Check:
    """Segments again from a jittered prompt: overlap of the two masks."""
    if not subject.observation.regions:
        return NOTHING
    region = subject.observation.regions[0]
    there = subject.found(region)
    if subject.fills(there, settings.most_area):
        return NOTHING
    root = subject.media[there.root - 1]
    prompt = _prompt(subject)
    time_s = _time(there)

    def ask(prompt: Prompt) -> ToolCall:
        name, value = _argument(prompt, root)
        return _call("segment", root, time_s, **{name: value})

    def moved(prompt: Prompt, box: Sequence[float]) -> Prompt:
        spans = np.array([box[2] - box[0], box[3] - box[1]] * (len(prompt) // 2))
        return tuple(float(side) for side in prompt + settings.jitter * spans * rng.uniform(-1, 1, len(prompt)))

    randoms = [_elsewhere(prompt, root, rng) for _ in range(settings.draws)]
    again, *first = yield [ask(moved(prompt, prompt if len(prompt) == 4 else there.box_px)), *map(ask, randoms)]
    raw = _overlap(_mask(subject, region, root), there.box_px, _best(again))
    bases = [(prompt, found) for prompt, result in zip(randoms, first, strict=True) if (found := _best(result)) is not None]
    bases = [(prompt, found) for prompt, found in bases if not _too_large(found.box_px, root, settings.most_area)]
    second = yield [ask(moved(prompt, prompt if len(prompt) == 4 else found.box_px)) for prompt, found in bases]
    nulls = [_overlap(found.mask, found.box_px, _best(result)) for (_, found), result in zip(bases, second, strict=True)]
    return raw, _mean(nulls, settings.draws)


def read_again(subject: Subject, settings: ProbeSettings, rng: np.random.Generator) -> Check:
    """Reads again from a padded crop: 1 - character error rate of the lines whose middle lies in the box."""
    there, lines = subject.place, subject.observation.regions
    text = " ".join(line.text or "" for line in lines)
    if not text.strip() or subject.fills(there, settings.most_area):
        return NOTHING
    root = subject.media[there.root - 1]
    # The lines bring the time of the frame that was read.
    time_s = _time(subject.found(lines[0]))

    def ask(box: Prompt) -> ToolCall:
        return _call("ocr", root, time_s, bbox_2d=list(_box(box, root)))

    def padded(box: Prompt) -> Prompt:
        x1, y1, x2, y2 = box
        across, down = settings.pad * (x2 - x1), settings.pad * (y2 - y1)
        return x1 - across, y1 - down, x2 + across, y2 + down

    randoms = [_elsewhere(there.box_px, root, rng) for _ in range(settings.draws)]
    again, *first = yield [ask(padded(there.box_px)), *map(ask, randoms)]
    raw = _agreement(text, _text_in(again, there.box_px))
    bases = [(box, text) for box, result in zip(randoms, first, strict=True) if (text := _text_in(result, box)).strip()]
    second = yield [ask(padded(box)) for box, _ in bases]
    nulls = [_agreement(text, _text_in(result, box)) for (box, text), result in zip(bases, second, strict=True)]
    return raw, _mean(nulls, settings.draws)


def track_there_and_back(subject: Subject, settings: ProbeSettings, rng: np.random.Generator) -> Check:
    """Tracks back from where a path ended: overlap with where it began, 0 if it does not come back in time.

    What stands still comes back on its own, background too: random regions see to it that this is worth little.
    """
    path = sorted(subject.observation.regions, key=lambda region: region.time_s or 0.0)
    if not path or path[0].time_s == path[-1].time_s:
        return NOTHING
    begin, end, asked = subject.found(path[0]), subject.found(path[-1]), subject.place
    if subject.fills(begin, settings.most_area):
        return NOTHING
    root, start_s = subject.media[begin.root - 1], float(path[0].time_s or 0.0)
    until = {"until_s": subject.call.arguments["until_s"]} if subject.call.arguments.get("until_s") is not None else {}

    def back(box: Sequence[float], time_s: float) -> ToolCall:
        return _call("track_back", root, time_s, bbox_2d=list(_box(box, root)), until_s=start_s)

    def came_back(result: Result, box: Sequence[float]) -> float:
        found = _regions(result)
        if not found or abs((found[-1].time_s or 0.0) - start_s) > INSTANT_S / 2:
            return 0.0
        return box_iou(found[-1].box_px, box)

    randoms = [_elsewhere(asked.box_px, root, rng) for _ in range(settings.draws)]
    starts = [_call("track", root, start_s, bbox_2d=list(_box(box, root)), **until) for box in randoms]
    home, *forward = yield [back(end.box_px, float(path[-1].time_s or 0.0)), *starts]
    paths = [found for result in forward if len(found := _regions(result)) > 1]
    second = yield [back(found[-1].box_px, float(found[-1].time_s or 0.0)) for found in paths]
    nulls = [came_back(result, found[0].box_px) for found, result in zip(paths, second, strict=True)]
    return came_back(home, begin.box_px), _mean(nulls, settings.draws)


CHECKS: Mapping[str, Callable[[Subject, ProbeSettings, np.random.Generator], Check]] = {
    "segment": segment_again,
    "ocr": read_again,
    "track": track_there_and_back,
}
"""By tool. `localize` is checked against other trajectories (`spans_across`), the others not at all."""


def spans_across(
    own: Sequence[Span], others: Sequence[Sequence[Sequence[Span]]], duration_s: float, settings: ProbeSettings, seed: int
) -> tuple[float, float] | None:
    """Compares spans with those that other trajectories found in the same video.

    Args:
      own: spans of a call.
      others: for each other trajectory that called, the spans of each of its calls. The call that agrees best counts, whatever
        event it asked for: one event alone is found where no other is.
      duration_s: of the video.
      settings: of the check.
      seed: of the random placements.

    Returns:
      The mean tIoU, and that of spans of equal lengths at random times; None if no other trajectory called.
    """
    intervals = [(span.start_s, span.end_s) for span in own]
    if not intervals or _covered(intervals) > settings.most_area * duration_s:
        return NOTHING
    if not others:
        return None
    references = [[[(span.start_s, span.end_s) for span in spans] for spans in calls] for calls in others]

    def agreement(intervals: Sequence[Interval]) -> float:
        return float(np.mean([max(spans_iou(intervals, spans) for spans in calls) for calls in references]))

    rng = np.random.default_rng(seed)
    lengths = np.array([end - start for start, end in intervals])
    starts = rng.uniform(size=(settings.span_draws, len(lengths))) * np.maximum(duration_s - lengths, 0.0)
    nulls = [agreement(list(zip(row, row + lengths, strict=True))) for row in starts]
    return agreement(intervals), float(np.mean(nulls))


def spans_iou(a: Sequence[Interval], b: Sequence[Interval]) -> float:
    """Overlap of two sets of intervals, union against union, in seconds; 1 for two equal sets of instants."""
    if not a or not b:
        return 0.0
    borders = np.unique([*a, *b])
    middles = (borders[1:] + borders[:-1]) / 2
    in_a, in_b = (np.any([(start < middles) & (middles < end) for start, end in spans], axis=0) for spans in (a, b))
    either = float(np.diff(borders)[in_a | in_b].sum())
    return float(np.diff(borders)[in_a & in_b].sum()) / either if either > 0 else float(sorted(a) == sorted(b))


def _covered(intervals: Sequence[Interval]) -> float:
    total, until = 0.0, -np.inf
    for start, end in sorted(intervals):
        total += max(end - max(start, until), 0.0)
        until = max(until, end)
    return total


def _prompt(subject: Subject) -> Prompt:
    """What a call of `segment` pointed at, in pixels of the root."""
    point = subject.call.arguments.get("point_2d")
    if point is None:
        return tuple(map(float, subject.place.box_px))
    medium = subject.media[int(subject.call.arguments["media"]) - 1]
    left, top = to_root(subject.media, medium.id, (0, 0, SCALE, SCALE))[1][:2]
    return left + point[0] * medium.width / SCALE, top + point[1] * medium.height / SCALE


def _elsewhere(prompt: Sequence[float], root: Media, rng: np.random.Generator) -> Prompt:
    """A prompt of the same size anywhere in the root."""
    x, y = rng.uniform(size=2)
    if len(prompt) == 2:
        return x * root.width, y * root.height
    width, height = prompt[2] - prompt[0], prompt[3] - prompt[1]
    left, top = x * (root.width - width), y * (root.height - height)
    return left, top, left + width, top + height


def _argument(prompt: Prompt, root: Media) -> tuple[str, list[int]]:
    if len(prompt) == 4:
        return "bbox_2d", list(_box(prompt, root))
    x, y = (
        round(min(max(value / side, 0.0), 1.0) * SCALE) for value, side in zip(prompt, (root.width, root.height), strict=True)
    )
    return "point_2d", [x, y]


def _box(box: Sequence[float], root: Media) -> tuple[int, int, int, int]:
    x1, y1, x2, y2 = box
    return to_relative((min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)), root.width, root.height)


def _call(name: str, root: Media, time_s: float | None, **arguments: object) -> ToolCall:
    timed = {} if root.kind == "image" else {"time_s": min(time_s or 0.0, root.duration_s or 0.0)}
    return ToolCall(name=name, arguments={"media": root.id, **timed, **arguments})


def _time(place: Place) -> float | None:
    return None if place.interval_s is None else (place.interval_s[0] + place.interval_s[1]) / 2


def _regions(result: Result) -> tuple[Found, ...]:
    return () if isinstance(result, ToolError) else result.regions


def _best(result: Result) -> Found | None:
    return next(iter(_regions(result)), None)


def _too_large(box_px: Sequence[float], root: Media, most: float) -> bool:
    return (box_px[2] - box_px[0]) * (box_px[3] - box_px[1]) > most * root.width * root.height


def _mask(subject: Subject, region: Region, root: Media) -> np.ndarray | None:
    """A region's mask `[H, W]` over its root."""
    if region.mask is None:
        return None
    left, top, right, bottom = to_root(subject.media, region.media, (0, 0, SCALE, SCALE))[1]
    mask = np.zeros((root.height, root.width), bool)
    mask[top:bottom, left:right] = decode_mask(region.mask, (bottom - top, right - left))
    return mask


def _overlap(mask: np.ndarray | None, box_px: Sequence[float], found: Found | None) -> float:
    if found is None:
        return 0.0
    if mask is None or found.mask is None:  # a back-end that gives boxes only
        return box_iou(box_px, found.box_px)
    return mask_iou(mask, found.mask)


def _text_in(result: Result, box: Sequence[float]) -> str:
    """The text of the lines whose middle lies in a box."""

    def inside(line: Found) -> bool:
        x, y = (line.box_px[0] + line.box_px[2]) / 2, (line.box_px[1] + line.box_px[3]) / 2
        return box[0] <= x <= box[2] and box[1] <= y <= box[3]

    return " ".join(line.text or "" for line in _regions(result) if inside(line))


def _agreement(text: str, again: str) -> float:
    return max(0.0, 1.0 - jiwer.cer(text, again))


def _mean(nulls: Sequence[float], draws: int) -> float:
    """Mean over all draws; those that gave nothing are not in `nulls` and count as 0."""
    return sum(nulls) / draws if draws else 0.0
