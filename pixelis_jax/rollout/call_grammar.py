"""Keeps a call to its grammar: llguidance (https://github.com/guidance-ai/llguidance) says on the host which tokens may follow.

From the token that opens a call, a turn has to be a call that fits the JSON schema of one of the tools, in Qwen's layout, then
the tokens that close the call and the turn. Text before it is free.
"""

from __future__ import annotations

import importlib
import itertools
import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from pixelis_jax.trajectory.grammar import CALL_CLOSE, END_OF_TURN

if TYPE_CHECKING:
    from pixelis_jax.encoding import TextTokenizer

# A rule for each set of arguments that are already written: more arguments are taken in the schema's order alone.
MOST_UNORDERED = 8

# What `json.dumps` writes and released checkpoints were trained on.
_LAYOUT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
# A number without bounds may be written as 1e999, which is none once it is read; with bounds it is written without an exponent.
_BOUNDS = {"minimum": -(10**15), "maximum": 10**15}


class GrammarError(RuntimeError):
    """A call cannot be kept to its grammar."""


def require() -> Any:
    """Returns llguidance.

    Raises:
      GrammarError: It is not installed.
    """
    try:
        return importlib.import_module("llguidance")
    except ImportError:
        raise GrammarError("calls can be kept to a grammar only with llguidance: pip install 'pixelis-jax[grammar]'") from None


class CallGrammar:
    """What a turn may hold from the token that opens a call to its end. Made once, for all slots."""

    def __init__(self, tokenizer: TextTokenizer, call_schema: Mapping[str, Any]):
        """Compiles the grammar.

        Args:
          tokenizer: Of the policy.
          call_schema: JSON schema of a whole call (`ToolsConfig.call_schema`). `name` comes first, arguments in any order.

        Raises:
          GrammarError: llguidance is not installed, or does not take the schema.
          ValueError: The vocabulary lacks the token that closes a call or a turn.
        """
        llguidance = require()
        lark = "\n".join(_rules(call_schema, tokenizer.id(CALL_CLOSE), tokenizer.id(END_OF_TURN)))
        vocabulary = llguidance.LLTokenizer(llguidance.TokenizerWrapper(_Vocabulary(tokenizer)))
        self._matcher = llguidance.LLMatcher(vocabulary, llguidance.LLMatcher.grammar_from_lark(lark), log_level=0)
        _check(self._matcher)

    def begin(self) -> CallMasks:
        """Opens a call."""
        return CallMasks(self._matcher.deep_copy())


class CallMasks:
    """One call under way."""

    def __init__(self, matcher: Any):
        self._matcher = matcher

    def allowed(self) -> np.ndarray:
        """Tokens that may follow, a bit each, lowest bit first: uint32 `[ceil(V / 32)]`, V of the tokenizer.

        Raises:
          GrammarError: The grammar has grown beyond the limits of llguidance.
        """
        words = np.frombuffer(self._matcher.compute_bitmask(), "<u4")
        _check(self._matcher)
        return words

    def take(self, token: int) -> None:
        """Goes on behind a token.

        Raises:
          GrammarError: It may not stand there.
        """
        self._matcher.consume_token(token)
        _check(self._matcher)


class _Vocabulary:
    """A tokenizer as llguidance asks for it. Markup counts as special, so that it cannot stand inside a JSON string."""

    def __init__(self, tokenizer: TextTokenizer):
        self.eos_token_id, self.bos_token_id = tokenizer.id(END_OF_TURN), None
        self.tokens, self.special_token_ids = tokenizer.token_bytes, tokenizer.added_ids
        self._encode = tokenizer.encode

    def __call__(self, text: str | bytes) -> list[int]:
        return self._encode(text if isinstance(text, str) else text.decode())


def _rules(call_schema: Mapping[str, Any], close: int, end: int) -> Iterator[str]:
    """The grammar in llguidance's Lark dialect; JSON is written in one layout, so that little is left to choose in it."""
    calls = [call["properties"] for call in call_schema["anyOf"]]
    # Else llguidance writes text without an alternative in tokens of its own choice, which a policy may not have been trained on.
    yield '%llguidance {"no_forcing": true}'
    yield f'start: "\\n" call "\\n" <[{close}]> <[{end}]>'
    yield "call: " + " | ".join(f"call_{index}" for index in range(len(calls)))
    for index, call in enumerate(calls):
        opening = json.dumps(f'{{"name": {json.dumps(call["name"]["const"])}, "arguments": ')
        yield f'call_{index}: {opening} arguments_{index} "}}"'
        yield from _object_rules(f"arguments_{index}", call["arguments"])


def _object_rules(rule: str, schema: Mapping[str, Any]) -> Iterator[str]:
    """An object with its fields in any order, none of them twice."""
    fields, required = list(schema["properties"]), set(schema["required"])
    if len(fields) > MOST_UNORDERED:
        yield f"{rule}: {_json(schema)}"
        return
    for index, name in enumerate(fields):
        yield f"{rule}_field_{index}: {json.dumps(json.dumps(name) + ': ')} {_json(schema['properties'][name])}"

    def written(done: frozenset[int]) -> str:
        return f"{rule}_after" + "".join(f"_{index}" for index in sorted(done))

    yield f'{rule}: "{{" {written(frozenset())}'
    every = range(len(fields))
    for done in map(
        frozenset, itertools.chain.from_iterable(itertools.combinations(every, count) for count in range(len(fields) + 1))
    ):
        comma = '", " ' if done else ""
        rest = [f"{comma}{rule}_field_{index} {written(done | {index})}" for index in every if index not in done]
        if required <= {fields[index] for index in done}:
            rest.append('"}"')
        yield f"{written(done)}: " + " | ".join(rest)


def _json(schema: Mapping[str, Any]) -> str:
    return "%json " + json.dumps(_bounded(schema) | {"x-guidance": _LAYOUT})


def _bounded(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_bounded(item) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    bounds = _BOUNDS if schema.get("type") == "number" else {}
    return bounds | {key: _bounded(value) for key, value in schema.items()}


def _check(matcher: Any) -> None:
    if matcher.is_error():
        raise GrammarError(f"llguidance: {' '.join(matcher.get_error().split())}")
