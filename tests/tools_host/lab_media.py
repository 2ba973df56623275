"""Clips for the tests."""

from pathlib import Path

import av
import numpy as np


def write_clip(path: Path, *, frames: int = 20, fps: int = 10, options: dict[str, str] | None = None) -> str:
    """An MP4 of 64 x 48 pixels whose frame i is grey of level 10 i."""
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "10", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(frames):
            pixels = np.full((48, 64, 3), 10 * index, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return str(path)
