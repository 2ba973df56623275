"""Follows one thing by masked template matching around a predicted place, with coasting and re-detection.

Identical twins are what breaks appearance trackers, so the place is chosen by one cost: colour difference to the
template plus squared distance to where constant velocity would bring the thing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import cv2
import numpy as np

from tools_host.backends.base import BoxPx, Sighting
from tools_host.backends.grabcut import GrabCutSegmenter

_WORK_SIDE = 28
"""Longer side of the template in working pixels: a match takes under a millisecond."""

_PULL = 14.0
"""Colour levels (root mean square, 0..255) that a step of one object size away from the prediction is worth."""

_LEARN = 0.08
"""Share of the new look that enters the template after a clear match."""


class TemplateTracker:
    """Back-end `track/template`.

    Args:
      max_difference: Root mean square colour difference, 0..255, over which the thing counts as hidden.
      max_hidden_s: Time after which a hidden thing is given up, in seconds.
    """

    def __init__(self, max_difference: float = 36.0, max_hidden_s: float = 1.2) -> None:
        self.max_difference = max_difference
        self.max_hidden_s = max_hidden_s
        self._segmenter = GrabCutSegmenter()

    def follow(self, frames: Iterator[tuple[float, np.ndarray]], box_px: BoxPx) -> list[Sighting]:
        """See `Tracker.follow`. Ends at the last frame in which the thing was seen."""
        time_s, image = next(frames)
        target = _Target.seen(image, box_px, self._segmenter)
        sightings = [Sighting(time_s=time_s, box_px=target.box(), score=1.0)]
        seen, last_s = 1, time_s
        for time_s, image in frames:
            difference = target.step(image, self.max_difference, hidden=len(sightings) - seen)
            score = max(0.0, 1 - difference / (2 * self.max_difference))
            sightings.append(Sighting(time_s=time_s, box_px=target.box(), score=score))
            if difference <= self.max_difference:
                seen, last_s = len(sightings), time_s
            elif time_s - last_s > self.max_hidden_s:
                break
        return sightings[:seen]


@dataclasses.dataclass
class _Target:
    """The thing's look in working pixels, and its motion: `centre`, `size` and `velocity` in pixels of the frame."""

    centre: np.ndarray
    size: np.ndarray
    velocity: np.ndarray
    scale: float
    template: np.ndarray
    mask: np.ndarray

    @classmethod
    def seen(cls, image: np.ndarray, box_px: BoxPx, segmenter: GrabCutSegmenter) -> _Target:
        """Takes the look of the object in the box; of the whole box if no object stands out."""
        height, width = image.shape[:2]
        found = segmenter.segment(image, box_px)
        if found is None:
            x1, y1 = max(0, int(box_px[0])), max(0, int(box_px[1]))
            x2, y2 = max(x1 + 1, min(width, int(box_px[2]))), max(y1 + 1, min(height, int(box_px[3])))
            mask = np.ones((y2 - y1, x2 - x1), np.float32)
        else:
            ys, xs = np.nonzero(found[0])
            x1, y1, x2, y2 = int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1
            mask = found[0][y1:y2, x1:x2].astype(np.float32)
        scale = min(1.0, _WORK_SIDE / max(x2 - x1, y2 - y1))
        side = (max(3, round(scale * (x2 - x1))), max(3, round(scale * (y2 - y1))))
        template = cv2.resize(image[y1:y2, x1:x2], side, interpolation=cv2.INTER_AREA)
        mask = (cv2.resize(mask, side, interpolation=cv2.INTER_AREA) > 0.6).astype(np.float32)
        return cls(
            centre=np.array([(x1 + x2) / 2, (y1 + y2) / 2]),
            size=np.array([x2 - x1, y2 - y1], float),
            velocity=np.zeros(2),
            scale=scale,
            template=template.astype(np.float32),
            mask=mask if mask.any() else np.ones_like(mask),
        )

    def box(self) -> BoxPx:
        """Box of the thing in pixels of the frame."""
        (x1, y1), (x2, y2) = self.centre - self.size / 2, self.centre + self.size / 2
        return float(x1), float(y1), float(x2), float(y2)

    def step(self, image: np.ndarray, max_difference: float, hidden: int) -> float:
        """Moves to the thing's place in the next frame; returns the colour difference there.

        Where it is hidden the thing coasts, and the search widens with the number of frames since it was seen.
        """
        predicted = self.centre + self.velocity
        reach = 0.8 * self.size.max() + np.abs(self.velocity).max() + 6 + 0.5 * hidden * self.size.max()
        difference, place = self._match(image, predicted, reach, pull=_PULL / (1 + 0.5 * hidden))
        if difference > max_difference:
            self.centre = np.clip(predicted, 0, np.array(image.shape[1::-1]))
            return difference
        moved = (place - self.centre) / (1 if hidden == 0 else 2)  # after a gap the jump is spread over more than a frame
        trust = 0.5 if difference < 0.5 * max_difference else 0.2  # half covered: the match is drawn to the cover
        self.velocity = moved if not self.velocity.any() else (1 - trust) * self.velocity + trust * moved
        self.centre = place
        return difference

    def _match(self, image: np.ndarray, predicted: np.ndarray, reach: float, pull: float) -> tuple[float, np.ndarray]:
        """Best place within `reach` of the prediction: its colour difference and its centre."""
        height, width = self.template.shape[:2]
        low = np.floor((predicted - self.size / 2 - reach) * self.scale).astype(int)
        span = np.ceil((self.size + 2 * reach) * self.scale).astype(int) + 1
        shift = np.array([[self.scale, 0, -low[0]], [0, self.scale, -low[1]]])
        flags = cv2.INTER_AREA if self.scale == 1 else cv2.INTER_LINEAR
        window = cv2.warpAffine(
            _smooth(image, self.scale),
            shift,
            (max(int(span[0]), width), max(int(span[1]), height)),
            flags=flags,
            borderMode=cv2.BORDER_REPLICATE,
        ).astype(np.float32)
        weights = np.repeat(self.mask[..., None], 3, 2)
        squares = cv2.matchTemplate(window, self.template, cv2.TM_SQDIFF, mask=weights)
        difference = np.sqrt(np.maximum(squares, 0) / weights.sum())
        xs = (low[0] + np.arange(difference.shape[1]) + width / 2) / self.scale
        ys = (low[1] + np.arange(difference.shape[0]) + height / 2) / self.scale
        away = ((xs[None] - predicted[0]) ** 2 + (ys[:, None] - predicted[1]) ** 2) / self.size.max() ** 2
        row, column = np.unravel_index(np.argmin(difference + pull * away), difference.shape)
        best = float(difference[row, column])
        if best < 12:
            patch = window[row : row + height, column : column + width]
            self.template += _LEARN * (patch - self.template)
        return best, np.array([xs[column], ys[row]])


def _smooth(image: np.ndarray, scale: float) -> np.ndarray:
    """Takes away the detail that sampling at `scale` would alias."""
    return image if scale > 0.7 else cv2.blur(image, (round(1 / scale), round(1 / scale)))
