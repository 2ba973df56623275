"""Words for observations: a summary, then a line per region, span and medium."""

from __future__ import annotations

from collections.abc import Sequence

from tools_host.config import ToolsConfig
from tools_host.protocol import Media, Region, Span, ToolError


def error_text(error: ToolError) -> str:
    """`error CODE: message. hint`."""
    hint = f". {error.hint}" if error.hint else ""
    return f"error {error.code}: {error.message}{hint}"


def result_text(
    summary: str, regions: Sequence[Region], spans: Sequence[Span], media: Sequence[Media], config: ToolsConfig
) -> str:
    """Words a result.

    Args:
      summary: The tool's own line, may be empty.
      regions: New regions.
      spans: Stretches of time found.
      media: New media.
      config: Says whether boxes are printed, and how long the text may be.

    Returns:
      At most `max_lines` lines and `max_chars` characters; a last line says what was left out.
    """
    # Media come first after the summary: their pixels follow, so their ids must never be what is left out.
    lines = [media_line(medium) for medium in media]
    lines += [region_line(region, boxes=config.boxes_in_text) for region in regions]
    lines += [span_line(number, span) for number, span in enumerate(spans, 1)]
    if not lines and not summary:
        return "nothing found"
    lines = ([summary] if summary else []) + lines
    return _within_limits(lines, config.max_lines, config.max_chars)


def region_line(region: Region, *, boxes: bool) -> str:
    """`region 2 [120, 340, 260, 400] at 3.5 s: "HK3V9"`."""
    box = f" {list(region.bbox_2d)}" if boxes else ""
    time = "" if region.time_s is None else f" at {region.time_s:g} s"
    text = "" if region.text is None else f': "{region.text}"'
    return f"region {region.id}{box}{time}{text}"


def span_line(number: int, span: Span) -> str:
    """`span 1: 2.3-2.8 s`."""
    return f"span {number}: {span.start_s:g}-{span.end_s:g} s"


def media_line(medium: Media) -> str:
    """`media 2: crop of media 1 at 3.5 s`."""
    if medium.parent is None:
        return f"media {medium.id}: {medium.kind}"
    time = "" if medium.parent.time_s is None else f" at {medium.parent.time_s:g} s"
    return f"media {medium.id}: {medium.parent.kind} of media {medium.parent.media}{time}"


def _within_limits(lines: list[str], max_lines: int, max_chars: int) -> str:
    lines = [" ".join(line.split()) for line in lines]
    if len(lines) <= max_lines and sum(map(len, lines)) + len(lines) - 1 <= max_chars:
        return "\n".join(lines)
    note = "({} more lines left out)"
    kept: list[str] = []
    used = len(note) + 4
    for line in lines[: max_lines - 1]:
        if used + len(line) + 1 > max_chars:
            break
        kept.append(line)
        used += len(line) + 1
    if not kept:
        # Even the first line is too long: a part of it says more than nothing.
        kept = [lines[0][: max(0, max_chars - used - 4)] + "..."]
    left = len(lines) - len(kept)
    return "\n".join([*kept, note.format(left)] if left else kept)
