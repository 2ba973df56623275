"""Backgrounds: photographs inside the scikit-image wheel, and procedural textures.

No part of a photograph is seen in two of train, val and test: each cuts from its own rectangle. `shift` has photographs
of its own.
"""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

import cv2
import numpy as np

from pixelis_jax.data.scenes.scene import Split

PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "camera.png")
TEXTURES = ("brick.png", "grass.png", "clouds", "gradient", "weave")
SHIFTED_PHOTOGRAPHS = ("rocket.jpg", "hubble_deep_field.jpg", "ihc.png", "retina.jpg", "coins.png", "moon.png")
SHIFTED_TEXTURES = ("gravel.png", "stripes", "spots")

# Part of each photograph: x1, y1, x2, y2 as shares of its sides.
_PARTS: dict[Split, tuple[float, float, float, float]] = {
    "train": (0.0, 0.0, 0.56, 1.0),
    "val": (0.56, 0.0, 1.0, 0.5),
    "test": (0.56, 0.5, 1.0, 1.0),
    "shift": (0.0, 0.0, 1.0, 1.0),
}


def background(rng: np.random.Generator, split: Split, size: int) -> np.ndarray:
    """A random background, RGB uint8 `[size, size, 3]`: two of three are photographs."""
    photographs, textures = _sources(split)
    names = photographs if rng.random() < 0.67 else textures
    return render(rng, split, str(rng.choice(names)), size)


def photographs(rng: np.random.Generator, split: Split, size: int, count: int) -> list[np.ndarray]:
    """`count` backgrounds from different photographs, each RGB uint8 `[size, size, 3]`."""
    names, _ = _sources(split)
    return [render(rng, split, names[position], size) for position in rng.permutation(len(names))[:count]]


def render(rng: np.random.Generator, split: Split, name: str, size: int) -> np.ndarray:
    """A random crop of the picture, or a fresh draw of the texture, called `name`: RGB uint8 `[size, size, 3]`."""
    picture = _crop(rng, _load(name, split), size) if "." in name else _texture(rng, name, size)
    if rng.random() < 0.5:
        picture = picture[:, ::-1]
    tint = rng.uniform(0.75, 1.1, 3) if name not in PHOTOGRAPHS[:4] else np.ones(3)
    # Half of the colour is taken out, so that cards stand out; shift keeps nearly all of it.
    keep = rng.uniform(0.7, 1.0) if split == "shift" else rng.uniform(0.3, 0.6)
    contrast = rng.uniform(0.6, 0.9)
    matrix = np.diag(tint) @ (keep * np.eye(3) + (1 - keep) * np.full((3, 3), 1 / 3)) * contrast
    shifted = np.hstack([matrix, np.full((3, 1), 255 * (1 - contrast) * rng.uniform(0.1, 0.7))])
    return np.ascontiguousarray(np.clip(cv2.transform(picture, shifted.astype(np.float32)), 0, 255), dtype=np.uint8)


def _sources(split: Split) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return (SHIFTED_PHOTOGRAPHS, SHIFTED_TEXTURES) if split == "shift" else (PHOTOGRAPHS, TEXTURES)


@functools.lru_cache(maxsize=64)
def _load(name: str, split: Split) -> np.ndarray:
    spec = importlib.util.find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(f"background {name}: install the package scikit-image")
    # Read as a file: importing skimage.data would pull in its download machinery.
    data = np.frombuffer((Path(spec.submodule_search_locations[0]) / "data" / name).read_bytes(), np.uint8)
    decoded = cv2.imdecode(data, cv2.IMREAD_COLOR)
    assert decoded is not None, f"background {name} cannot be decoded"
    picture = cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)
    height, width = picture.shape[:2]
    x1, y1, x2, y2 = _PARTS[split]
    return np.ascontiguousarray(picture[int(y1 * height) : int(y2 * height), int(x1 * width) : int(x2 * width)])


def _crop(rng: np.random.Generator, picture: np.ndarray, size: int) -> np.ndarray:
    height, width = picture.shape[:2]
    side = min(height, width) * rng.uniform(0.55, 1.0)
    x, y = rng.uniform(0, width - side), rng.uniform(0, height - side)
    scale = size / side
    matrix = np.array([[scale, 0, -x * scale], [0, scale, -y * scale]], np.float32)
    return cv2.warpAffine(picture, matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)


def _texture(rng: np.random.Generator, name: str, size: int) -> np.ndarray:
    low = rng.uniform(20, 120, 3).astype(np.float32)
    high = rng.uniform(110, 235, 3).astype(np.float32)
    y, x = np.mgrid[:size, :size].astype(np.float32) / size
    turn = np.float32(rng.uniform(0, 2 * np.pi))
    along = x * np.cos(turn) + y * np.sin(turn)
    across = y * np.cos(turn) - x * np.sin(turn)
    rate = np.float32(rng.uniform(20, 60))
    if name == "clouds":
        grains = rng.random((12, 12), np.float32) + 0.5 * cv2.resize(rng.random((5, 5), np.float32), (12, 12))
        level = cv2.resize(grains, (size, size), interpolation=cv2.INTER_CUBIC) / 1.5
    elif name == "gradient":
        level = (along - along.min()) / np.ptp(along)
    elif name == "weave":
        level = 0.5 + 0.25 * (np.sin(rate * along) + np.sin(rate * across))
    elif name == "stripes":
        level = (np.sin(rate * along) > 0).astype(np.float32) * 0.7 + 0.15
    elif name == "spots":
        level = ((np.sin(rate * along) * np.sin(rate * across)) > 0.3).astype(np.float32) * 0.8
    else:
        raise ValueError(f"no texture {name!r}")
    level = np.clip(level, 0, 1).astype(np.float32)[..., None]
    return (low + level * (high - low)).astype(np.uint8)
