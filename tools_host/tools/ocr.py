"""OCR: reads text."""

from __future__ import annotations

from tools_host.backends.base import TextReader
from tools_host.geometry import to_pixels
from tools_host.protocol import Box, Found, MediaView, ToolOutput
from tools_host.schema import Seconds, tool
from tools_host.tools.zoom import nearest_time


@tool(paper="OCR", version="1")
def ocr(media: MediaView, bbox_2d: Box | None = None, time_s: Seconds | None = None, *, backend: TextReader) -> ToolOutput:
    """Reads text, one region a line.

    Args:
      media: Image or video to read.
      bbox_2d: Where to read; everywhere if left out.
      time_s: Frame of a video; the first if left out.
    """
    x1, y1, x2, y2 = to_pixels(bbox_2d or (0, 0, 1000, 1000), media.width, media.height)
    time = nearest_time(media, time_s)
    lines = backend.read(media.image(time)[y1:y2, x1:x2])
    regions = tuple(
        Found(
            box_px=(line.box_px[0] + x1, line.box_px[1] + y1, line.box_px[2] + x1, line.box_px[3] + y1),
            time_s=time,
            text=line.text,
            score=line.score,
        )
        for line in lines
    )
    return ToolOutput(
        summary="" if regions else "no text there",
        regions=regions,
        data={"text": "\n".join(line.text for line in lines)},
    )
