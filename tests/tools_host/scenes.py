"""Hand-made pictures and clips with known truth for the tests of the six tools."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from tools_host.benchmark import background, paint, polygon, write_video

GREEN, RED, YELLOW, WHITE = (45, 160, 65), (215, 35, 40), (245, 215, 50), (248, 248, 248)
SIZE = 320


def photo(seed: int = 0, size: int = SIZE) -> np.ndarray:
    return background(np.random.default_rng(seed), size)


def write_picture(path: Path, image: np.ndarray) -> str:
    cv2.imwrite(str(path), np.ascontiguousarray(image[..., ::-1]))
    return str(path)


def card(image: np.ndarray, text: str, corner: tuple[int, int], scale: float = 1.0) -> tuple[int, int, int, int]:
    """Draws dark text on a light card in place; returns the card's box."""
    (width, height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 2)
    x, y = corner
    box = (x, y, x + width + 24, y + height + 24)
    cv2.rectangle(image, box[:2], box[2:], (250, 245, 225), -1)
    cv2.putText(image, text, (x + 12, y + height + 12), cv2.FONT_HERSHEY_SIMPLEX, scale, (40, 10, 90), 2, cv2.LINE_AA)
    return box


def moving_disc(path: Path) -> str:
    """Six seconds: a red disc rests at (60, 260) until 1.0 s, moves to (260, 60) until 4.0 s and stays."""
    scene = photo(3)
    for corner in ((60, 60), (160, 250), (270, 270)):
        paint(scene, polygon("circle", corner, 16, 0), YELLOW)
    frames = []
    for index in range(60):
        frame = scene.copy()
        along = min(max((index - 10) / 30, 0.0), 1.0)
        paint(frame, polygon("circle", (60 + 200 * along, 260 - 200 * along), 16, 0), RED)
        frames.append(frame)
    write_video(path, frames)
    return str(path)


def events(path: Path) -> str:
    """Six seconds with a cut at 3.0 s; a card `HB3Q` is in view from 1.0 to 2.0 s."""
    scenes = (photo(5), photo(8))
    frames = []
    for index in range(60):
        frame = scenes[index >= 30].copy()
        if 10 <= index < 20:
            card(frame, "HB3Q", (120, 40))
        frames.append(frame)
    write_video(path, frames)
    return str(path)
