"""What abstaining buys: risk against coverage of Pixel TTRL's vote and of hard majorities (docs/algorithms.md, section 3).

    python experiments/risk_coverage.py runs/ttrl/seed=0 runs/ttrl/seed=1 --json=experiments/results/ttrl/risk_coverage.json

The work directories are seeds of one thing; each holds votes.jsonl and the trajectories that voted, judged. Four ways to answer a
query and to be sure of it: the hard majority, always; by its lead in votes; the recorded vote by its mass; by its lead in mass.
Answers are the same where the recorded vote put them into one class. Risks are means over the seeds, intervals a percentile
bootstrap over queries, in which a query is drawn together with itself in the other seeds. Exit status: 0 written, 2 bad input.
"""

import argparse
import dataclasses
import itertools
import operator
import platform
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from pixelis_jax.evaluation.statistics import RESAMPLES
from pixelis_jax.trajectory import Trajectory, TrajectoryError
from pixelis_jax.trajectory.io import read_trajectories, strict_json
from pixelis_jax.voting import VoteRecord, counted_answer, majority, risks_at, vote_from_json
from pixelis_jax.workdir import Workdir, WorkdirError, describe_environment, without_machine, write_json

METHODS = ("majority", "majority_margin", "ours", "ours_margin")
"""Hard majority; by its lead in votes; the recorded vote by its mass; by its lead in mass."""

COMPARED = (("ours", "majority_margin"), ("ours", "majority"), ("ours_margin", "majority_margin"))
COVERAGE = 0.8
COVERAGES = tuple(number / 50 for number in range(1, 51))
LEVEL = COVERAGES.index(COVERAGE)
LEAST_QUERIES = 2


class InputError(Exception):
    """Bad input; the message is one line."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Query:
    """A query as it was answered.

    Attributes:
      name: Id of the example.
      confidence: Of each of `METHODS`; 0 where no answer counts.
      correct: Whether the answer of each is right.
      abstained: Whether the recorded vote abstained; a winner without an exemplar did not.
      classes: How many different answers count.
      similarity: Mean over pairs of trajectories; None in a vote that compares none.
    """

    name: str
    confidence: tuple[float, ...]
    correct: tuple[bool, ...]
    abstained: bool
    classes: int
    similarity: float | None


def read_run(workdir: Path) -> list[Query]:
    """The queries of a run, in the order in which they came.

    Raises:
      InputError: There are too few, a query came twice, or votes and trajectories do not fit together.
      TrajectoryError: A file is damaged.
    """
    trajectories = _read_trajectories(workdir / "trajectories")
    path = workdir / "votes.jsonl"
    queries: dict[str, Query] = {}
    for number, record in _read_votes(path):
        if record.query in queries:
            raise InputError(f"{path}, line {number}: query {record.query} a second time")
        try:
            queries[record.query] = judge(record, [trajectories[name] for name in record.trajectories])
        except KeyError as error:
            raise InputError(f"{path}, line {number}: {error.args[0]!r} is not in trajectories/") from error
        except ValueError as error:
            raise InputError(f"{path}, line {number}: {error}") from error
    if len(queries) < LEAST_QUERIES:
        raise InputError(f"{path}: {len(queries)} queries, expected at least {LEAST_QUERIES}")
    return list(queries.values())


def judge(record: VoteRecord, trajectories: Sequence[Trajectory]) -> Query:
    """Answers a query in all ways.

    Args:
      record: Of the vote.
      trajectories: That voted, in the order of the record, each with a verdict in `scores["task"]`.

    Raises:
      ValueError: Its classes are not those of these answers, or a verdict is missing or neither 0 nor 1.
    """
    right = [trajectory.scores.get("task") for trajectory in trajectories]
    for trajectory, verdict in zip(trajectories, right, strict=True):
        if verdict not in (0, 1):
            raise ValueError(f"the verdict on {trajectory.id} must be 0 or 1, not {verdict}")
    given = [counted_answer(trajectory) for trajectory in trajectories]
    labels: list[str | None] = [None] * len(given)
    for number, item in enumerate(record.classes):
        if item.answer != given[item.members[0]]:
            raise ValueError(f"the vote's answer {item.answer!r} is not that of {trajectories[item.members[0]].id}")
        for member in item.members:
            labels[member] = str(number)
    if [label is None for label in labels] != [answer is None for answer in given]:
        raise ValueError("the vote counts other answers than the trajectories gave")
    counted = majority(labels, operator.eq)
    winner = None if record.winner is None else record.classes[record.winner]
    # A class answers with the first of its answers.
    by_majority = bool(counted.members and right[counted.members[0]])
    by_vote = bool(winner and right[winner.members[0]])
    similarity = np.array(record.similarity)
    pairs = np.triu_indices(len(similarity), k=1)
    return Query(
        name=record.query,
        confidence=(float(bool(counted.members)), counted.margin, winner.mass if winner else 0.0, record.margin),
        correct=(by_majority, by_majority, by_vote, by_vote),
        abstained=record.decision == "abstain" and record.reason != "no_exemplar",
        classes=len(record.classes),
        similarity=float(similarity[pairs].mean()) if len(pairs[0]) else None,
    )


def _read_trajectories(folder: Path) -> dict[str, Trajectory]:
    found: dict[str, Trajectory] = {}
    for path in sorted(folder.glob("*.jsonl")):
        for trajectory in read_trajectories(path, consistent=False):
            # A resumed run may have sampled its last query twice, and alike.
            other = found.setdefault(trajectory.id, trajectory)
            if (other.answer, other.scores.get("task")) != (trajectory.answer, trajectory.scores.get("task")):
                raise InputError(f"{path}: {trajectory.id} a second time, with another answer or verdict")
    return found


def _read_votes(path: Path) -> Iterator[tuple[int, VoteRecord]]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                yield number, vote_from_json(strict_json(line))
            except TrajectoryError as error:
                raise TrajectoryError(f"{path}, line {number}: {error}") from error


def compare(runs: Sequence[Sequence[Query]], *, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Any]:
    """Curves, risks at `COVERAGE` and their differences.

    Args:
      runs: The queries of each seed; the sets may differ.
      resamples: Of the bootstrap.
      seed: Of the resampling.

    Returns:
      `curves` (`coverage`, and by method `risk`, `low`, `high`), `risks` at `COVERAGE` and `differences` there, each with its
      95 % interval and the value of each seed. A difference `holds` if it is at most 0.
    """
    confidence = [np.array([query.confidence for query in run]).T for run in runs]
    correct = [np.array([query.correct for query in run]).T for run in runs]
    names = sorted({query.name for run in runs for query in run})
    places = []
    for run in runs:
        place = {query.name: number for number, query in enumerate(run)}
        places.append(np.array([place.get(name, -1) for name in names]))

    def risks(drawn: np.ndarray) -> np.ndarray | None:
        """Of each seed, method and coverage, `[S, M, C]`, over the queries drawn; None if a seed has none of them."""
        chosen = [place[drawn][place[drawn] >= 0] for place in places]
        if not all(map(len, chosen)):
            return None
        found = [
            [risks_at(sure[own], right[own], COVERAGES) for sure, right in zip(sures, rights, strict=True)]
            for sures, rights, own in zip(confidence, correct, chosen, strict=True)
        ]
        return np.array(found)

    by_seed = risks(np.arange(len(names)))
    assert by_seed is not None
    rng = np.random.default_rng(seed)
    redrawn: list[np.ndarray] = []
    while len(redrawn) < resamples:
        found = risks(rng.integers(0, len(names), len(names)))
        if found is not None:
            redrawn.append(found.mean(axis=0))
    samples, means = np.stack(redrawn), by_seed.mean(axis=0)  # [R, M, C] and [M, C]
    low, high = np.quantile(samples, [0.025, 0.975], axis=0)
    curves: dict[str, Any] = {"coverage": list(COVERAGES)}
    at: dict[str, Any] = {}
    for number, method in enumerate(METHODS):
        curves[method] = {"risk": _short(means[number]), "low": _short(low[number]), "high": _short(high[number])}
        at[method] = {
            "risk": _short(means[number, LEVEL]),
            "interval": _short(np.array([low[number, LEVEL], high[number, LEVEL]])),
            "by_seed": _short(by_seed[:, number, LEVEL]),
        }
    differences: dict[str, Any] = {}
    for first, second in COMPARED:
        one, other = METHODS.index(first), METHODS.index(second)
        difference = round(means[one, LEVEL] - means[other, LEVEL], 9)  # equal risks may be sums in another order
        differences[f"{first} - {second}"] = {
            "difference": _short(difference),
            "interval": _short(np.quantile(samples[:, one, LEVEL] - samples[:, other, LEVEL], [0.025, 0.975])),
            "by_seed": _short(np.round(by_seed[:, one, LEVEL] - by_seed[:, other, LEVEL], 9)),
            "holds": bool(difference <= 0),
        }
    return {"curves": curves, "risks": at, "differences": differences}


def abstaining(runs: Sequence[Sequence[Query]]) -> dict[str, Any]:
    """Share of the queries that the recorded vote did not abstain from, and its risk on them (of the seeds that have any)."""
    answered = [[not query.correct[METHODS.index("ours")] for query in run if not query.abstained] for run in runs]
    risks = [np.mean(errors) for errors in answered if errors]
    coverage = np.mean([len(errors) / len(run) for errors, run in zip(answered, runs, strict=True)])
    return {"coverage": _short(coverage), "risk": _short(np.mean(risks)) if risks else None}


def diversity(runs: Sequence[Sequence[Query]]) -> dict[str, Any]:
    """How different the trajectories of a query are, over all queries and in both halves of the stream; means over seeds."""
    first, second = [run[: len(run) // 2] for run in runs], [run[len(run) // 2 :] for run in runs]
    return {"all": _diversity(runs), "first_half": _diversity(first), "second_half": _diversity(second)}


def _diversity(runs: Sequence[Sequence[Query]]) -> dict[str, float | None]:
    alike = [[query.similarity for query in run if query.similarity is not None] for run in runs]
    return {
        "classes": _short(np.mean([np.mean([query.classes for query in run]) for run in runs])),
        "one_class": _short(np.mean([np.mean([query.classes == 1 for query in run]) for run in runs])),
        "similarity": _short(np.mean([np.mean(values) for values in alike])) if all(alike) else None,
    }


def _short(value: Any) -> Any:
    """Five digits, of a number or of each of an array."""
    return [_short(item) for item in value] if np.ndim(value) else float(f"{value:.5g}")


def main(argv: Sequence[str] | None = None) -> int:
    """Reads the runs, writes the record and prints a table; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdirs", metavar="WORKDIR", type=Path, nargs="+", help="of a run; several are seeds of one thing")
    parser.add_argument("--json", type=Path, required=True, help="where the record goes")
    args = parser.parse_args(argv)
    began = time.monotonic()
    try:
        described = [_describe(path) for path in args.workdirs]
        for one, other in itertools.combinations(described, 2):
            if one["seed"] == other["seed"]:
                raise InputError(f"{one['workdir']} and {other['workdir']} are both of seed {one['seed']}")
        runs = [read_run(path) for path in args.workdirs]
        record = {
            "study": "ttrl",
            "run": "risk_coverage",
            "command": shlex.join(["python", *map(without_machine, sys.argv)]),
            "commit": describe_environment(seed=0)["commit"],
            "machine": f"{platform.machine()}, {jax.device_count()} x {jax.devices()[0].device_kind}",
            "runs": [one | {"queries": len(run)} for one, run in zip(described, runs, strict=True)],
            "queries": len({query.name for run in runs for query in run}),
            "coverage": COVERAGE,
            "resamples": RESAMPLES,
            **compare(runs),
            "abstaining": abstaining(runs),
            "diversity": diversity(runs),
            "wall_time_s": round(time.monotonic() - began),
        }
        args.json.parent.mkdir(parents=True, exist_ok=True)
        write_json(args.json, record)
    except (InputError, TrajectoryError, WorkdirError, OSError) as error:
        print(f"risk_coverage: {error}", file=sys.stderr)
        return 2
    print(f"{record['queries']} queries, {len(runs)} seeds; risk at {100 * COVERAGE:g} % coverage")
    for method, found in record["risks"].items():
        print(f"  {method:30s} {found['risk']:7.4f}  {found['interval'][0]:7.4f} to {found['interval'][1]:7.4f}")
    for name, found in record["differences"].items():
        word = "holds" if found["holds"] else "does not hold"
        print(f"  {name:30s} {found['difference']:+7.4f}  {found['interval'][0]:+7.4f} to {found['interval'][1]:+7.4f}  {word}")
    return 0


def _describe(path: Path) -> dict[str, Any]:
    run = Workdir(path)
    return {"workdir": without_machine(str(path)), "seed": run.config.get("seed"), "commit": run.environment.get("commit")}


if __name__ == "__main__":
    sys.exit(main())
