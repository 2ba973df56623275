"""The embedded back-ends, registered by `tool/name`; each is imported when a worker first needs it."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from tools_host.backend import backend

if TYPE_CHECKING:
    from tools_host.backends.base import Segmenter, TextReader, Tracker


def _version(distribution: str) -> str:
    return importlib.metadata.version(distribution)


_OPENCV = f"opencv-{_version('opencv-contrib-python-headless')}"


def rapidocr_weights(max_side: int = 448, min_score: float = 0.6) -> tuple[Path, ...]:
    """Detector and recogniser in RapidOCR's wheel; found without importing it, which takes a second."""
    spec = importlib.util.find_spec("rapidocr")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("rapidocr is not installed, so its weights cannot be read")
    models = Path(spec.origin).parent / "models"
    return models / "PP-OCRv6_det_small.onnx", models / "PP-OCRv6_rec_small.onnx"


@backend("segment", "grabcut", version=f"1+{_OPENCV}")
def load_grabcut(min_score: float = 0.4) -> Segmenter:
    """Colour statistics and GrabCut."""
    from tools_host.backends.grabcut import GrabCutSegmenter

    return GrabCutSegmenter(min_score)


@backend("track", "template", version=f"1+{_OPENCV}")
def load_template(max_difference: float = 36.0, max_hidden_s: float = 1.2) -> Tracker:
    """Masked template matching with motion prediction and re-detection."""
    from tools_host.backends.template import TemplateTracker

    return TemplateTracker(max_difference, max_hidden_s)


@backend("track", "kcf", version=f"1+{_OPENCV}")
def load_kcf() -> Tracker:
    """Kernelised correlation filters."""
    from tools_host.backends.opencv_trackers import OpenCvTracker

    return OpenCvTracker("TrackerKCF_create")


@backend("track", "csrt", version=f"1+{_OPENCV}")
def load_csrt() -> Tracker:
    """Discriminative correlation filter with channel and spatial reliability: slower, follows scale."""
    from tools_host.backends.opencv_trackers import OpenCvTracker

    return OpenCvTracker("TrackerCSRT_create")


@backend("ocr", "rapidocr", version=f"1+rapidocr-{_version('rapidocr')}", weights=rapidocr_weights)
@functools.cache
def load_rapidocr(max_side: int = 448, min_score: float = 0.6) -> TextReader:
    """PP-OCR on onnxruntime."""
    from tools_host.backends.rapid import RapidReader

    return RapidReader(max_side, min_score)


@backend("localize", "changes", version=f"1+{_OPENCV}+rapidocr-{_version('rapidocr')}", weights=rapidocr_weights)
def load_changes(max_side: int = 448, min_score: float = 0.6) -> TextReader:
    """Reader for what changes in a video: the models of `ocr/rapidocr`, loaded when a text is first asked for."""
    from tools_host.backends.base import LazyReader

    return LazyReader(lambda: load_rapidocr(max_side, min_score))
