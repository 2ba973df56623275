"""A line of votes.jsonl comes back as it was, and one that contradicts itself is refused."""

import dataclasses
import json

import numpy as np
import pytest
from voting_cases import same, step, trajectory

from pixelis_jax import voting
from pixelis_jax.trajectory import TrajectoryError

GROUP = [trajectory(answer, step("ocr", (0, 0, 500, 500)), name=f"t{number}") for number, answer in enumerate("aab")]
CALLS = (
    voting.CallFidelity(key="k", tool="ocr", raw=0.9, null=0.2, fidelity=0.875),
    voting.CallFidelity(key="z", tool="zoom", raw=None, null=None, fidelity=None),
)


def _record(**changes) -> voting.VoteRecord:
    vote = voting.vote_over_trajectories(GROUP, np.array([0.9, 0.8, 0.1]), same, most_calls=6)
    fields = {
        "query": "e",
        "trajectories": [item.id for item in GROUP],
        "calls": CALLS,
        "neighbours": [voting.Neighbour(id="n", cosine=0.7, value=0.5)],
        "decision": "learn",
        "reason": None,
        "exemplar": "t0",
        "kl": 0.14,
        "beta": 0.5,
        "step_before": 3,
        "step_after": 4,
    }
    return voting.make_record(vote, **{**fields, **changes})


def test_there_and_back() -> None:
    record = _record()
    line = json.dumps(voting.vote_to_json(record), allow_nan=False)
    assert json.loads(line)["schema"] == "pixelis.vote/1"
    assert voting.vote_from_json(json.loads(line)) == record


def test_a_baseline_is_a_record_too() -> None:
    vote = voting.majority([item.answer for item in GROUP], same)
    record = voting.make_record(
        vote,
        query="e",
        trajectories=["t0", "t1", "t2"],
        calls=(),
        neighbours=(),
        decision="abstain",
        reason="small_margin",
        exemplar=None,
        kl=None,
        beta=None,
        step_before=3,
        step_after=3,
    )
    assert voting.vote_from_json(voting.vote_to_json(record)) == record and record.scores == ()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"reason": "low_mass"}, "all but learn"),
        ({"decision": "abstain"}, "all but learn"),
        ({"decision": "abstain", "reason": "low_mass"}, "step 3 to 4"),
        ({"decision": "rolled_back", "reason": "kl"}, "step 3 to 4"),
        ({"step_after": 3}, "step 3 to 3"),
        ({"exemplar": None}, "without an exemplar"),
        ({"exemplar": "t9"}, "none of the trajectories"),
        ({"trajectories": ["t0", "t1"]}, "entries for 2"),
        ({"trajectories": ["t0", "t0", "t1"]}, "twice"),
    ],
)
def test_what_contradicts_itself_is_refused(changes: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        _record(**changes)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda value: value.update(schema="pixelis.vote/2"), "reads no other"),
        (lambda value: value.update(mood="good"), "mood: unknown field"),
        (lambda value: value.pop("beta"), "beta: missing"),
        (lambda value: value.update(kl="high"), "kl: expected a number"),
        (lambda value: value["classes"][0].update(mass=0.5), "sum to"),
        (lambda value: value["classes"][0].update(members=[0, 9]), "none of 3"),
        (lambda value: value["classes"][1].update(members=[1]), "share no member"),
        (lambda value: value["classes"][1].update(members=[]), "not empty"),
        (lambda value: value.update(votes=7), "votes is 7"),
        (lambda value: value.update(winner=1), "less mass"),
        (lambda value: value.update(winner=5), "none of 2 classes"),
        (lambda value: value.update(winner=None), "none of 2 classes"),
        (lambda value: value["similarity"][0].pop(), "not 3 x 3"),
        (lambda value: value["fidelity"].append(float("nan")), "finite"),
        (lambda value: value["calls"][0].update(raw=None), "all null"),
        (lambda value: value["calls"][0].update(null=1.5), "null must lie"),
        (lambda value: value.update(decision="maybe"), "decision: expected one of"),
    ],
)
def test_a_changed_line_is_refused(change, words: str) -> None:
    value = json.loads(json.dumps(voting.vote_to_json(_record())))
    change(value)
    with pytest.raises(TrajectoryError, match=words):
        voting.vote_from_json(value)


def test_a_record_can_not_hold_what_is_not_finite() -> None:
    with pytest.raises(ValueError, match="finite"):
        dataclasses.replace(_record(), margin=float("inf"))


def test_no_vote_at_all() -> None:
    with pytest.raises(TrajectoryError, match="JSON object"):
        voting.vote_from_json([])
