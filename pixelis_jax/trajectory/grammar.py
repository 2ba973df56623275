"""Reads one turn of the policy and gives each of its tokens a role.

A turn is text and at most one `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`. Roles,
`docs/architecture.md`:

- *operation*: the tool's name inside its quotes;
- *argument*: keys (inside their quotes) and scalar values of the arguments object; strings without their quotes. All
  that stands in the tags of a call that does not parse is argument too, since the policy chose it;
- *answer*: the text inside `<answer>...</answer>` of a turn without a call, else the whole turn;
- *thought*: all other text;
- *format*: tags, JSON punctuation, the words `name` and `arguments`, white space around the parts, and end-of-turn
  tokens.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pixelis_jax.trajectory.codec import is_text, unwritable
from pixelis_jax.trajectory.types import Role
from tools_host.protocol import ToolCall, ToolError

CALL_OPEN, CALL_CLOSE = "<tool_call>", "</tool_call>"
ANSWER_OPEN, ANSWER_CLOSE = "<answer>", "</answer>"
END_OF_TURN = "<|im_end|>"
END_TOKENS = (END_OF_TURN, "<|endoftext|>")

CALL_HINT = 'write one <tool_call>{"name": "...", "arguments": {...}}</tool_call>'

_JSON_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\]:,]|[^\s{}\[\]:,"]+', re.DOTALL)
_FIELDS = {"name", "arguments"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class RoleSpan:
    """Characters `[start, end)` of a turn that have one role; what no span covers is format."""

    start: int
    end: int
    role: Role


@dataclasses.dataclass(frozen=True, kw_only=True)
class Turn:
    """A parsed turn. Exactly one of `call`, `answer` and `error` is set.

    Attributes:
      thought: Text outside the call or the answer, stripped; its parts joined by a newline.
      call: The call, if there is one and it parses.
      answer: The answer, if there is no call.
      error: Why the call is not run.
      spans: Roles of the turn's characters, in order, not overlapping.
    """

    thought: str
    call: ToolCall | None
    answer: str | None
    error: ToolError | None
    spans: tuple[RoleSpan, ...]


def parse_turn(raw: str) -> Turn:
    """Parses a turn; end-of-turn tokens at its end are allowed. Never raises: a bad call becomes `Turn.error`."""
    end = len(raw)
    while tail := next((token for token in END_TOKENS if raw.endswith(token, 0, end)), None):
        end -= len(tail)
    start = raw.find(CALL_OPEN, 0, end)
    if start < 0:
        return _last_turn(raw, end)
    body = start + len(CALL_OPEN)
    value, inner_end, error = _read_call(raw, body, end)
    close = raw.find(CALL_CLOSE, inner_end, end)
    after = end if close < 0 else close + len(CALL_CLOSE)
    inside_end = end if close < 0 else close
    if raw.find(CALL_OPEN, after, end) >= 0:
        error = ToolError(code="too_many_calls", message="a turn may hold one call; none was run", hint=CALL_HINT)
    spans = [*_text_spans(raw, 0, start, Role.THOUGHT)]
    if error is None:
        spans += _call_spans(raw, body, inner_end)
    else:
        spans += _text_spans(raw, body, inside_end, Role.ARGUMENT)
    spans += _text_spans(raw, after, end, Role.THOUGHT)
    call = None if error is not None else ToolCall(name=value["name"], arguments=value["arguments"])
    return Turn(thought=_joined(raw, spans, Role.THOUGHT), call=call, answer=None, error=error, spans=tuple(spans))


def roles_of(ids: Sequence[int] | np.ndarray, token_bytes: Mapping[int, bytes] | Sequence[bytes]) -> np.ndarray:
    """Roles of the tokens of one turn.

    Args:
      ids: Token ids `[T]` of the turn, with or without its end-of-turn token.
      token_bytes: The bytes that each id stands for; for a special token, its literal text.

    Returns:
      int8 `[T]`: for each token, the role of its first byte that is not format; `Role.FORMAT` if it has none.
    """
    pieces = [token_bytes[int(token)] for token in ids]
    # Surrogate escapes keep a character that was cut off in the middle apart from all text, and restore its bytes
    # exactly.
    raw = b"".join(pieces).decode("utf-8", "surrogateescape")
    offsets = np.cumsum([0, *(len(char.encode("utf-8", "surrogateescape")) for char in raw)])
    byte_roles = np.full(int(offsets[-1]), Role.FORMAT, np.int8)
    for span in parse_turn(raw).spans:
        byte_roles[offsets[span.start] : offsets[span.end]] = span.role
    sizes = np.array([len(piece) for piece in pieces], np.int64)
    ends = np.cumsum(sizes)
    # One more, which is format, stands behind all bytes: for tokens behind which nothing else does.
    byte_roles = np.append(byte_roles, np.int8(Role.FORMAT))
    decided = np.append(np.flatnonzero(byte_roles != Role.FORMAT), len(byte_roles) - 1)
    first = decided[np.searchsorted(decided, ends - sizes)]
    return np.where(first < ends, byte_roles[first], np.int8(Role.FORMAT))


def format_call(call: ToolCall, *, compact: bool = False) -> str:
    """Writes a call as the policy should write it: Qwen's layout, or without any optional white space."""
    value = {"name": call.name, "arguments": dict(call.arguments)}
    if compact:
        return CALL_OPEN + json.dumps(value, ensure_ascii=False, separators=(",", ":")) + CALL_CLOSE
    return f"{CALL_OPEN}\n{json.dumps(value, ensure_ascii=False)}\n{CALL_CLOSE}"


def _last_turn(raw: str, end: int) -> Turn:
    close = raw.rfind(ANSWER_CLOSE, 0, end)
    open_ = raw.rfind(ANSWER_OPEN, 0, close) if close >= 0 else -1
    if open_ < 0:
        spans = _text_spans(raw, 0, end, Role.ANSWER)
        return Turn(thought="", call=None, answer=raw[:end].strip(), error=None, spans=tuple(spans))
    inside = open_ + len(ANSWER_OPEN)
    spans = [
        *_text_spans(raw, 0, open_, Role.THOUGHT),
        *_text_spans(raw, inside, close, Role.ANSWER),
        *_text_spans(raw, close + len(ANSWER_CLOSE), end, Role.THOUGHT),
    ]
    thought = _joined(raw, spans, Role.THOUGHT)
    return Turn(thought=thought, call=None, answer=raw[inside:close].strip(), error=None, spans=tuple(spans))


def _text_spans(raw: str, start: int, end: int, role: Role) -> list[RoleSpan]:
    """At most one span: the stretch without the white space around it."""
    text = raw[start:end]
    stripped = text.strip()
    if not stripped:
        return []
    begin = start + len(text) - len(text.lstrip())
    return [RoleSpan(start=begin, end=begin + len(stripped), role=role)]


def _joined(raw: str, spans: Sequence[RoleSpan], role: Role) -> str:
    return "\n".join(raw[span.start : span.end] for span in spans if span.role == role)


def _read_call(raw: str, body: int, end: int) -> tuple[dict[str, Any], int, ToolError | None]:
    """The call's object, where it ends, and what is wrong with it."""
    text = raw[:end]
    start = body + len(text[body:]) - len(text[body:].lstrip())
    try:
        value, stop = _DECODER.raw_decode(text, start)
    except (ValueError, RecursionError) as error:
        return {}, body, _bad_json(f"the call is not valid JSON: {getattr(error, 'msg', error)}")
    problem = _call_problem(value)
    # `\ud800` stands for nothing that a trace could hold. Half of a character that `roles_of` brings is no fault of the call.
    if problem is None and is_text(text[start:stop]):
        problem = unwritable(value)
    rest = text[stop:].lstrip()
    if problem is None and not rest.startswith(CALL_CLOSE):
        problem = f"text between the call's object and {CALL_CLOSE}" if CALL_CLOSE in rest else "the call is not closed"
    return (value, stop, None) if problem is None else ({}, stop, _bad_json(problem))


def _call_problem(value: Any) -> str | None:
    if not isinstance(value, dict):
        return "a call is a JSON object"
    if unknown := sorted(set(value) - _FIELDS):
        return f"unknown field {unknown[0]!r} in a call"
    if missing := sorted(_FIELDS - set(value)):
        return f"a call needs the field {missing[0]!r}"
    if not isinstance(value["name"], str):
        return "the field 'name' is a string"
    return None if isinstance(value["arguments"], dict) else "the field 'arguments' is an object"


def _bad_json(message: str) -> ToolError:
    return ToolError(code="bad_json", message=message, hint=CALL_HINT)


def _call_spans(raw: str, start: int, end: int) -> list[RoleSpan]:
    """Spans of operation and arguments in a call that parsed."""
    spans, depth, field = [], 0, ""
    tokens = list(_JSON_TOKEN.finditer(raw, start, end))
    for token, following in zip(tokens, [*tokens[1:], None], strict=True):
        text = token.group()
        if text in "{[":
            depth += 1
        elif text in "}]":
            depth -= 1
        elif text not in ":,":
            if depth == 1 and following is not None and following.group() == ":":
                field = json.loads(text)
            else:
                role = Role.OPERATION if depth == 1 and field == "name" else Role.ARGUMENT
                quote = text.startswith('"')
                spans.append(RoleSpan(start=token.start() + quote, end=token.end() - quote, role=role))
    return [span for span in spans if span.end > span.start]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key stands twice")
    return result


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is not a finite number")
    return value


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_float=_finite, parse_constant=_finite)
