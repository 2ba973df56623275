import pytest

from pixelis_jax.verifiers import VERIFIERS, extract_answer, verify
from pixelis_jax.verifiers.text import edit_distance
from tools_host.registry import UnknownNameError

COLOURS = {"options": ["a red cat", "dog", "12"], "answer": 1}
NEAR = {"value": 1200, "abs": 1}


@pytest.mark.parametrize(
    ("name", "answer", "truth", "score"),
    [
        ("exact", "Red.", "red", 1),
        ("exact", " the  RED  card ", ["blue card", "red card"], 1),
        ("exact", "ＨＫ３", "HK3", 1),
        ("exact", "redder", "red", 0),
        ("exact", "", "red", 0),
        ("number", "1,200 px", NEAR, 1),
        ("number", "about 1201.", NEAR, 1),
        ("number", "1201.5", NEAR, 0),
        ("number", "-1200", NEAR, 0),
        ("number", "1200 or 3", NEAR, 0),
        ("number", "none", NEAR, 0),
        ("number", "0.3", {"value": 0.2, "abs": 0.1}, 1),
        ("number", "1e2", {"value": 95, "rel": 0.06}, 1),
        ("number", "−4", -4, 1),
        ("number", "v1.2", 1.2, 0),
        ("choice", "B", COLOURS, 1),
        ("choice", "(b)", COLOURS, 1),
        ("choice", "The answer is B.", COLOURS, 1),
        ("choice", "answer: b) dog", COLOURS, 1),
        ("choice", "Dog", COLOURS, 1),
        ("choice", "A", COLOURS, 0),
        ("choice", "A dog", COLOURS, 1),
        ("choice", "because", COLOURS, 0),
        ("choice", "12", COLOURS, 0),
        ("anls", "hello", "hello", 1),
        ("anls", "helo", ["x", "hello"], 0.8),
        ("anls", "he", "hello", 0),
        ("anls", "", "", 1),
        ("time", "3.4 seconds", {"value": 3.5, "abs": 0.2}, 1),
        ("time", "at 1:03.5", {"value": 63.5, "abs": 0.2}, 1),
        ("time", "0:01:03", {"value": 63.5, "abs": 0.2}, 0),
        ("time", "1:00 to 2:00", {"value": 60, "abs": 1}, 0),
    ],
)
def test_scores(name, answer, truth, score):
    assert verify(name, answer, truth) == pytest.approx(score)


@pytest.mark.parametrize("name", list(VERIFIERS))
def test_no_answer_scores_nothing(name):
    assert verify(name, None, "anything") == 0.0


@pytest.mark.parametrize(
    ("name", "truth"),
    [
        ("exact", 3),
        ("exact", []),
        ("anls", [1]),
        ("number", "3"),
        ("number", {"value": 3, "tolerance": 1}),
        ("number", True),
        ("time", {}),
        ("choice", "B"),
    ],
)
def test_a_truth_of_the_wrong_kind_is_an_error_not_a_zero(name, truth):
    with pytest.raises(ValueError):
        verify(name, "3", truth)


def test_an_unknown_verifier_names_the_nearest():
    with pytest.raises(UnknownNameError, match="did you mean 'number'"):
        verify("nubmer", "3", 3)


def test_answers_are_taken_from_the_last_turn():
    assert extract_answer("I see. <answer> 42 </answer><|im_end|>") == "42"
    assert extract_answer("42") == "42"
    assert extract_answer('<tool_call>{"name":"zoom","arguments":{}}</tool_call>') is None


def test_edit_distance_by_hand():
    assert edit_distance("kitten", "sitting") == 3 and edit_distance("", "abc") == 3 and edit_distance(["a", "b"], ["b"]) == 1
