"""A trace of anybody's: ids that lead nowhere, masks that are none, and JSON that cannot be written again."""

import copy
import json
from pathlib import Path

import pytest

from pixelis_jax.trajectory import (
    TrajectoryError,
    check_consistent,
    parse_turn,
    read_trajectories,
    strict_json,
    trajectory_from_json,
)
from pixelis_jax.trajectory.grammar import roles_of

LINES = [json.loads(line) for line in (Path(__file__).parent.parent / "golden" / "trace.jsonl").read_text().splitlines()]

MUTATIONS = {
    "a medium out of order": (lambda line: line["media"][1].update(id=3), "media[1].id is 3, expected 2"),
    "a medium without pixels": (lambda line: line["media"][0].update(width=0), "media[0].width is 0"),
    "its own parent": (lambda line: line["media"][1]["parent"].update(media=2), "media[1].parent.media is 2"),
    "no such parent": (lambda line: line["media"][1]["parent"].update(media=0), "media[1].parent.media is 0"),
    "a region nowhere": (lambda line: region(line).update(media=9), "steps[1].observation.regions[0].media is 9"),
    "a region out of order": (lambda line: region(line).update(id=4), "steps[1].observation.regions[0].id is 4, expected 1"),
    "a medium shown that is none": (lambda line: seen(line, 0)["media"].append(7), "observation.media[1] is 7"),
    "a mask of another size": (lambda line: mask(line).update(size=[10, 10]), "regions[0].mask: the mask is of 10 x 10"),
    "a mask too large for any memory": (
        lambda line: mask(line).update(size=[10**6, 10**6]),
        "mask: a mask of 1000000",
    ),
    "garbage for a mask": (lambda line: mask(line).update(counts="!!!garbage"), "regions[0].mask: the counts"),
    "a number for a mask": (lambda line: mask(line).update(counts=5), "regions[0].mask: the counts"),
    "garbage for an overlay": (lambda line: overlay(line).update(counts="zz"), "parent.mask: the counts"),
}


def seen(line, step):
    return line["steps"][step]["observation"]


def region(line):
    return seen(line, 1)["regions"][0]


def mask(line):
    return seen(line, 3)["regions"][0]["mask"]


def overlay(line):
    return next(medium["parent"]["mask"] for medium in line["media"] if medium["parent"] and medium["parent"]["mask"])


@pytest.mark.parametrize("line", LINES, ids=[line["id"] for line in LINES])
def test_what_the_tools_made_fits_together(line):
    check_consistent(trajectory_from_json(line))


@pytest.mark.parametrize("name", MUTATIONS)
def test_what_does_not_fit_is_named_when_a_trace_is_read(tmp_path, name):
    change, message = MUTATIONS[name]
    line = copy.deepcopy(LINES[0])
    change(line)
    (tmp_path / "t.jsonl").write_text(json.dumps(line))
    with pytest.raises(TrajectoryError) as error:
        list(read_trajectories(tmp_path / "t.jsonl"))
    assert "t.jsonl, line 1: " in str(error.value) and message in str(error.value)
    assert len(list(read_trajectories(tmp_path / "t.jsonl", consistent=False))) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "a": 2}', "a key stands twice"),
        ("NaN", "no JSON number"),
        ("[1e999]", "1e999 is no JSON number"),
        ('{"a": ["\\ud800"]}', "half of a surrogate pair"),
        ('{"\\udc00": 1}', "half of a surrogate pair"),
        ("[" * 101 + "]" * 101, "more than 100"),
        ("[" * 10**5, "recursion"),
        ("1" * 5000, "digits"),
        (b"\xff", "utf-8"),
    ],
)
def test_json_that_could_not_be_written_again_is_refused(text, message):
    with pytest.raises(TrajectoryError, match=message):
        strict_json(text)
    assert strict_json("[" * 100 + "]" * 100) and strict_json('"\\ud83d\\ude00"') == "\U0001f600"


def test_a_number_too_large_for_a_fraction_is_refused():
    line = copy.deepcopy(LINES[0])
    line["scores"] = {"task": 10**400}
    with pytest.raises(TrajectoryError, match="scores.task: expected a finite number"):
        trajectory_from_json(line)


def test_a_call_that_no_trace_could_hold_is_bad_json():
    turn = '<tool_call>{"name": "zoom", "arguments": {"label": "%s"}}</tool_call>'
    assert parse_turn(turn % "\\ud83d\\ude00").call is not None
    bad = parse_turn(turn % "\\ud800")
    assert bad.error is not None and bad.error.code == "bad_json" and "surrogate" in bad.error.message
    deep = parse_turn(turn.replace('"%s"', "[" * 300 + "]" * 300))
    assert deep.error is not None and "more than 100" in deep.error.message
    # A character cut in the middle of a label is the tokenizer's doing, and the label stays an argument.
    pieces = [part.encode() for part in (turn % "é").partition("é")]
    pieces[1] = pieces[1][:1]
    roles = roles_of([0, 1, 2], pieces)
    whole = roles_of([0, 1, 2], [part.encode() for part in (turn % "Q").partition("Q")])
    assert roles.tolist() == whole.tolist()
