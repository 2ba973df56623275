"""Checks a call's arguments. Numbers in range are rounded; nothing else is repaired or guessed."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tools_host.geometry import SCALE
from tools_host.protocol import Box, Media, Region, ToolFailure
from tools_host.schema import REPLACED_BY_REGION, Argument, ArgumentKind, Tool


@dataclasses.dataclass(frozen=True)
class MediaRef:
    """A checked media id, still to be replaced by a `MediaSpec`."""

    id: int


@dataclasses.dataclass(frozen=True)
class RegionRef:
    """A checked region id, still to be replaced by a `RegionSpec`."""

    id: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckedCall:
    """Checked arguments of a call, and the id of the medium that it is about: boxes and regions are relative to it."""

    tool: Tool
    arguments: Mapping[str, Any]
    medium: int | None


def check(tool: Tool, arguments: Mapping[str, Any], media: Sequence[Media], regions: Sequence[Region]) -> CheckedCall:
    """Checks what the model wrote against the tool's schema and the episode.

    Args:
      tool: The tool called.
      arguments: Parsed JSON values.
      media: The episode's media, ids counting from 1 in order.
      regions: The episode's regions, likewise.

    Returns:
      The arguments, with references for media and regions and with rounded numbers; a region that stands in for a box
      is resolved.

    Raises:
      ToolFailure: For the first thing that is wrong, with one of the argument codes of `ERROR_CODES`.
    """
    _check_names(tool, arguments)
    checked = {a.name: _CHECKS[a.kind](a, arguments[a.name]) for a in tool.arguments if a.name in arguments}
    for value in checked.values():
        _check_exists(value, media, regions)
    if tool.stands_in:
        checked = _resolve_region(checked, regions)
    _check_required(tool, checked)
    medium = _medium(checked, regions)
    if medium is not None:
        _check_medium(tool, checked, media[medium - 1])
    return CheckedCall(tool=tool, arguments=checked, medium=medium)


def _check_names(tool: Tool, arguments: Mapping[str, Any]) -> None:
    known = [argument.name for argument in tool.arguments]
    for name in arguments:
        if name not in known:
            nearest = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean {nearest[0]}?" if nearest else f"{tool.name} takes {', '.join(known)}"
            raise ToolFailure("unknown_argument", f"{tool.name} has no argument {name!r}", hint)


def _check_required(tool: Tool, checked: Mapping[str, Any]) -> None:
    missing = [a.name for a in tool.arguments if a.required and a.name not in checked]
    if missing:
        hint = f"{tool.name} needs {', '.join(a.name for a in tool.arguments if a.required)}"
        if tool.stands_in:
            hint += "; a region may stand in for media and bbox_2d"
        raise ToolFailure("missing_argument", f"{missing[0]} is missing", hint)


def _resolve_region(checked: dict[str, Any], regions: Sequence[Region]) -> dict[str, Any]:
    if "region" not in checked:
        return checked
    both = [name for name in ("media", "bbox_2d", "point_2d") if name in checked]
    if both:
        message = f"region already says where, so {both[0]} cannot be given too"
        raise ToolFailure("unknown_argument", message, f"give either region or {both[0]}")
    region = regions[checked["region"].id - 1]
    resolved = {name: value for name, value in checked.items() if name != "region"}
    resolved["media"] = MediaRef(region.media)
    resolved["bbox_2d"] = region.bbox_2d
    if region.time_s is not None and REPLACED_BY_REGION[2] not in resolved:
        resolved["time_s"] = region.time_s
    return resolved


def _medium(checked: Mapping[str, Any], regions: Sequence[Region]) -> int | None:
    for value in checked.values():
        if isinstance(value, MediaRef):
            return value.id
    for value in checked.values():
        if isinstance(value, RegionRef):
            return regions[value.id - 1].media
    return None


def _check_exists(value: Any, media: Sequence[Media], regions: Sequence[Region]) -> None:
    if isinstance(value, MediaRef) and not 1 <= value.id <= len(media):
        raise ToolFailure("no_such_media", f"media {value.id} does not exist; {_known('media', len(media))}")
    if isinstance(value, RegionRef) and not 1 <= value.id <= len(regions):
        raise ToolFailure("no_such_region", f"region {value.id} does not exist; {_known('region', len(regions))}")


def _known(noun: str, count: int) -> str:
    if count == 0:
        return f"there is no {noun} yet"
    if count == 1:
        return "there is only 1"
    return "there are 1 and 2" if count == 2 else f"there are 1 to {count}"


def _check_medium(tool: Tool, checked: dict[str, Any], medium: Media) -> None:
    if medium.kind not in tool.kinds:
        message = f"media {medium.id} is {_with_article(medium.kind)}"
        wanted = " or ".join(_with_article(kind) for kind in tool.kinds)
        raise ToolFailure("wrong_kind", message, f"{tool.name} needs {wanted}")
    times = {a.name: checked[a.name] for a in tool.arguments if a.kind == "seconds" and a.name in checked}
    for name, time_s in times.items():
        if medium.duration_s is None:
            raise ToolFailure("bad_time", f"media {medium.id} is an image and has no time", f"leave {name} out")
        if time_s > medium.duration_s:
            hint = f"media {medium.id} lasts from 0 to {medium.duration_s} s"
            raise ToolFailure("bad_time", f"{name} {time_s} is after the end", hint)


def _with_article(kind: str) -> str:
    return f"an {kind}" if kind[0] in "aeiou" else f"a {kind}"


# --- one check a kind of argument ---


def _number(name: str, value: Any, wanted: str) -> float:
    # In Python a bool is an int; in JSON it is not a number.
    if isinstance(value, bool) or not isinstance(value, int | float) or not _is_finite(value):
        raise ToolFailure("bad_type", f"{name} is {_shown(value)}", f"{name} must be {wanted}")
    return value


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer of more than 308 digits
        return False


def _shown(value: Any) -> str:
    try:
        text = json.dumps(value)
    except TypeError:
        text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _id(argument: Argument, value: Any) -> int:
    number = _number(argument.name, value, f"the number of a {argument.kind}, e.g. 1")
    if number != int(number):
        raise ToolFailure("bad_type", f"{argument.name} is {number}", f"{argument.name} must be a whole number")
    return int(number)


def _media(argument: Argument, value: Any) -> MediaRef:
    return MediaRef(_id(argument, value))


def _region(argument: Argument, value: Any) -> RegionRef:
    return RegionRef(_id(argument, value))


def _coordinates(argument: Argument, value: Any, form: str) -> tuple[int, ...]:
    name, count = argument.name, form.count(",") + 1
    hint = f"write {form} with numbers from 0 to {SCALE}"
    if not isinstance(value, list | tuple):
        raise ToolFailure("bad_type", f"{name} is {_shown(value)}", hint)
    for item in value:
        if isinstance(item, list | tuple):
            raise ToolFailure("bad_type", f"{name} is a list of lists", hint + ", one box a call")
        _number(f"a coordinate of {name}", item, "a number")
    if len(value) != count:
        raise ToolFailure("bad_box", f"{name} has {len(value)} numbers, not {count}", hint)
    for item in value:
        if not 0 <= item <= SCALE:
            raise ToolFailure("bad_box", f"{item} in {name} is outside 0 to {SCALE}", hint)
    return tuple(round(item) for item in value)


def _box(argument: Argument, value: Any) -> Box:
    x1, y1, x2, y2 = _coordinates(argument, value, "[x1, y1, x2, y2]")
    if x1 >= x2 or y1 >= y2:
        fault = "ends before it starts" if x1 > x2 or y1 > y2 else "is empty"
        hint = "write [x1, y1, x2, y2] with x1 < x2 and y1 < y2"
        raise ToolFailure("bad_box", f"{argument.name} {fault}", hint)
    return x1, y1, x2, y2


def _point(argument: Argument, value: Any) -> tuple[int, int]:
    x, y = _coordinates(argument, value, "[x, y]")
    return x, y


def _seconds(argument: Argument, value: Any) -> float:
    number = _number(argument.name, value, "a number of seconds")
    if number < 0:
        raise ToolFailure("bad_time", f"{argument.name} {number} is before the start", "times count from 0 s")
    return round(float(number), 2) + 0.0


def _text(argument: Argument, value: Any) -> str:
    if not isinstance(value, str):
        raise ToolFailure("bad_type", f"{argument.name} is {_shown(value)}", f"{argument.name} must be a text")
    return value


def _choice(argument: Argument, value: Any) -> str:
    if value not in argument.choices or not isinstance(value, str):
        hint = f"{argument.name} must be one of {', '.join(argument.choices)}"
        raise ToolFailure("bad_type", f"{argument.name} is {_shown(value)}", hint)
    return value


def _integer(argument: Argument, value: Any) -> int:
    return round(_number(argument.name, value, "a whole number"))


def _float(argument: Argument, value: Any) -> float:
    return float(_number(argument.name, value, "a number"))


def _boolean(argument: Argument, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ToolFailure("bad_type", f"{argument.name} is {_shown(value)}", f"{argument.name} must be true or false")
    return value


_CHECKS: Mapping[ArgumentKind, Callable[[Argument, Any], Any]] = {
    "media": _media,
    "region": _region,
    "box": _box,
    "point": _point,
    "seconds": _seconds,
    "text": _text,
    "choice": _choice,
    "integer": _integer,
    "number": _float,
    "boolean": _boolean,
}
