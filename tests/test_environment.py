"""The environment that the tests run in is the one that docs/environment.md asks for."""

import importlib.util

import cv2
import numpy as np


def test_tensorflow_is_absent() -> None:
    """`import scann` crashes as soon as tensorflow is installed."""
    assert importlib.util.find_spec("tensorflow") is None


def test_the_contrib_wheel_of_opencv_won() -> None:
    tracker = cv2.TrackerCSRT_create()
    frame = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    tracker.init(frame, (16, 16, 24, 24))
    found, box = tracker.update(frame)
    assert found and abs(box[0] - 16) <= 2
    assert cv2.TrackerKCF_create() is not None


def test_the_product_runs_without_torch() -> None:
    """In the product's own environment; the oracle environment has torch and skips this file."""
    import sys

    import pixelis_jax.cli  # noqa: F401

    assert "torch" not in sys.modules
