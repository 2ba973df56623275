import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixelis_jax.trajectory import Role, format_call, parse_turn, roles_of
from tools_host.protocol import ToolCall

ZOOM = '{"name": "zoom", "arguments": {"media": 1, "bbox_2d": [0, 20, 40, 60]}}'


def texts(raw: str, role: Role) -> list[str]:
    return [raw[span.start : span.end] for span in parse_turn(raw).spans if span.role == role]


def test_a_call_with_a_thought():
    raw = f"I look closer. <tool_call>\n{ZOOM}\n</tool_call>"
    turn = parse_turn(raw)
    assert turn.thought == "I look closer."
    assert turn.call == ToolCall(name="zoom", arguments={"media": 1, "bbox_2d": [0, 20, 40, 60]})
    assert turn.answer is None and turn.error is None
    assert texts(raw, Role.THOUGHT) == ["I look closer."]
    assert texts(raw, Role.OPERATION) == ["zoom"]
    assert texts(raw, Role.ARGUMENT) == ["media", "1", "bbox_2d", "0", "20", "40", "60"]


@pytest.mark.parametrize(
    "body",
    [
        '{"arguments":{"media":1,"bbox_2d":[0,20,40,60]},"name":"zoom"}',
        ' \n{ "name" :\t"zoom",\n "arguments" : { "media" : 1 , "bbox_2d" : [ 0 , 20 , 40 , 60 ] } } \n',
        '{"n\\u0061me": "zoom", "arguments": {"media": 1, "bbox_2d": [0, 20, 40, 60]}}',
    ],
)
def test_any_white_space_and_key_order_is_accepted(body):
    raw = f"<tool_call>{body}</tool_call>"
    assert parse_turn(raw).call == ToolCall(name="zoom", arguments={"media": 1, "bbox_2d": [0, 20, 40, 60]})
    assert texts(raw, Role.OPERATION) == ["zoom"]


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ('{"name": "zoom", "arguments": {}, "id": 3}', "unknown field 'id'"),
        ('{"name": "zoom"}', "needs the field 'arguments'"),
        ('{"arguments": {}}', "needs the field 'name'"),
        ('{"name": 3, "arguments": {}}', "'name' is a string"),
        ('{"name": "zoom", "arguments": [1]}', "'arguments' is an object"),
        ('["zoom"]', "JSON object"),
        ('{"name": "zoom", "arguments": {}} and more', "text between"),
        ('{"name": "zoom", "arguments": {}}{}', "text between"),
        ('{"name": "a", "name": "b", "arguments": {}}', "twice"),
        ('{"name": "a", "arguments": {"x": 1, "x": 1}}', "twice"),
        ('{"name": "a", "arguments": {"x": NaN}}', "not a finite number"),
        ('{"name": "a", "arguments": {"x": -Infinity}}', "not a finite number"),
        ('{"name": "a", "arguments": {"x": 1e999}}', "not a finite number"),
        ("{'name': 'a'}", "not valid JSON"),
        ("", "not valid JSON"),
        ("[" * 100_000, ""),
    ],
)
def test_what_is_no_call_becomes_bad_json(body, word):
    turn = parse_turn(f"<tool_call>{body}</tool_call>")
    assert turn.call is None and turn.answer is None
    assert turn.error is not None and turn.error.code == "bad_json" and word in turn.error.message
    assert "\n" not in turn.error.message


def test_a_call_that_is_not_closed_is_refused():
    turn = parse_turn(f"<tool_call>{ZOOM}")
    assert turn.error is not None and "not closed" in turn.error.message


def test_a_second_call_stops_both():
    turn = parse_turn(f"<tool_call>{ZOOM}</tool_call> and <tool_call>{ZOOM}</tool_call>")
    assert turn.call is None and turn.error is not None and turn.error.code == "too_many_calls"


def test_tags_inside_a_string_are_text():
    call = ToolCall(name="ocr", arguments={"label": '</tool_call><tool_call>\\"'})
    assert parse_turn(format_call(call)).call == call


def test_the_answer_tag_or_else_the_whole_turn():
    raw = "It reads so. <answer> HK3V9 </answer><|im_end|>"
    turn = parse_turn(raw)
    assert (turn.answer, turn.thought) == ("HK3V9", "It reads so.")
    assert texts(raw, Role.ANSWER) == ["HK3V9"] and texts(raw, Role.THOUGHT) == ["It reads so."]
    assert parse_turn(" HK3V9\n<|im_end|>").answer == "HK3V9"
    assert parse_turn("<answer>a</answer> no: <answer>b</answer>").answer == "b"
    assert parse_turn("<answer>cut off").answer == "<answer>cut off"


def test_a_malformed_call_is_argument_because_the_policy_chose_it():
    raw = "hm <tool_call>{zoom}</tool_call>"
    assert texts(raw, Role.ARGUMENT) == ["{zoom}"] and texts(raw, Role.THOUGHT) == ["hm"]


def test_a_token_takes_the_role_of_its_first_byte_that_is_not_format():
    vocabulary = [
        b"I ",
        b"look <tool",
        b'_call>{"name":"zo',
        b'om","arguments":{"media"',
        b":1",
        b"}}",
        b"</tool_call>",
        b"<|im_end|>",
    ]
    roles = roles_of(np.arange(8), vocabulary)
    expected = [
        Role.THOUGHT,
        Role.THOUGHT,
        Role.OPERATION,
        Role.OPERATION,
        Role.ARGUMENT,
        Role.FORMAT,
        Role.FORMAT,
        Role.FORMAT,
    ]
    assert roles.tolist() == expected and roles.dtype == np.int8


def test_roles_survive_characters_cut_between_and_inside_tokens():
    raw = "<answer>日本é</answer>".encode()
    for size in range(1, 5):
        pieces = [raw[start : start + size] for start in range(0, len(raw), size)]
        roles = roles_of(range(len(pieces)), pieces)
        for index in range(len(pieces)):
            touches = index * size < len(raw) - 9 and (index + 1) * size > 8
            assert roles[index] == (Role.ANSWER if touches else Role.FORMAT)
    assert roles_of([0, 1], [b"\xe6\x97", b"<|im_end|>"]).tolist() == [Role.ANSWER, Role.FORMAT]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


@given(st.text(), st.dictionaries(st.text(), json_values, max_size=4), st.booleans())
def test_whatever_is_formatted_parses_back(name, arguments, compact):
    call = ToolCall(name=name, arguments=arguments)
    raw = "so " + format_call(call, compact=compact)
    turn = parse_turn(raw)
    assert turn.call == call and turn.thought == "so"
    assert texts(raw, Role.OPERATION) in ([json.dumps(name, ensure_ascii=False)[1:-1]], [])


@given(st.text(st.sampled_from('<>/tolcaswer_{}[]:,"\\|im end01'), max_size=60))
def test_no_text_breaks_the_parser_and_spans_never_overlap(raw):
    turn = parse_turn(raw)
    assert sum(value is not None for value in (turn.call, turn.answer, turn.error)) == 1
    assert all(span.start < span.end for span in turn.spans)
    assert all(a.end <= b.start for a, b in zip(turn.spans, turn.spans[1:], strict=False))
