"""What the tiny policy's tokenizer promises: short calls, whole coordinates, copied text by the character, nothing lost."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixelis_jax.data import tiny_tokenizer
from pixelis_jax.encoding import TextTokenizer
from pixelis_jax.trajectory import format_call
from tools_host.protocol import ToolCall

TEXTS = ["What does the sign say? Look at the red card: AB12 reads 4711.", "Zürich <answer>K9</answer>"]
TOKENIZER = TextTokenizer(tiny_tokenizer.build(tiny_tokenizer.corpus(TEXTS)))
BOX = [0, 20, 980, 1000]


def pieces(text: str) -> list[str]:
    return [TOKENIZER.decode([token]) for token in TOKENIZER.encode(text)]


@pytest.mark.parametrize(
    ("call", "values"),
    [
        (ToolCall(name="zoom", arguments={"media": 1, "bbox_2d": BOX}), ["zoom", "1", "0, ", "20, ", "980, ", "1000"]),
        (ToolCall(name="ocr", arguments={"media": 2, "bbox_2d": BOX}), ["ocr", "2", "0, ", "20, ", "980, ", "1000"]),
        (ToolCall(name="properties", arguments={"region": 1, "other": 2}), ["properties", "1", "2"]),
        (ToolCall(name="localize", arguments={"media": 1, "event": "motion"}), ["localize", "1", "motion"]),
        (ToolCall(name="ocr", arguments={"media": 1}), ["ocr", "1"]),
    ],
)
def test_the_fixed_text_of_a_call_takes_six_tokens_at_most(call, values):
    found = pieces(format_call(call))
    fixed = [piece for piece in found if piece not in values]
    assert [piece for piece in found if piece in values] == values
    assert len(fixed) <= 6, fixed


def test_a_further_argument_costs_one_token():
    call = ToolCall(name="track", arguments={"media": 1, "bbox_2d": BOX, "time_s": 2.5})
    values = ["track", "1", "0, ", "20, ", "980, ", "1000", "2", ".", "5"]
    assert len([piece for piece in pieces(format_call(call)) if piece not in values]) == 7


@pytest.mark.parametrize("value", range(0, 1001, tiny_tokenizer.COORDINATE_STEP))
def test_a_coordinate_is_one_token_wherever_it_stands(value):
    assert pieces(f"[{value}, {value}, {value}, {value}]")[1:-1] == [f"{value}, "] * 3 + [str(value)]


@given(st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789", min_size=1, max_size=12))
def test_what_is_copied_takes_a_token_a_character(code):
    assert pieces(code) == list(code)
    assert pieces(f"<answer>{code}</answer>") == ["<answer>", *code, "</answer>"]
    assert pieces(f'text "{code}"')[-len(code) - 1 : -1] == list(code)


@given(st.text())
def test_any_text_round_trips(text):
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


@given(st.lists(st.sampled_from([*tiny_tokenizer.SPECIAL_TOKENS, *tiny_tokenizer.MARKUP, "a", " b", "20, 40", "\n", "é"])))
def test_text_with_markup_round_trips_and_markup_is_one_token(parts):
    assert TOKENIZER.decode(TOKENIZER.encode("".join(parts))) == "".join(parts)
    for token in (*tiny_tokenizer.SPECIAL_TOKENS, *tiny_tokenizer.MARKUP):
        assert TOKENIZER.encode(token) == [TOKENIZER.id(token)]


def test_words_of_the_texts_are_tokens_and_their_numbers_are_not():
    assert pieces("What does the sign say") == ["What", " does", " the", " sign", " say"]
    assert pieces("4711") == list("4711") and pieces("AB12") == list("AB12")


def test_it_depends_on_the_multiset_of_texts_only():
    texts = ["one two", "three four", "three two"]
    first = tiny_tokenizer.build(texts).to_str()
    assert first == tiny_tokenizer.build(reversed(texts)).to_str()
    assert first != tiny_tokenizer.build([*texts, "three four"] * 2).to_str()


def test_the_commonest_words_win_the_room_there_is():
    fixed = tiny_tokenizer.build([]).get_vocab_size()
    small = tiny_tokenizer.build(["rare common common"], size=fixed + 1)
    assert small.get_vocab_size() == fixed + 1
    assert len(small.encode(" common").ids) == 1 and len(small.encode("rare").ids) == 4


@pytest.mark.parametrize("size", [300, 2049])
def test_a_size_without_room_is_refused(size):
    with pytest.raises(ValueError, match=f"vocabulary of {size}"):
        tiny_tokenizer.build([], size=size)
