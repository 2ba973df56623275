"""The votes of a run: each with the trajectories that are on disk, which of them to show, and their sums."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from pixelis_jax.report import tables, views
from pixelis_jax.report.sources import Run, Traced

if TYPE_CHECKING:
    from pixelis_jax.voting import VoteRecord

DECISIONS = ("learn", "abstain", "rolled_back")

MAX_REASONS = 20
"""Rows of the table of decisions: a guard may give a reason with figures, another one each time."""

Key = tuple[int, str]
"""Names a trajectory on the page: number of its source, and its id."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ballot:
    """A vote and what is left of it.

    Attributes:
      run: Number of the source.
      number: Place in the stream of queries, from 1.
      record: The vote.
      cast: Its trajectories; None for one that is not on disk.
      greedy: Trajectories of the same example at temperature 0, beside the vote.
    """

    run: int
    number: int
    record: VoteRecord
    cast: tuple[Traced | None, ...]
    greedy: tuple[Traced, ...]

    @property
    def verdict(self) -> str:
        """`right`, `wrong`, or `open` if no trajectory on disk says whether the winner's answer is."""
        if self.record.winner is None:
            return "open"
        members = [self.cast[member] for member in self.record.classes[self.record.winner].members]
        verdicts = [views.verdict(item.trajectory) for item in members if item is not None]
        return next((verdict for verdict in verdicts if verdict != "open"), "open")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary:
    """The votes of one source: figures (name, value, what it means), and a table of decisions by reason."""

    run: str
    figures: tuple[tuple[str, str, str], ...]
    table: tables.Table


def ballots(runs: Sequence[Run]) -> list[Ballot]:
    """The votes of all sources, in order of arrival."""
    found = []
    for index, run in enumerate(runs):
        by_id = {item.trajectory.id: item for item in run.traces}
        greedy: dict[str, list[Traced]] = {}
        for item in run.traces if run.votes else ():
            if item.trajectory.sampling.get("temperature") == 0:
                greedy.setdefault(item.trajectory.example, []).append(item)
        for number, record in enumerate(run.votes, start=1):
            beside = [item for item in greedy.get(record.query, []) if item.trajectory.id not in record.trajectories]
            cast = tuple(map(by_id.get, record.trajectories))
            found.append(Ballot(run=index, number=number, record=record, cast=cast, greedy=tuple(beside)))
    return found


def telling(found: Sequence[Ballot], most: int) -> list[Ballot]:
    """At most so many votes, in order of arrival.

    Of more, each source gives by turns its first, one that was rolled back, one that abstained, and the one that was learnt from
    with the smallest margin.
    """
    queues: list[Sequence[Ballot]] = []
    for _, group in itertools.groupby(found, key=lambda ballot: ballot.run):
        own = list(group)
        of = {name: [ballot for ballot in own if ballot.record.decision == name] for name in DECISIONS}
        queues += [own, of["rolled_back"], of["abstain"], sorted(of["learn"], key=lambda ballot: ballot.record.margin)]
    turns = itertools.chain.from_iterable(itertools.zip_longest(*queues))
    picked = {(ballot.run, ballot.number): ballot for ballot in turns if ballot is not None}
    return [ballot for _, ballot in sorted(itertools.islice(picked.items(), most), key=lambda item: item[0])]


def left_out(found: Sequence[Ballot], shown: Sequence[Ballot]) -> str:
    """How many votes of each decision are not on the page; empty if all are."""
    count: Counter[str] = Counter(ballot.record.decision for ballot in found)
    count.subtract(ballot.record.decision for ballot in shown)
    return ", ".join(f"{count[name]} {decision_words(name)}" for name in DECISIONS if count[name])


def wanted(shown: Sequence[Ballot]) -> list[Key]:
    """The trajectories of votes, those first that explain most: of every vote the exemplar, then the best of each class."""
    ranked = [_ranked(ballot) for ballot in shown]
    turns = itertools.chain.from_iterable(itertools.zip_longest(*ranked))
    return list(dict.fromkeys(key for key in turns if key is not None))


def asked_by(shown: Sequence[Ballot], links: Mapping[Key, str]) -> dict[str, str]:
    """The anchor of the vote that a trace was cast in, by the trace's anchor; votes have the anchors `v0`, `v1`, ..."""
    found: dict[str, str] = {}
    for place, ballot in enumerate(shown):
        names = [*ballot.record.trajectories, *(item.trajectory.id for item in ballot.greedy)]
        found |= {links[ballot.run, name]: f"v{place}" for name in names if (ballot.run, name) in links}
    return found


def _ranked(ballot: Ballot) -> list[Key]:
    record = ballot.record

    def score(member: int) -> float:
        return record.scores[member].total if record.scores else 0.0

    best = [max(item.members, key=score) for item in sorted(record.classes, key=lambda item: -item.mass)]
    names = [record.trajectories[member] for member in best]
    if record.exemplar is not None:
        # It stands for the winning class, which comes first.
        names[:1] = [record.exemplar]
    names += [item.trajectory.id for item in ballot.greedy]
    return [(ballot.run, name) for name in dict.fromkeys([*names, *record.trajectories])]


def summary(name: str, own: Sequence[Ballot]) -> Summary:
    """Sums up the votes of one source; `own` is not empty."""
    total = len(own)
    answered = sum(ballot.record.winner is not None for ballot in own)
    counts = Counter(ballot.record.decision for ballot in own)
    reasons = Counter(reason_words(ballot.record.reason or "") for ballot in own if ballot.record.decision == "abstain")
    why = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common(4))
    figures = [
        ("queries", str(total), "voted on"),
        ("answered", _share(answered, total), f"{answered} with an answer that counts"),
        ("learnt from", _share(counts["learn"], total), f"{counts['learn']} with a step that was kept"),
        ("abstained", _share(counts["abstain"], total), why),
        ("rolled back", _share(counts["rolled_back"], total), f"{counts['rolled_back']} with a step that the guard took back"),
    ]
    return Summary(run=name, figures=tuple(figures), table=_decisions(own))


def controlled(own: Iterable[Ballot]) -> list[dict[str, float]]:
    """Rows by query for `curves.charts`: what the controller saw after each vote, as far as it is there."""
    rows = []
    for ballot in own:
        values = {"probe KL after the step": ballot.record.kl, "beta": ballot.record.beta}
        rows.append({"step": float(ballot.number), **{name: value for name, value in values.items() if value is not None}})
    return rows


def decision_words(decision: str) -> str:
    """A decision as it is printed."""
    return {"learn": "learnt", "abstain": "abstained"}.get(decision, decision.replace("_", " "))


def reason_words(reason: str) -> str:
    """A reason's code as it is printed."""
    return reason.replace("_", " ")


def _decisions(own: Sequence[Ballot]) -> tables.Table:
    count = Counter((ballot.record.decision, ballot.record.reason or "") for ballot in own)
    common = {kind for kind, _ in count.most_common(MAX_REASONS)}
    groups: dict[tuple[str, str], list[Ballot]] = {}
    for ballot in own:
        kind = (ballot.record.decision, ballot.record.reason or "")
        groups.setdefault(kind if kind in common else (kind[0], "other reasons"), []).append(ballot)
    judged = any(ballot.verdict != "open" for ballot in own)
    rows = []
    for (decision, reason), group in sorted(groups.items(), key=lambda item: (DECISIONS.index(item[0][0]), -len(item[1]))):
        margin = tables.cell(float(np.median([ballot.record.margin for ballot in group])))
        row = [decision_words(decision), reason_words(reason), str(len(group)), _share(len(group), len(own)), margin]
        rows.append((*row, _accuracy(group)) if judged else tuple(row))
    columns = ("decision", "reason", "queries", "share", "median margin", "winner right")
    return tables.Table(
        title="Decisions",
        columns=columns if judged else columns[:-1],
        rows=tuple(rows),
        numeric=(False, False, True, True, True, True)[: 6 if judged else 5],
    )


def _accuracy(group: Sequence[Ballot]) -> str:
    verdicts = [ballot.verdict for ballot in group if ballot.verdict != "open"]
    right = verdicts.count("right")
    return f"{_share(right, len(verdicts))} of {len(verdicts)}" if verdicts else "–"


def _share(part: int, total: int) -> str:
    return f"{100 * part / total:.1f} %"
