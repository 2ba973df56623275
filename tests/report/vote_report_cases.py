"""Work directories with votes for the tests of the report: groups made from the golden trace, voted on by the real vote."""

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pixelis_jax import voting
from pixelis_jax.trajectory import Trajectory, read_trajectories, write_trajectories

GOLDEN = Path(__file__).parent.parent / "golden"
GOLD = next(read_trajectories(GOLDEN / "trace.jsonl"))
CALLS = (
    voting.CallFidelity(key="0123456789abcdef", tool="ocr", raw=0.9, null=0.2, fidelity=0.875),
    voting.CallFidelity(key="fedcba9876543210", tool="zoom", raw=None, null=None, fidelity=None),
)
RIGHT = "HK3V9"


def group(query: str, answers: Sequence[str | None], temperature: float = 1.0) -> list[Trajectory]:
    """One trajectory an answer, of one to three steps; None was stopped at a limit."""
    return [
        dataclasses.replace(
            GOLD,
            id=f"{query}/{number}",
            example=query,
            group=query,
            sample=number,
            steps=GOLD.steps[: 1 + number % 3],
            answer=answer,
            stopped="max_steps" if answer is None else "answer",
            scores={"task": float(answer == RIGHT)},
            sampling={"temperature": temperature, "family": "read"},
        )
        for number, answer in enumerate(answers)
    ]


def vote(samples: Sequence[Trajectory], fidelity: Sequence[float] | None = None, **changes: Any) -> voting.VoteRecord:
    """The record of the real vote over samples; without changes it is what the vote itself decides."""
    used = np.asarray(fidelity if fidelity is not None else [0.9] * len(samples), float)
    found = voting.vote_over_trajectories(samples, used, _same, most_calls=6)
    chosen = None if found.abstention else voting.exemplar(found, samples)
    fields = {
        "query": samples[0].example,
        "trajectories": [item.id for item in samples],
        "calls": CALLS,
        "neighbours": [voting.Neighbour(id="seen-before", cosine=0.71, value=0.52)],
        "decision": "abstain" if chosen is None else "learn",
        "reason": found.abstention or ("no_exemplar" if chosen is None else None),
        "exemplar": None if chosen is None else samples[chosen].id,
        "kl": None if chosen is None else 0.125,
        "beta": 0.5,
        "step_before": 3,
        "step_after": 3 if chosen is None else 4,
    }
    return voting.make_record(found, **{**fields, **changes})


def _same(a: str, b: str) -> bool:
    return a.casefold() == b.casefold()


def rolled_back(samples: Sequence[Trajectory]) -> voting.VoteRecord:
    """A vote whose step the guard took back."""
    return vote(samples, decision="rolled_back", reason="probe_kl", exemplar=samples[0].id, kl=0.375, step_after=3)


def write_run(directory: Path, samples: Sequence[Trajectory], records: Sequence[voting.VoteRecord]) -> Path:
    """A work directory as Pixel TTRL leaves it."""
    (directory / "trajectories").mkdir(parents=True)
    shutil.copy(GOLDEN / "scene.png", directory / "trajectories")
    write_trajectories(directory / "trajectories" / "samples-0-0.jsonl", samples)
    lines = [json.dumps(voting.vote_to_json(record), ensure_ascii=False) + "\n" for record in records]
    (directory / "votes.jsonl").write_text("".join(lines), encoding="utf-8")
    return directory
