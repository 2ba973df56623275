"""What the page shows of a vote: its classes, trajectories, similarities, calls, neighbours, and what came of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pixelis_jax.report import curves, drawing, tables, views, votes
from pixelis_jax.report.sources import Run, Traced
from pixelis_jax.report.votes import Ballot, Key, decision_words, reason_words
from tools_host.media import MediaStore

if TYPE_CHECKING:
    from pixelis_jax.voting import VoteRecord

MAX_MEMBERS = 32
"""Trajectories of one vote in its table and its matrix."""

MAX_CALLS = 64
"""Distinct calls of one vote in its table."""

CELL, EDGE = 26, 20
"""Side of a cell of the matrix, and width of its labels, in the units of its drawing."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassView:
    """An answer class: its share of the mass in percent, and the numbers of its trajectories."""

    answer: str
    colour: str
    mass: str
    percent: float
    members: str
    wins: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemberView:
    """A row of the group's table.

    Attributes:
      name: Id.
      number: Place in the group from 1, or `greedy` for the one beside it.
      link: Anchor of its trace; empty if the page does not hold it.
      note: Where it is, if the page does not hold it.
      answer: What it answered; empty for none.
      uncounted: Why its answer has no class; empty if it has one.
      colour: Of its class.
      exemplar: Whether it was learnt from.
      parts: Fidelity, then agreement, fidelity, support, length and total of the score; empty if the vote has none.
    """

    name: str
    number: str
    link: str
    note: str
    answer: str
    uncounted: str
    colour: str
    exemplar: bool
    parts: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """A similarity: where it lies, how dark it is in [0, 1], and its value."""

    x: int
    y: int
    dark: float
    value: str
    title: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Heat:
    """The similarity matrix, classes beside each other; labels are (position, number, colour)."""

    size: int
    cells: tuple[Cell, ...]
    labels: tuple[tuple[float, str, str], ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class VoteView:
    """One vote."""

    number: int
    run: str
    query: str
    family: str
    question: str
    shots: tuple[views.Shot, ...]
    answer: str | None
    verdict: str
    kind: str
    decision: str
    why: str
    facts: tuple[tuple[str, str], ...]
    classes: tuple[ClassView, ...]
    members: tuple[MemberView, ...]
    heat: Heat | None
    calls: tables.Table | None
    neighbours: tables.Table | None
    notes: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class VotesView:
    """The section of votes: their sums by source, curves over the queries, and the votes shown, of so many."""

    summaries: tuple[votes.Summary, ...]
    charts: tuple[curves.Chart, ...]
    shown: tuple[VoteView, ...]
    total: int
    left_out: str


def view_votes(
    runs: Sequence[Run],
    ballots: Sequence[Ballot],
    shown: Sequence[Ballot],
    links: Mapping[Key, str],
    pictures: views.Pictures,
    store: MediaStore,
) -> VotesView:
    """Builds the section; arguments as for `view_vote`, `shown` are those of all `ballots` that the page has a view of."""
    by_run = [[ballot for ballot in ballots if ballot.run == index] for index in range(len(runs))]
    return VotesView(
        summaries=tuple(votes.summary(run.name, own) for run, own in zip(runs, by_run, strict=True) if own),
        charts=tuple(curves.charts([votes.controlled(own) for own in by_run])),
        shown=tuple(view_vote(ballot, runs[ballot.run].name, links, pictures, store) for ballot in shown),
        total=len(ballots),
        left_out=votes.left_out(ballots, shown),
    )


def view_vote(ballot: Ballot, run: str, links: Mapping[Key, str], pictures: views.Pictures, store: MediaStore) -> VoteView:
    """Builds the view of a vote.

    Args:
      ballot: The vote and its trajectories.
      run: Name of the source.
      links: Anchors of the traces that the page holds.
      pictures: Takes the pictures.
      store: Opens media.
    """
    record = ballot.record
    on_disk = [item for item in (*ballot.cast, *ballot.greedy) if item is not None]
    question, shots, notes = views.view_question(on_disk[0], pictures, store) if on_disk else ("", (), ())
    shown = min(len(record.trajectories), MAX_MEMBERS)
    return VoteView(
        number=ballot.number,
        run=run,
        query=record.query,
        family=views.family(on_disk[0].trajectory) if on_disk else "",
        question=question,
        shots=shots,
        answer=None if record.winner is None else record.classes[record.winner].answer,
        verdict=ballot.verdict,
        kind=record.decision,
        decision=decision_words(record.decision),
        why=_why(record),
        facts=_facts(record),
        classes=tuple(_class_view(record, number) for number in _by_mass(record)[:MAX_MEMBERS]),
        members=(
            *(_member(ballot, place, links) for place in range(shown)),
            *(_greedy(item, ballot.run, links) for item in ballot.greedy),
        ),
        heat=_heat(record, shown) if record.similarity else None,
        calls=_calls(record) if record.calls else None,
        neighbours=_neighbours(record) if record.neighbours else None,
        notes=(*_missing(ballot), *_cut(record), *notes),
    )


def _why(record: VoteRecord) -> str:
    """The decision in words."""
    if record.decision == "learn":
        return f"Learnt from {record.exemplar}: the policy went from step {record.step_before} to {record.step_after}."
    reason = record.reason or ""
    if record.decision == "rolled_back":
        return f"A step on {record.exemplar} was taken, and the guard took it back: {reason_words(reason)}."
    mass = 0.0 if record.winner is None else record.classes[record.winner].mass
    agree = 0 if record.winner is None else len(record.classes[record.winner].members)
    words = {
        "few_votes": f"too few answers count, {record.votes} of {len(record.trajectories)}",
        "low_mass": f"the winner holds too little of the mass, {tables.cell(mass)}",
        "small_margin": f"the winner leads the next class by too little, {tables.cell(record.margin)}",
        "few_agree": f"of {len(record.trajectories)} trajectories only {agree} give the winner's answer",
        "no_evidence": "no call of the exemplar could be checked, so nothing says that it looked",
        "read_only": "the run only answers",
        "rate_limit": "the limit on updates left no room",
        "no_exemplar": "no trajectory of the winning class is short and faithful enough to learn from",
    }
    return f"Nothing was learnt: {words.get(reason, reason_words(reason))}."


def _facts(record: VoteRecord) -> tuple[tuple[str, str], ...]:
    return (
        ("votes that count", f"{record.votes} of {len(record.trajectories)}"),
        ("margin", tables.cell(record.margin)),
        ("probe KL", tables.cell(record.kl)),
        ("beta", tables.cell(record.beta)),
        ("policy step", f"{record.step_before} → {record.step_after}"),
    )


def _by_mass(record: VoteRecord) -> list[int]:
    """Numbers of the classes, the winner first."""
    return sorted(range(len(record.classes)), key=lambda number: (number != record.winner, -record.classes[number].mass))


def _class_view(record: VoteRecord, number: int) -> ClassView:
    own = record.classes[number]
    return ClassView(
        answer=own.answer,
        colour=_colour(number),
        mass=tables.cell(own.mass),
        percent=round(100 * own.mass, 1),
        members=_listed([str(member + 1) for member in own.members]),
        wins=number == record.winner,
    )


def _member(ballot: Ballot, place: int, links: Mapping[Key, str]) -> MemberView:
    record, held = ballot.record, ballot.cast[place]
    name = record.trajectories[place]
    number = _class_of(record, place)
    # Without the trajectory, its class still says what it answered, or something equivalent.
    answer = "" if number is None else record.classes[number].answer
    uncounted = "" if number is not None else "does not count"
    if held is not None:
        answer = held.trajectory.answer or ""
        if uncounted and held.trajectory.stopped != "answer":
            uncounted += f": stopped by {reason_words(held.trajectory.stopped)}"
    parts: tuple[str, ...] = ()
    if record.scores:
        score = record.scores[place]
        values = (score.agreement, score.fidelity, score.support, score.length, score.total)
        parts = tuple(map(tables.cell, (record.fidelity[place] if record.fidelity else None, *values)))
    return MemberView(
        name=name,
        number=str(place + 1),
        link=links.get((ballot.run, name), ""),
        note="not on disk" if held is None else "not on this page",
        answer=answer,
        uncounted=uncounted,
        colour="" if number is None else _colour(number),
        exemplar=name == record.exemplar,
        parts=parts,
    )


def _greedy(item: Traced, run: int, links: Mapping[Key, str]) -> MemberView:
    return MemberView(
        name=item.trajectory.id,
        number="greedy",
        link=links.get((run, item.trajectory.id), ""),
        note="not on this page",
        answer=item.trajectory.answer or "",
        uncounted="no vote",
        colour="",
        exemplar=False,
        parts=(),
    )


def _heat(record: VoteRecord, shown: int) -> Heat:
    """The matrix with the classes beside each other, the winner first; what does not count comes last."""

    def place(member: int) -> tuple[int, int]:
        number = _class_of(record, member)
        return (len(record.classes) if number is None else -1 if number == record.winner else number, member)

    order = sorted(range(shown), key=place)
    most = max(max(record.similarity[i][j] for j in order) for i in order)
    cells = []
    for row, i in enumerate(order):
        for column, j in enumerate(order):
            value = record.similarity[i][j]
            dark = round(min(max(value / most, 0.0), 1.0), 3) if most > 0 else 0.0
            text = f"{value:.2f}".removeprefix("0") if shown <= 12 else ""
            title = f"{i + 1} and {j + 1}: {tables.cell(value)}"
            cells.append(Cell(x=EDGE + column * CELL, y=EDGE + row * CELL, dark=dark, value=text, title=title))
    labels = []
    for index, member in enumerate(order):
        number = _class_of(record, member)
        labels.append((EDGE + (index + 0.5) * CELL, str(member + 1), "" if number is None else _colour(number)))
    return Heat(size=EDGE + shown * CELL, cells=tuple(cells), labels=tuple(labels))


def _calls(record: VoteRecord) -> tables.Table:
    rows = [
        (call.tool, call.key[:12], *map(tables.cell, (call.raw, call.null, call.fidelity))) for call in record.calls[:MAX_CALLS]
    ]
    return tables.Table(
        title="Distinct calls: raw is the check, null the same on random regions; – where there is no check",
        columns=("tool", "call", "raw", "null", "fidelity"),
        rows=tuple(rows),
        numeric=(False, False, True, True, True),
    )


def _neighbours(record: VoteRecord) -> tables.Table:
    return tables.Table(
        title="Neighbours in memory",
        columns=("id", "cosine", "value"),
        rows=tuple((item.id, tables.cell(item.cosine), tables.cell(item.value)) for item in record.neighbours[:MAX_MEMBERS]),
        numeric=(False, True, True),
    )


def _missing(ballot: Ballot) -> list[str]:
    names = [name for name, held in zip(ballot.record.trajectories, ballot.cast, strict=True) if held is None]
    if not names:
        return []
    return [f"{len(names)} of {len(ballot.cast)} trajectories of this vote are not on disk: {_listed(names)}"]


def _cut(record: VoteRecord) -> list[str]:
    lengths = (
        ("trajectories", len(record.trajectories), MAX_MEMBERS),
        ("classes", len(record.classes), MAX_MEMBERS),
        ("distinct calls", len(record.calls), MAX_CALLS),
        ("neighbours", len(record.neighbours), MAX_MEMBERS),
    )
    return [f"the first {most} of {length} {name} are shown" for name, length, most in lengths if length > most]


def _class_of(record: VoteRecord, member: int) -> int | None:
    return next((number for number, item in enumerate(record.classes) if member in item.members), None)


def _colour(number: int) -> str:
    return drawing.colour(number + 1)


def _listed(names: Sequence[str], most: int = 12) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
