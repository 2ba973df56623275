"""One line of `votes.jsonl`, `pixelis.vote/1`: what was voted, what came of it, and why (docs/ttrl.md)."""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from pixelis_jax.trajectory import TrajectoryError
from pixelis_jax.trajectory.codec import from_json, to_json
from pixelis_jax.voting.scores import Score
from pixelis_jax.voting.vote import AnswerClass, Vote

VOTE_SCHEMA = "pixelis.vote/1"

Decision = Literal["learn", "abstain", "rolled_back"]

_SLACK = 1e-6


@dataclasses.dataclass(frozen=True, kw_only=True)
class CallFidelity:
    """How faithful a call's result is to the pixels, by a check that needs no ground truth.

    Attributes:
      key: hash of the call.
      tool: its tool.
      raw: result of the check, in [0, 1]; None if there is none for such a call, or it could not be made.
      null: what the same check gives on random regions of equal size; None with `raw`.
      fidelity: `max(0, (raw - null) / (1 - null))`; None with `raw`.
    """

    key: str
    tool: str
    raw: float | None
    null: float | None
    fidelity: float | None

    def __post_init__(self) -> None:
        values = (self.raw, self.null, self.fidelity)
        if any(value is None for value in values) != all(value is None for value in values):
            raise ValueError("raw, null and fidelity are all numbers or all null")
        for name, value in zip(("raw", "null", "fidelity"), values, strict=True):
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {value}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Neighbour:
    """A retrieved record: its id, cosine to the query, and value when it was retrieved."""

    id: str
    cosine: float
    value: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class VoteRecord:
    """A vote as it is kept. Classes name trajectories by their place in `trajectories`.

    Attributes:
      query: id of the example.
      trajectories: ids.
      similarity: rows of the matrix; empty for a vote that compares no trajectories.
      calls: distinct calls of the group.
      fidelity: of each trajectory; empty for a vote that does not use it.
      scores: of each trajectory; empty for a vote without.
      classes: as in `Vote`.
      winner: as in `Vote`.
      votes: as in `Vote`.
      margin: as in `Vote`.
      neighbours: retrieved records.
      decision: `learn`, `abstain`, or `rolled_back` if the guard took the step back.
      reason: why there was no step, or why it went back; None for `learn`.
      exemplar: id of the trajectory that was learnt from; None where none was chosen.
      kl: KL on the probe set after the step, or None.
      beta: weight of the KL in the step, or None.
      step_before: the policy's step before.
      step_after: and after; the same unless the decision is `learn`.
    """

    query: str
    trajectories: tuple[str, ...]
    similarity: tuple[tuple[float, ...], ...]
    calls: tuple[CallFidelity, ...]
    fidelity: tuple[float, ...]
    scores: tuple[Score, ...]
    classes: tuple[AnswerClass, ...]
    winner: int | None
    votes: int
    margin: float
    neighbours: tuple[Neighbour, ...]
    decision: Decision
    reason: str | None
    exemplar: str | None
    kl: float | None
    beta: float | None
    step_before: int
    step_after: int

    def __post_init__(self) -> None:
        _check_group(self)
        _check_classes(self)
        _check_decision(self)


def make_record(
    vote: Vote,
    *,
    query: str,
    trajectories: Sequence[str],
    calls: Iterable[CallFidelity],
    neighbours: Iterable[Neighbour],
    decision: Decision,
    reason: str | None,
    exemplar: str | None,
    kl: float | None,
    beta: float | None,
    step_before: int,
    step_after: int,
) -> VoteRecord:
    """The record of a vote; arguments are the fields of `VoteRecord`.

    Raises:
      ValueError: they contradict each other.
    """
    return VoteRecord(
        query=query,
        trajectories=tuple(trajectories),
        similarity=vote.similarity,
        calls=tuple(calls),
        fidelity=vote.fidelity,
        scores=vote.scores,
        classes=vote.classes,
        winner=vote.winner,
        votes=vote.votes,
        margin=vote.margin,
        neighbours=tuple(neighbours),
        decision=decision,
        reason=reason,
        exemplar=exemplar,
        kl=kl,
        beta=beta,
        step_before=step_before,
        step_after=step_after,
    )


def vote_to_json(record: VoteRecord) -> dict[str, Any]:
    """The object that stands on one line of `votes.jsonl`."""
    return {"schema": VOTE_SCHEMA, **to_json(record)}


def vote_from_json(value: Any) -> VoteRecord:
    """Reads what `vote_to_json` wrote.

    Raises:
      TrajectoryError: another schema, an unknown or missing field, a wrong type, or parts that contradict each other.
    """
    if not isinstance(value, dict):
        raise TrajectoryError("a vote is a JSON object")
    if value.get("schema") != VOTE_SCHEMA:
        raise TrajectoryError(f"schema: expected {VOTE_SCHEMA!r}, got {value.get('schema')!r}; this version reads no other")
    record: VoteRecord = from_json(VoteRecord, {key: item for key, item in value.items() if key != "schema"})
    return record


def _check_group(record: VoteRecord) -> None:
    count = len(record.trajectories)
    for name in ("similarity", "fidelity", "scores"):
        if (found := len(getattr(record, name))) not in (0, count):
            raise ValueError(f"{name} has {found} entries for {count} trajectories")
    if any(len(row) != count for row in record.similarity):
        raise ValueError(f"similarity is not {count} x {count}")
    if len(set(record.trajectories)) < count:
        raise ValueError("a trajectory is named twice")
    numbers = [*itertools.chain(*record.similarity), *record.fidelity, *(score.total for score in record.scores), record.margin]
    if not all(map(math.isfinite, numbers)):
        raise ValueError("a similarity, fidelity, score or margin is not finite")


def _check_classes(record: VoteRecord) -> None:
    members = list(itertools.chain.from_iterable(item.members for item in record.classes))
    if not all(item.members for item in record.classes) or len(set(members)) < len(members):
        raise ValueError("classes are not empty and share no member")
    if any(not 0 <= member < len(record.trajectories) for member in members):
        raise ValueError(f"a class names a trajectory that is none of {len(record.trajectories)}")
    if record.votes != len(members):
        raise ValueError(f"votes is {record.votes}, the classes have {len(members)} members")
    if (record.winner is None) != (not record.classes) or not 0 <= (record.winner or 0) < max(len(record.classes), 1):
        raise ValueError(f"winner {record.winner} is none of {len(record.classes)} classes")
    masses = [item.mass for item in record.classes]
    if masses and (min(masses) < 0 or not abs(math.fsum(masses) - 1.0) <= _SLACK):
        raise ValueError(f"the masses of the classes sum to {math.fsum(masses)}, not to 1")
    if record.winner is not None and masses[record.winner] < max(masses):
        raise ValueError(f"winner {record.winner} has less mass than another class")


def _check_decision(record: VoteRecord) -> None:
    if (record.decision == "learn") != (record.reason is None):
        raise ValueError(f"a decision to {record.decision} with reason {record.reason!r}: all but learn have one")
    if record.exemplar is not None and record.exemplar not in record.trajectories:
        raise ValueError(f"exemplar {record.exemplar!r} is none of the trajectories")
    if record.decision != "abstain" and record.exemplar is None:
        raise ValueError(f"a decision of {record.decision} without an exemplar")
    if record.decision == "learn" and record.step_after <= record.step_before:
        raise ValueError(f"learnt, but the policy went from step {record.step_before} to {record.step_after}")
    if record.decision != "learn" and record.step_after != record.step_before:
        raise ValueError(f"{record.decision}, but the policy went from step {record.step_before} to {record.step_after}")
