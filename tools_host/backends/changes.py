"""Finds when something happens in a video, on small copies of its frames."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator
from fractions import Fraction

import cv2
import numpy as np

from tools_host.backends.base import BoxPx

WORK_SIDE = 160
"""Longest side of the working frames, in pixels."""

_STEP = 18.0
"""Grey levels that a pixel must change by, well above what noise and compression do to a smoothed frame."""

_SETTLE_S = 0.3
"""Time for which a thing that appeared must stand still to count as a thing and not as a passing edge, in seconds."""


@dataclasses.dataclass(frozen=True)
class Clip:
    """Frames at working size.

    Attributes:
      times: Seconds, float64 `[N]`.
      frames: Smoothed RGB uint8 `[N, 3, h, w]`, in planes because a maximum over them is fast.
      scale: Working size over real size.
    """

    times: np.ndarray
    frames: np.ndarray
    scale: float

    @classmethod
    def of(cls, frames: Iterable[tuple[float, np.ndarray]], box_px: tuple[int, int, int, int]) -> Clip:
        """Takes the part of each frame in a box, in pixels."""
        x1, y1, x2, y2 = box_px
        factor = math.ceil(max(x2 - x1, y2 - y1) / WORK_SIDE)  # a whole number: averaging blocks is five times as fast
        size = (max(1, (x2 - x1) // factor), max(1, (y2 - y1) // factor))
        x2, y2 = min(x2, x1 + factor * size[0]), min(y2, y1 + factor * size[1])
        times, small = [], []
        for time_s, image in frames:
            times.append(time_s)
            small.append(cv2.blur(cv2.resize(image[y1:y2, x1:x2], size, interpolation=cv2.INTER_AREA), (3, 3)))
        planes = np.array(small, np.uint8).reshape(len(small), size[1], size[0], 3).transpose(0, 3, 1, 2)
        return cls(np.array(times), np.ascontiguousarray(planes), 1 / factor)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of a working frame."""
        return self.frames.shape[2], self.frames.shape[3]

    def picture(self, index: int) -> np.ndarray:
        """Frame `[h, w, 3]`."""
        return np.ascontiguousarray(self.frames[index].transpose(1, 2, 0))

    @property
    def least_area(self) -> float:
        """Working pixels that count as something: 1/1500 of the view, at least 5."""
        return max(5.0, self.shape[0] * self.shape[1] / 1500)

    def difference(self, first: int | np.ndarray, second: int | np.ndarray) -> np.ndarray:
        """Largest change over the colour channels between two frames, or two stacks of them, uint8 `[..., h, w]`."""
        one, two = self.frames[first], self.frames[second]
        return (np.maximum(one, two) - np.minimum(one, two)).max(-3)


@dataclasses.dataclass(frozen=True)
class Event:
    """Something between two times; `box_px` is in pixels of the box that the clip was taken from, or None."""

    start_s: float
    end_s: float
    box_px: BoxPx | None = None


def cuts(clip: Clip) -> list[Event]:
    """Hard cuts with PySceneDetect's adaptive detector: from the last frame before a cut to the first one after it."""
    from scenedetect import FrameTimecode
    from scenedetect.detectors import AdaptiveDetector

    if len(clip.times) < 2:
        return []
    fps = Fraction(float((len(clip.times) - 1) / (clip.times[-1] - clip.times[0]))).limit_denominator(1001)
    # Its default of 15 misses cuts between scenes of like colours; the ratio to the frames around keeps motion out.
    detector = AdaptiveDetector(adaptive_threshold=4.0, min_scene_len=2, min_content_val=7.0)
    found = []
    for index in range(len(clip.times)):
        timecodes = detector.process_frame(FrameTimecode(index, fps), clip.picture(index)[..., ::-1])
        found += [timecode.frame_num for timecode in timecodes]
    return [Event(float(clip.times[i - 1]), float(clip.times[i])) for i in found if i > 0]


def motions(clip: Clip) -> list[Event]:
    """Stretches in which something moves."""
    if len(clip.times) < 3:
        return []
    lag = max(1, round(0.2 / _interval(clip)))
    lag = min(lag, len(clip.times) - 1)
    starts = np.arange(len(clip.times) - lag)
    changed = clip.difference(starts, starts + lag) > _STEP
    active = changed.sum((1, 2)) >= clip.least_area
    events = []
    for first, last in runs(active, gap=max(1, round(0.3 / _interval(clip)))):
        # A pair (i, i + lag) differs as soon as its later frame has moved and until its earlier one has stopped.
        begin, end = first + lag - 1 if first else 0, min(last + 1, len(clip.times) - 1)
        if last == len(starts) - 1:
            end = len(clip.times) - 1
        if end - begin >= 2:
            box = _box(np.any(changed[first : last + 1], axis=0), clip.scale)
            events.append(Event(float(clip.times[begin]), float(clip.times[end]), box))
    return events


def appearances(clip: Clip, *, in_place: bool = False) -> list[Event]:
    """Things that appear and then stand still, each from its first to its last frame.

    Args:
      clip: Frames.
      in_place: Whether a thing that replaces another counts too, as one text does another.
    """
    settle = max(1, round(_SETTLE_S / _interval(clip)))
    events = []
    for index in range(1, len(clip.times) - settle):
        jumped = clip.difference(index - 1, index) > _STEP
        if jumped.sum() < clip.least_area:
            continue
        settled = clip.difference(index, index + settle) <= _STEP
        for blob in _blobs(jumped & settled, clip.least_area):
            if _moves(clip, blob, index, settle) or not (in_place or _adds(clip, blob, index)):
                continue
            end = _until(clip, blob, index)
            events.append(Event(float(clip.times[index]), float(clip.times[end]), _box(blob, clip.scale)))
    return events


def presences(clip: Clip) -> list[Event]:
    """Stretches in which things are in view that were not there at first: things that enter, pass or move about."""
    usual = np.median(clip.frames[:: max(1, len(clip.times) // 25)], axis=0).astype(np.uint8)
    unusual = (np.maximum(clip.frames, usual) - np.minimum(clip.frames, usual)).max(1) > 1.5 * _STEP
    active = unusual.sum((1, 2)) >= 1.5 * clip.least_area
    events = []
    for first, last in runs(active, gap=max(1, round(0.3 / _interval(clip)))):
        if first > 0 and last > first:
            middle = unusual[(first + last) // 2]
            box = _box(middle, clip.scale) if middle.any() else None
            events.append(Event(float(clip.times[first]), float(clip.times[last]), box))
    return events


def standing(clip: Clip, box_px: BoxPx, start: int = 0) -> float:
    """Time at which the look of a box last resembles that of frame `start`."""
    x1, y1, x2, y2 = (int(round(value * clip.scale)) for value in box_px)
    blob = np.zeros(clip.shape, bool)
    blob[max(0, y1) : max(y2, y1 + 1), max(0, x1) : max(x2, x1 + 1)] = True
    return float(clip.times[_until(clip, blob, start, share=0.15)])


def runs(active: np.ndarray, gap: int) -> Iterator[tuple[int, int]]:
    """First and last index of each stretch of true values; stretches at most `gap` false values apart are one."""
    indices = np.flatnonzero(active)
    if indices.size:
        for part in np.split(indices, np.flatnonzero(np.diff(indices) > gap + 1) + 1):
            yield int(part[0]), int(part[-1])


def _interval(clip: Clip) -> float:
    return float(np.median(np.diff(clip.times))) if len(clip.times) > 1 else 1.0


def _blobs(mask: np.ndarray, least_area: float) -> Iterator[np.ndarray]:
    """Connected parts of a mask after its gaps of a few pixels are closed; the closing joins the letters of a word."""
    closed = cv2.morphologyEx(np.pad(mask, 6).astype(np.uint8), cv2.MORPH_CLOSE, np.ones((5, 7), np.uint8))[6:-6, 6:-6]
    count, labels, stats, _ = cv2.connectedComponentsWithStats(np.ascontiguousarray(closed), connectivity=8)
    for index in range(1, count):
        if stats[index, cv2.CC_STAT_AREA] >= 2 * least_area and (mask & (labels == index)).sum() >= least_area:
            yield labels == index


def _moves(clip: Clip, blob: np.ndarray, index: int, settle: int) -> bool:
    """Whether the place's surround changes just before or after, as it does round a thing that passes or stops."""
    near = cv2.dilate(blob.astype(np.uint8), np.ones((5, 5), np.uint8)).astype(bool)
    later = clip.difference(index, min(index + settle, len(clip.times) - 1)) > _STEP
    sooner = clip.difference(max(index - settle, 0), index - 1) > _STEP
    ring = near & ~blob
    return any((change & ring).sum() > max(2.0, 0.12 * ring.sum()) for change in (later, sooner))


def _adds(clip: Clip, blob: np.ndarray, index: int) -> bool:
    """Whether something came, not went: the place is not as it was at first, and its outline became sharper."""
    first, after = (clip.frames[i][:, blob].astype(np.int16) for i in (0, index))
    if (np.abs(after - first).max(0) <= _STEP).mean() > 0.8:
        return False
    edge = cv2.morphologyEx(blob.astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)).astype(bool)
    if not edge.any():  # all of the view changed, so that its outline is out of sight
        return True
    sharpness = [_gradient(clip.picture(i))[edge].mean() for i in (index - 1, index)]
    return bool(sharpness[1] > sharpness[0])


def _gradient(frame: np.ndarray) -> np.ndarray:
    values = frame.astype(np.float32)
    return np.sqrt((cv2.Sobel(values, cv2.CV_32F, 1, 0) ** 2 + cv2.Sobel(values, cv2.CV_32F, 0, 1) ** 2).sum(-1))


def _until(clip: Clip, blob: np.ndarray, index: int, share: float = 0.5) -> int:
    """Index of the last frame in which less than `share` of the blob differs from frame `index`."""
    look = clip.frames[index][:, blob].astype(np.int16)
    later = clip.frames[index:, :, blob].astype(np.int16)
    changed = (np.abs(later - look).max(1) > _STEP).mean(1) > share
    # A thing that passes in front hides it for a moment: only a change that lasts ends it.
    lasting = changed & np.r_[changed[1:], True] & np.r_[changed[2:], True, True][: len(changed)]
    return index + (int(np.argmax(lasting)) - 1 if lasting.any() else len(changed) - 1)


def _box(mask: np.ndarray, scale: float) -> BoxPx:
    """Box of a mask in real pixels, a working pixel wider on each side."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    x1, y1 = max(0, columns[0] - 1) / scale, max(0, rows[0] - 1) / scale
    x2, y2 = min(mask.shape[1], columns[-1] + 2) / scale, min(mask.shape[0], rows[-1] + 2) / scale
    return float(x1), float(y1), float(x2), float(y2)
