"""Segments one object in a box with colour statistics and GrabCut (Rother, Kolmogorov and Blake, SIGGRAPH 2004).

The box only has to be roughly right: the object's colours are those that are more common in the middle of the box than
around it, so that an object that sticks out of its box, or a twin near by, does not spoil the background model.
"""

from __future__ import annotations

import dataclasses
import math

import cv2
import numpy as np
from scipy import ndimage

_BINS = (24, 32, 32)
"""Bins of the histogram along L, a and b; the last two are finer because natural pictures use little of their range."""

_MARGIN = 0.3
"""How far the region of interest reaches beyond the box, as a share of its longer side."""

_WORK_SIDE = 112
"""Longest side that GrabCut sees, in pixels: its graph cut takes 10 ms at 112 and 1.5 s at 512."""


class GrabCutSegmenter:
    """Back-end `segment/grabcut`.

    Args:
      min_score: Quality, 0..1, under which the place counts as empty.
    """

    version = "1"
    weights_sha256: str | None = None

    def __init__(self, min_score: float = 0.4) -> None:
        self.min_score = min_score

    def segment(self, image: np.ndarray, box_px: tuple[float, float, float, float]) -> tuple[np.ndarray, float] | None:
        """Finds the object in a box.

        Args:
          image: RGB uint8 `[H, W, 3]`.
          box_px: x1, y1, x2, y2 in pixels, exclusive ends.

        Returns:
          Mask `[H, W]` bool and score in 0..1, or None where nothing stands out from its surround.
        """
        view = _View.around(image, box_px)
        lab = cv2.cvtColor(cv2.GaussianBlur(view.pixels, (3, 3), 0.7), cv2.COLOR_RGB2LAB)
        posterior = _foreground_posterior(lab, view.box)
        trimap = _trimap(posterior, view.box)
        small, score = None, self.min_score
        for labels in (_grab_cut(view.pixels, trimap), trimap):  # the cut may swallow a thin or a low-contrast object
            part = _object_component((labels & 1).astype(bool), posterior, view.box)
            quality = 0.0 if part is None else _quality(lab, part)
            if quality > score:
                small, score = part, quality
        if small is None:
            return None
        mask = np.zeros(image.shape[:2], bool)
        x1, y1, x2, y2 = view.roi
        mask[y1:y2, x1:x2] = _refine(image[y1:y2, x1:x2], small)
        return (mask, score) if mask.any() else None


@dataclasses.dataclass(frozen=True)
class _View:
    """A working copy of the box and its surround: `roi` in image pixels, `box` in working pixels."""

    pixels: np.ndarray
    roi: tuple[int, int, int, int]
    box: tuple[int, int, int, int]

    @classmethod
    def around(cls, image: np.ndarray, box_px: tuple[float, float, float, float]) -> _View:
        height, width = image.shape[:2]
        x1, y1, x2, y2 = box_px
        margin = max(4.0, _MARGIN * max(x2 - x1, y2 - y1))
        roi = (
            max(0, int(x1 - margin)),
            max(0, int(y1 - margin)),
            min(width, int(np.ceil(x2 + margin))),
            min(height, int(np.ceil(y2 + margin))),
        )
        pixels = image[roi[1] : roi[3], roi[0] : roi[2]]
        scale = min(1.0, _WORK_SIDE / max(pixels.shape[:2]))
        if scale < 1:
            # No side becomes less than a pixel, however thin the picture is.
            fy, fx = (max(scale, 1 / side) for side in pixels.shape[:2])
            pixels = cv2.resize(pixels, None, fx=fx, fy=fy, interpolation=cv2.INTER_AREA)
        box = [round(scale * v) for v in (x1 - roi[0], y1 - roi[1], x2 - roi[0], y2 - roi[1])]
        box[2], box[3] = max(box[2], box[0] + 1), max(box[3], box[1] + 1)
        return cls(np.ascontiguousarray(pixels), roi, (box[0], box[1], box[2], box[3]))


def _bins(lab: np.ndarray) -> np.ndarray:
    """Index of each pixel's Lab bin, int64 `[H, W]`."""
    level = lab.astype(np.int64) * _BINS // 256
    return (level[..., 0] * _BINS[1] + level[..., 1]) * _BINS[2] + level[..., 2]


def _histogram(bins: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted, smoothed and normalised colour histogram, one value a bin."""
    counts = np.bincount(bins.ravel(), weights.ravel(), math.prod(_BINS)).reshape(_BINS)
    counts = ndimage.gaussian_filter(counts.astype(np.float32), 0.8, mode="constant", truncate=2.0)
    return counts.ravel() / max(counts.sum(), 1e-9)


def _foreground_posterior(lab: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
    """P(object | colour) `[H, W]`: how much commoner a pixel's colour is in the middle of the box than around it."""
    height, width = lab.shape[:2]
    x1, y1, x2, y2 = box
    ys, xs = np.mgrid[:height, :width] + 0.5
    u = (xs - (x1 + x2) / 2) / (0.35 * (x2 - x1))
    v = (ys - (y1 + y2) / 2) / (0.35 * (y2 - y1))
    inside = (xs > x1) & (xs < x2) & (ys > y1) & (ys < y2)
    outside = ~inside
    if outside.sum() < 0.1 * outside.size:  # the box is the whole picture: its rim is the surround
        rim = max(1, round(0.05 * min(height, width)))
        outside = np.ones((height, width), bool)
        outside[rim:-rim, rim:-rim] = False
    bins = _bins(lab)
    middle = _histogram(bins, np.exp(-0.5 * (u * u + v * v)) * inside)
    around = _histogram(bins, outside.astype(float))
    return (middle / (middle + around + 1e-6))[bins]


def _trimap(posterior: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
    """GrabCut's starting labels `[H, W]`: the rim is surely background, the rest is probable either way."""
    x1, y1, x2, y2 = box
    grow_x, grow_y = round(0.15 * (x2 - x1)), round(0.15 * (y2 - y1))
    trimap = np.full(posterior.shape, cv2.GC_BGD, np.uint8)
    near = np.s_[max(0, y1 - grow_y) : y2 + grow_y, max(0, x1 - grow_x) : x2 + grow_x]
    smooth = cv2.GaussianBlur(posterior, (5, 5), 1.0)
    trimap[near] = np.where(smooth > _threshold(smooth[near]), cv2.GC_PR_FGD, cv2.GC_PR_BGD)[near]
    return trimap


def _threshold(posterior: np.ndarray) -> float:
    """Otsu's threshold, within the range in which a posterior says that it is more likely object than not."""
    level, _ = cv2.threshold((posterior * 255).astype(np.uint8), 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    return float(np.clip(level / 255, 0.55, 0.7))


def _grab_cut(pixels: np.ndarray, trimap: np.ndarray) -> np.ndarray:
    """GrabCut's labels `[H, W]` after two rounds; the seed makes the mixture's k-means repeatable."""
    labels = trimap.copy()
    if min(int((labels & 1).sum()), int((~labels & 1).sum())) >= 10:  # enough pixels for two mixtures of five Gaussians
        cv2.setRNGSeed(0)
        cv2.grabCut(pixels, labels, (0, 0, 0, 0), np.zeros((1, 65)), np.zeros((1, 65)), 2, cv2.GC_INIT_WITH_MASK)
    return labels


def _object_component(mask: np.ndarray, posterior: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray | None:
    """The connected part with the most evidence near the middle of the box, or None."""
    count, labels, stats, centroids = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    x1, y1, x2, y2 = box
    best, best_evidence = None, 0.0
    for index in range(1, count):
        u = (centroids[index, 0] + 0.5 - (x1 + x2) / 2) / (x2 - x1)
        v = (centroids[index, 1] + 0.5 - (y1 + y2) / 2) / (y2 - y1)
        evidence = float(posterior[labels == index].sum() * np.exp(-4 * (u * u + v * v)))
        if stats[index, cv2.CC_STAT_AREA] >= 6 and evidence > best_evidence:
            best, best_evidence = index, evidence
    return None if best is None else labels == best


def _quality(lab: np.ndarray, mask: np.ndarray) -> float:
    """How much a mask looks like an object, 0..1.

    The share of its colours that the band around it lacks, times `r / (r + 4)` for the ratio `r` of the gradient along
    its edge to the gradient inside it: on texture, edges also fill the inside (AUC 0.99 of `r` against empty places).
    """
    kernel = np.ones((3, 3), np.uint8)
    solid = mask.astype(np.uint8)
    grown, core = cv2.dilate(solid, kernel), cv2.erode(solid, kernel)
    core = core if core.sum() > 4 else solid
    band = cv2.dilate(grown, kernel, iterations=max(3, round(0.15 * math.sqrt(solid.sum())))) > cv2.dilate(grown, kernel)
    if not band.any():
        return 0.0
    bins = _bins(lab)
    inside, around = (_histogram(bins[part], np.ones(part.sum())) for part in (core > 0, band))
    values = lab.astype(np.float32)
    steps = cv2.Sobel(values, cv2.CV_32F, 1, 0) ** 2 + cv2.Sobel(values, cv2.CV_32F, 0, 1) ** 2
    gradient = np.sqrt(steps.sum(-1))
    ratio = np.median(cv2.dilate(gradient, kernel)[grown > cv2.erode(solid, kernel)]) / (np.median(gradient[core > 0]) + 4)
    return float((1 - np.minimum(inside, around).sum()) * ratio / (ratio + 4))


def _refine(pixels: np.ndarray, small: np.ndarray) -> np.ndarray:
    """Mask at full resolution: pixels near the edge, where colours blend, take the side of the nearer local mean."""
    height, width = pixels.shape[:2]
    scale = width / small.shape[1]
    mask = cv2.resize(small.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR) > 0.5
    reach = math.ceil(scale - 0.01)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    core = cv2.erode(mask.astype(np.uint8), kernel)
    rest = 1 - cv2.dilate(mask.astype(np.uint8), kernel)
    window = (4 * reach + 1, 4 * reach + 1)
    values = pixels.astype(np.float32)
    near_core, near_rest = _local_mean(values, core, window), _local_mean(values, rest, window)
    closer = ((values - near_core) ** 2).sum(-1) < ((values - near_rest) ** 2).sum(-1)
    edge = (core == 0) & (rest == 0)
    return np.where(edge, closer, mask)


def _local_mean(values: np.ndarray, weights: np.ndarray, window: tuple[int, int]) -> np.ndarray:
    """Mean of `values` `[H, W, 3]` over the weighted pixels of a box window; far from any the global mean."""
    weight = weights.astype(np.float32)
    total = cv2.boxFilter(weight, -1, window, normalize=False)[..., None]
    if not weights.any():
        return np.broadcast_to(values.mean((0, 1)), values.shape)
    summed = cv2.boxFilter(values * weight[..., None], -1, window, normalize=False)
    return np.where(total > 0, summed / np.maximum(total, 1), values[weights > 0].mean(0))
