"""TEMP: says when something happens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from tools_host.backends.base import TextReader
from tools_host.geometry import BoxPx, to_pixels
from tools_host.protocol import Box, Derived, Found, MediaView, RegionView, Span, ToolFailure, ToolOutput
from tools_host.schema import Seconds, tool

if TYPE_CHECKING:
    from tools_host.backends.changes import Clip, Event

KEY_FRAMES = 4
"""Most frames shown for one call."""


@tool(paper="TEMP", version="1", kinds=("video",))
def localize(
    media: MediaView,
    event: Literal["scene_change", "motion", "text", "appearance"],
    text: str | None = None,
    bbox_2d: Box | None = None,
    region: RegionView | None = None,
    start_s: Seconds | None = None,
    end_s: Seconds | None = None,
    *,
    backend: TextReader,
) -> ToolOutput:
    """Says when something happens in a video, with a frame of each time.

    Args:
      media: Video.
      event: scene_change (a cut), motion, text (a text can be read) or appearance (something comes into view).
      text: The text to look for, with event text.
      bbox_2d: Where to look; everywhere if left out.
      region: Where to look, in place of bbox_2d.
      start_s: Where to start; the beginning if left out.
      end_s: Where to stop; the end if left out.
    """
    from tools_host.backends import changes

    box = _where(media, bbox_2d, region)
    start, end = _when(media, start_s, end_s)
    clip = changes.Clip.of(media.frames(start, end), box)
    if event == "text":
        return _texts(media, clip, box, text, backend)
    if text is not None:
        raise ToolFailure("unknown_argument", f"text cannot be given with event {event}", "leave text out, or use event text")
    if event == "scene_change":
        return _output(changes.cuts(clip), box, "cut", at_end=True)
    if event == "motion":
        return _output(changes.motions(clip), box, "motion")
    events = changes.appearances(clip) or changes.presences(clip)
    return _output(events, box, "appearance", places=True)


def _where(media: MediaView, bbox_2d: Box | None, region: RegionView | None) -> BoxPx:
    if region is None:
        return to_pixels(bbox_2d or (0, 0, 1000, 1000), media.width, media.height)
    if bbox_2d is not None:
        raise ToolFailure("unknown_argument", "region already says where, so bbox_2d cannot be given too", "give one of them")
    if region.media.kind != "video" or (region.media.width, region.media.height) != (media.width, media.height):
        raise ToolFailure("no_such_region", "region lies in another medium", "give a region of the video, or bbox_2d")
    return region.box_px


def _when(media: MediaView, start_s: float | None, end_s: float | None) -> tuple[float, float]:
    times = media.frame_times()
    first, last = float(times[0]), float(times[-1])
    if first == last:
        raise ToolFailure("wrong_kind", "the video has a single frame, in which nothing happens", "use zoom, ocr or segment")
    start, begins = (first, "the first frame at") if start_s is None else (start_s, "start_s")
    end, ends = (last, "the last frame at") if end_s is None else (end_s, "end_s")
    if end <= start:
        raise ToolFailure("bad_time", f"{ends} {end} is not after {begins} {start}", "give an end_s after start_s")
    return start, end


def _output(
    events: list[Event],
    box: BoxPx,
    word: str,
    *,
    at_end: bool = False,
    places: bool = False,
    texts: tuple[str, ...] = (),
) -> ToolOutput:
    """Spans, key frames and, with `places`, a region an event; `at_end` shows the end of a span, not its middle."""
    if not events:
        return ToolOutput(summary=f"no {word} found", data={"count": 0})
    x, y = box[:2]
    shown = [e.end_s if at_end else (e.start_s + e.end_s) / 2 for e in events]
    regions = tuple(
        Found(
            box_px=(e.box_px[0] + x, e.box_px[1] + y, e.box_px[2] + x, e.box_px[3] + y),
            time_s=time,
            text=texts[index] if texts else None,
        )
        for index, (e, time) in enumerate(zip(events, shown, strict=True))
        if places and e.box_px is not None
    )
    return ToolOutput(
        summary=f"{len(events)} {word}{'s' if len(events) > 1 else ''}",
        regions=regions,
        spans=tuple(Span(start_s=e.start_s, end_s=e.end_s) for e in events),
        derived=tuple(Derived(kind="frame", time_s=time) for time in shown[:KEY_FRAMES]),
        data={"count": len(events)} | ({"texts": list(texts)} if texts else {}),
    )


def _texts(media: MediaView, clip: Clip, box: BoxPx, wanted: str | None, reader: TextReader) -> ToolOutput:
    """When text can be read. Only the first frame and what appears later are read, for reading is what takes time."""
    from tools_host.backends import changes

    x, y = box[:2]
    found: list[tuple[changes.Event, str]] = []
    for line in reader.read(media.image(float(clip.times[0]))[y : box[3], x : box[2]]):
        event = changes.Event(float(clip.times[0]), changes.standing(clip, line.box_px), line.box_px)
        found.append((event, line.text))
    for event in changes.appearances(clip, in_place=True):
        assert event.box_px is not None
        margin = 0.35 * (event.box_px[3] - event.box_px[1])
        x1, y1 = max(x, int(x + event.box_px[0] - margin)), max(y, int(y + event.box_px[1] - margin))
        x2, y2 = min(box[2], int(x + event.box_px[2] + margin)), min(box[3], int(y + event.box_px[3] + margin))
        for line in reader.read(media.image((event.start_s + event.end_s) / 2)[y1:y2, x1:x2]):
            place = (line.box_px[0] + x1 - x, line.box_px[1] + y1 - y, line.box_px[2] + x1 - x, line.box_px[3] + y1 - y)
            found.append((changes.Event(event.start_s, event.end_s, place), line.text))
    kept = [(event, text) for event, text in found if wanted is None or _plain(wanted) in _plain(text)]
    kept.sort(key=lambda pair: (pair[0].start_s, pair[0].box_px or ()))
    return _output([event for event, _ in kept], box, "text", places=True, texts=tuple(text for _, text in kept))


def _plain(text: str) -> str:
    return "".join(text.split()).casefold()
