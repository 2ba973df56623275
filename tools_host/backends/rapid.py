"""Reads text with the PP-OCR models in RapidOCR's wheel, one thread, tuned for small crops."""

from __future__ import annotations

import itertools
from typing import Any

import cv2
import numpy as np
import rapidocr

from tools_host.backends.base import Line

_LINE_HEIGHT = 48
"""Height of the recogniser's input in pixels."""


class RapidReader:
    """Back-end `ocr/rapidocr`.

    Args:
      max_side: Longest side of the detector's input, in pixels; a multiple of 32.
      min_score: Mean probability of a line's characters under which the line is dropped.
    """

    def __init__(self, max_side: int = 448, min_score: float = 0.6) -> None:
        self.max_side = max_side
        self.min_score = min_score
        threads = {f"EngineConfig.onnxruntime.{kind}_op_num_threads": 1 for kind in ("intra", "inter")}
        # A recogniser input of any width: the default pads every line to 320 pixels, which takes 30 ms instead of 10.
        self._engine = rapidocr.RapidOCR(
            params={
                **threads,
                "Global.log_level": "error",
                "Global.use_preprocess_img": False,
                "Det.limit_type": "max",
                "Det.limit_side_len": max_side,
                "Rec.rec_img_shape": [3, _LINE_HEIGHT, _LINE_HEIGHT],
            }
        )

    def read(self, image: np.ndarray) -> tuple[Line, ...]:
        """Lines of text in reading order.

        Args:
          image: RGB uint8 `[H, W, 3]`.
        """
        if min(image.shape[:2]) < 4:
            return ()
        bgr = np.ascontiguousarray(image[..., ::-1])
        band = single_line(bgr)
        boxes = [band] if band is not None else self._detect(bgr)
        lines = self._recognise(bgr, boxes)
        if band is not None and not lines:
            lines = self._recognise(bgr, self._detect(bgr))
        return tuple(reading_order(lines))

    def _detect(self, bgr: np.ndarray) -> list[tuple[int, int, int, int]]:
        """Boxes of lines, in pixels of the image."""
        height, width = bgr.shape[:2]
        pad = max(4, round(0.1 * min(height, width)))
        padded = cv2.copyMakeBorder(bgr, pad, pad, pad, pad, cv2.BORDER_REPLICATE)
        scale = self.max_side / max(padded.shape[:2])
        scale = min(scale, max(1.0, min(3.0, 128 / min(padded.shape[:2]))))
        found = self._call(cv2.resize(padded, None, fx=scale, fy=scale, interpolation=_interpolation(scale)), detect=True)
        if found.boxes is None:
            return []
        boxes = []
        for corners in np.asarray(found.boxes) / scale - pad:
            (x1, y1), (x2, y2) = corners.min(0), corners.max(0)
            box = (max(0, int(x1)), max(0, int(y1)), min(width, int(np.ceil(x2))), min(height, int(np.ceil(y2))))
            if box[2] - box[0] >= 3 and box[3] - box[1] >= 3:
                boxes.append(box)
        return boxes

    def _recognise(self, bgr: np.ndarray, boxes: list[tuple[int, int, int, int]]) -> list[Line]:
        """Text of each box; boxes without any are left out."""
        lines = []
        for box in boxes:
            x1, y1, x2, y2 = box
            crop = bgr[y1:y2, x1:x2]
            scale = _LINE_HEIGHT / crop.shape[0]
            crop = cv2.resize(crop, None, fx=scale, fy=scale, interpolation=_interpolation(scale))
            crop = cv2.copyMakeBorder(crop, 0, 0, 8, 8, cv2.BORDER_REPLICATE)
            result = self._call(crop, detect=False)
            text = (result.txts[0] if result.txts else "").strip()
            if text and result.scores[0] >= self.min_score:
                lines.append(Line(box_px=box, text=text, score=float(result.scores[0])))
        return lines

    def _call(self, bgr: np.ndarray, *, detect: bool) -> Any:
        # Every flag on every call: the engine keeps what it was told last.
        return self._engine(
            bgr,
            use_det=detect,
            use_rec=not detect,
            use_cls=False,
            return_word_box=False,
            return_single_char_box=False,
            text_score=0.0,
            box_thresh=0.5,
            unclip_ratio=1.6,
        )


def _interpolation(scale: float) -> int:
    return cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA


def single_line(bgr: np.ndarray) -> tuple[int, int, int, int] | None:
    """Box of the text if the picture is one line on a plain ground, so that no detector is needed; else None."""
    gray = cv2.cvtColor(bgr, cv2.COLOR_BGR2GRAY)
    height, width = gray.shape
    rim = np.concatenate([gray[0], gray[-1], gray[:, 0], gray[:, -1]])
    ground = float(np.median(rim))
    if np.mean(np.abs(rim - ground) > 24) > 0.02:  # the rim crosses something: not a plain ground
        return None
    ink = np.abs(gray.astype(np.float32) - ground)
    ink = ink > max(32.0, 0.4 * float(ink.max()))
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    if rows.size < 6:
        return None
    runs = [list(run) for _, run in itertools.groupby(enumerate(rows), lambda pair: pair[1] - pair[0])]
    x1, x2 = int(columns[0]), int(columns[-1]) + 1
    y1, y2 = int(rows[0]), int(rows[-1]) + 1
    if len(runs) > 1 or not 1.0 <= (x2 - x1) / (y2 - y1) <= 12:
        return None
    margin = max(2, round(0.2 * (y2 - y1)))
    return max(0, x1 - margin), max(0, y1 - margin), min(width, x2 + margin), min(height, y2 + margin)


def reading_order(lines: list[Line]) -> list[Line]:
    """Top to bottom, and left to right for lines whose centres are within half a line height."""
    rows: list[list[Line]] = []
    for line in sorted(lines, key=lambda line: line.box_px[1] + line.box_px[3]):
        centre = (line.box_px[1] + line.box_px[3]) / 2
        last = rows[-1][-1].box_px if rows else None
        if last is not None and abs(centre - (last[1] + last[3]) / 2) < 0.5 * (last[3] - last[1]):
            rows[-1].append(line)
        else:
            rows.append([line])
    return [line for row in rows for line in sorted(row, key=lambda line: line.box_px[0])]
