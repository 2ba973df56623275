"""Votes and best of several samples, by hand."""

import dataclasses

from pixelis_jax.evaluation import headroom
from pixelis_jax.trajectory import Source, Trajectory

BLANK = Trajectory(
    id="t",
    example="e",
    question="?",
    media=(),
    steps=(),
    final=None,
    answer=None,
    stopped="max_steps",
    source=Source(dataset="d"),
)


def group(*answers: str | None, truth: str = "a") -> list[Trajectory]:
    return [
        dataclasses.replace(BLANK, answer=answer, sample=number, scores={"task": float((answer or "").lower() == truth)})
        for number, answer in enumerate(answers)
    ]


def test_the_vote_counts_answers_as_the_verifiers_compare_them() -> None:
    winner = headroom.vote(group("b", "A", None, "a ", "c"))
    assert winner is not None and winner.answer == "A"


def test_a_tie_goes_to_the_answer_that_came_first_and_silence_has_no_vote() -> None:
    winner = headroom.vote(group(None, None, None, "c", "b", "b", "c"))
    assert winner is not None and winner.answer == "c"
    assert headroom.vote(group(None, None)) is None


def test_one_sample_the_vote_and_the_best() -> None:
    samples = {"1": group("a", "a", "b", None), "2": group("b", "b", "a", "c"), "3": group(None, None, None, None)}
    summary = headroom.summarize_samples(samples)
    assert (summary["n"], summary["samples"]) == (3, 4)
    assert [round(summary[name]["accuracy"], 4) for name in ("single", "majority", "best")] == [0.25, 0.3333, 0.6667]
