"""Renders an episode for the policy: the one place where text and pixels become a token sequence.

Rollouts and supervised data share it, so a trajectory has the same ids whether it was written at once or turn by turn:
text is cut into segments at fixed places, and each segment is tokenised alone. Formats: Qwen3-VL's chat template, and a
compact one that spends few tokens on markup. Text that the policy did not write (questions, observations) is escaped,
so that it can neither end a turn nor stand for pixels.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np

from pixelis_jax.trajectory.errors import TrajectoryError
from pixelis_jax.trajectory.grammar import END_OF_TURN, roles_of
from pixelis_jax.trajectory.types import Role, Trajectory
from tools_host.protocol import Media, Observation

ToolsMode = Literal["schemas", "names", "none"]
Style = Literal["qwen3_vl", "compact"]
Encode = Callable[[str], Sequence[int]]
"""Text to ids; special tokens in the text must become single ids, and nothing may be added at the ends."""

_SYSTEM_HEAD = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
)
_SYSTEM_TAIL = (
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
    "<tool_call></tool_call> XML tags:\n<tool_call>\n"
    '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
)
_START = "<|im_start|>"
_MARKUP = re.compile(r"<(?=\||/?(?:tool_response|tool_call|tools|answer)>)")
_PLACEHOLDER = re.compile(r"<media (\d+)>")


class VisionTokens(Protocol):
    """The ids that stand for pixels, as `config.json` names them; a `Qwen3VLConfig` has them."""

    @property
    def image_token_id(self) -> int: ...

    @property
    def video_token_id(self) -> int: ...

    @property
    def vision_start_token_id(self) -> int: ...

    @property
    def vision_end_token_id(self) -> int: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextSegment:
    """Text of one role that the policy did not write."""

    text: str
    role: Role


@dataclasses.dataclass(frozen=True, kw_only=True)
class TurnSegment:
    """Text that the policy writes, end-of-turn token included; roles come from the grammar. `turn` counts from 0."""

    text: str
    turn: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionSegment:
    """Vision start, pads and vision end for one image or one frame pair.

    Attributes:
      media: Id of the medium.
      frame: Index of the frame pair; 0 for an image.
      kind: `image` or `video`; chooses the pad.
      grid: Patches (h, w); there is a pad for each merged block of them.
      role: Prompt or observation.
    """

    media: int
    frame: int
    kind: Literal["image", "video"]
    grid: tuple[int, int]
    role: Role


Segment = TextSegment | TurnSegment | VisionSegment


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Tokens:
    """A tokenised stretch.

    Attributes:
      ids: int32 `[T]`.
      roles: int8 `[T]`, values of `Role`.
      turns: int16 `[T]`, index of the turn that a token of the policy belongs to; -1 elsewhere.
      media_spans: int32 `[M, 4]`: start and end (exclusive) of a run of pads, media id, index of the frame pair.
    """

    ids: np.ndarray
    roles: np.ndarray
    turns: np.ndarray
    media_spans: np.ndarray


def escape(text: str) -> str:
    """Makes markup in foreign text harmless by a space after its `<`; all other text is unchanged."""
    return _MARKUP.sub("< ", text)


def render_prompt(
    question: str,
    media: Sequence[Media],
    *,
    tools: ToolsMode,
    schemas: Sequence[Mapping[str, Any]] = (),
    style: Style = "qwen3_vl",
) -> list[Segment]:
    """All that the policy reads before its first turn.

    Args:
      question: Text; `<media 1>` stands for a medium, and media that are not named are put before the text.
      media: Media of the question, with `shown` set.
      tools: `schemas` prints the JSON schemas, `names` the names alone, `none` nothing.
      schemas: One function schema a tool, with its `name` at the top or under `function`.
      style: `qwen3_vl` or `compact`.

    Raises:
      TrajectoryError: if the question names a medium that it does not have, or a medium has no `shown`.
    """
    by_id = {medium.id: medium for medium in media}
    named = [int(match) for match in _PLACEHOLDER.findall(question)]
    if unknown := [media_id for media_id in named if media_id not in by_id]:
        raise TrajectoryError(f"the question names <media {unknown[0]}>, but has {len(by_id)} media")
    system = _system(tools, schemas, style)
    parts = _Parts(Role.PROMPT)
    if style == "compact":
        parts.text(_START + (f"{system}\n" if system else ""))
    else:
        parts.text((f"{_START}system\n{system}{END_OF_TURN}\n" if system else "") + f"{_START}user\n")
    for medium in media:
        if medium.id not in named:
            parts.medium(medium, f"media {medium.id}: ")
            parts.text("\n")
    position = 0
    for match in _PLACEHOLDER.finditer(question):
        parts.text(escape(question[position : match.start()]))
        parts.medium(by_id[int(match[1])], f"media {match[1]}: ")
        position = match.end()
    parts.text(escape(question[position:]) + END_OF_TURN + _opening(style))
    return parts.segments()


def render_turn(raw: str, turn: int) -> list[Segment]:
    """The policy's turn number `turn` (from 0), with its end-of-turn token.

    Raises:
      TrajectoryError: if it holds another special token, which would stand for pixels or markup.
    """
    if "<|" in raw.removesuffix(END_OF_TURN):
        raise TrajectoryError(f"turn {turn} holds a special token: {raw[:80]!r}")
    return [TurnSegment(text=raw.removesuffix(END_OF_TURN) + END_OF_TURN, turn=turn)]


def render_observation(observation: Observation, media: Sequence[Media], *, style: Style = "qwen3_vl") -> list[Segment]:
    """What the policy reads after a call, up to where its next turn begins.

    A medium stands behind the line of the text that introduces it (`media 2: ...`), or on a line of its own at the end.

    Args:
      observation: The tool's answer.
      media: The episode's media; those in `observation.media` need `shown`.
      style: `qwen3_vl` or `compact`.
    """
    by_id = {medium.id: medium for medium in media}
    waiting = list(observation.media)
    parts = _Parts(Role.OBSERVATION)
    parts.text("<tool_response>" if style == "compact" else f"\n{_START}user\n<tool_response>\n")
    lines = escape(observation.text).split("\n") if observation.text else []
    for index, line in enumerate(lines):
        parts.text(line if index == 0 else "\n" + line)
        shown = next((media_id for media_id in waiting if line.startswith(f"media {media_id}:")), None)
        if shown is not None:
            waiting.remove(shown)
            parts.medium(by_id[shown], " ")
    for media_id in waiting:
        parts.medium(by_id[media_id], ("\n" if lines else "") + f"media {media_id}: ")
    parts.text("</tool_response>" if style == "compact" else f"\n</tool_response>{END_OF_TURN}{_opening(style)}")
    return parts.segments()


def render_trajectory(
    trajectory: Trajectory,
    *,
    tools: ToolsMode,
    schemas: Sequence[Mapping[str, Any]] = (),
    style: Style = "qwen3_vl",
) -> list[Segment]:
    """A whole episode: the same segments as its prompt, turns and observations rendered one by one."""
    roots = [medium for medium in trajectory.media if medium.parent is None]
    segments = render_prompt(trajectory.question, roots, tools=tools, schemas=schemas, style=style)
    for index, step in enumerate(trajectory.steps):
        segments += render_turn(step.raw, index)
        segments += render_observation(step.observation, trajectory.media, style=style)
    if trajectory.final is not None:
        segments += render_turn(trajectory.final.raw, len(trajectory.steps))
    return segments


def tokenize(
    segments: Iterable[Segment],
    encode: Encode,
    token_bytes: Mapping[int, bytes] | Sequence[bytes],
    vision: VisionTokens,
    merge_size: int = 2,
) -> Tokens:
    """Turns segments into ids, expanding pads; each segment is encoded alone.

    Args:
      segments: As rendered.
      encode: Text to ids, special tokens included, nothing added.
      token_bytes: Bytes of each id, see `roles_of`.
      vision: Ids of the vision tokens.
      merge_size: Patches that one pad stands for, a side.
    """
    ids: list[int] = []
    roles: list[int] = []
    turns: list[int] = []
    spans: list[tuple[int, int, int, int]] = []
    for segment in segments:
        if isinstance(segment, VisionSegment):
            count = segment.grid[0] * segment.grid[1] // merge_size**2
            pad = vision.image_token_id if segment.kind == "image" else vision.video_token_id
            spans.append((len(ids) + 1, len(ids) + 1 + count, segment.media, segment.frame))
            new = [vision.vision_start_token_id, *[pad] * count, vision.vision_end_token_id]
        else:
            new = list(encode(segment.text))
        if isinstance(segment, TurnSegment):
            roles += roles_of(new, token_bytes).tolist()
        else:
            roles += [int(segment.role)] * len(new)
        turns += [segment.turn if isinstance(segment, TurnSegment) else -1] * len(new)
        ids += new
    return Tokens(
        ids=np.asarray(ids, np.int32),
        roles=np.asarray(roles, np.int8),
        turns=np.asarray(turns, np.int16),
        media_spans=np.asarray(spans, np.int32).reshape(-1, 4),
    )


def _system(tools: ToolsMode, schemas: Sequence[Mapping[str, Any]], style: Style) -> str:
    if tools == "none":
        return ""
    if tools == "names":
        return "tools: " + " ".join(str(schema.get("function", schema)["name"]) for schema in schemas)
    if style == "compact":
        return "\n".join(json.dumps(schema, ensure_ascii=False) for schema in schemas)
    return _SYSTEM_HEAD + "".join("\n" + json.dumps(schema, ensure_ascii=False) for schema in schemas) + _SYSTEM_TAIL


def _opening(style: Style) -> str:
    """What stands between the end of a prompt or an observation and the policy's turn."""
    return "" if style == "compact" else f"\n{_START}assistant\n"


class _Parts:
    """Collects text of one role, and cuts it only where a medium stands."""

    def __init__(self, role: Role) -> None:
        self._role = role
        self._text = ""
        self._segments: list[Segment] = []

    def text(self, text: str) -> None:
        self._text += text

    def medium(self, medium: Media, label: str) -> None:
        if medium.shown is None:
            raise TrajectoryError(f"media {medium.id} cannot be rendered: `shown` is missing")
        frames, height, width = medium.shown.grid
        times = medium.shown.times_s
        if medium.kind == "video" and len(times) != frames:
            raise TrajectoryError(f"media {medium.id} shows {frames} frame pairs but has {len(times)} times")
        self.text(label)
        for frame in range(frames):
            if medium.kind == "video":
                self.text(f"<{times[frame]:.1f} seconds>")
            self._flush()
            self._segments.append(
                VisionSegment(media=medium.id, frame=frame, kind=medium.kind, grid=(height, width), role=self._role)
            )

    def segments(self) -> list[Segment]:
        self._flush()
        return self._segments

    def _flush(self) -> None:
        if self._text:
            self._segments.append(TextSegment(text=self._text, role=self._role))
        self._text = ""
