"""The vote over complete trajectories and when it abstains (algorithms.md, section 3, steps 4 and 5)."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Literal

import chex
import numpy as np
from jaxtyping import Float

from pixelis_jax.trajectory import Trajectory, footprint, operations
from pixelis_jax.voting.answers import NO_CLASS, answer_classes, counted_answer
from pixelis_jax.voting.scores import Score, ScoreWeights, neighbour_support, score_trajectories
from pixelis_jax.voting.similarity import SimilarityWeights, similarity_matrix

Abstention = Literal["few_votes", "low_mass", "small_margin", "few_agree"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """Below any of these a vote abstains.

    Attributes:
      votes: answers that count.
      mass: the winner's.
      margin: its lead in mass over the next class.
      agree: share of all trajectories that give its answer, however much they weigh.
    """

    votes: int = 3
    mass: float = 0.5
    margin: float = 0.1
    agree: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnswerClass:
    """Answers that count as one.

    Attributes:
      answer: the first of them.
      members: numbers of the trajectories that gave them, in order.
      mass: their share of the vote.
    """

    answer: str
    members: tuple[int, ...]
    mass: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vote:
    """A vote and all that explains it. Trajectories are named by their numbers in the group.

    Attributes:
      classes: in the order in which their first answers came up; their masses sum to 1, if there are any.
      winner: number of the class with most mass, the first of equals; None if no answer counts.
      votes: answers that count.
      margin: the winner's mass less that of the next class; all of its mass if it is alone.
      abstention: why nothing may be learnt from it (the query is answered all the same), None if something may. `few_votes`,
        `low_mass`, `small_margin` and `few_agree` are looked at in this order.
      scores: of each trajectory, in a vote that scores trajectories.
      similarity: rows of the matrix, in a vote that compares trajectories.
      fidelity: of each trajectory, in a vote that uses it.
    """

    classes: tuple[AnswerClass, ...]
    winner: int | None
    votes: int
    margin: float
    abstention: Abstention | None
    scores: tuple[Score, ...] = ()
    similarity: tuple[tuple[float, ...], ...] = ()
    fidelity: tuple[float, ...] = ()

    @property
    def answer(self) -> str | None:
        """The winner's answer."""
        return None if self.winner is None else self.classes[self.winner].answer

    @property
    def members(self) -> tuple[int, ...]:
        """Trajectories of the winner."""
        return () if self.winner is None else self.classes[self.winner].members

    @property
    def mass(self) -> float:
        """The winner's mass, 0 without one: the vote's confidence."""
        return 0.0 if self.winner is None else self.classes[self.winner].mass


def softmax_weights(classes: Sequence[int], scores: Float[np.ndarray, " N"], temperature: float = 0.1) -> Float[np.ndarray, " N"]:
    """Computes `softmax(score / temperature)` over the trajectories whose answer counts; the others weigh 0.

    Scores of a group lie within a few tenths of each other: at temperature 1 the vote would be little more than counting.

    Args:
      classes: of the answers (`answer_classes`).
      scores: of the trajectories.
      temperature: above 0.

    Returns:
      Weights that sum to 1, or are all 0 if no answer counts.
    """
    chex.assert_shape(scores, (len(classes),))
    counts = np.asarray(classes, int) != NO_CLASS
    if not counts.any():
        return np.zeros(len(classes))
    scaled = np.asarray(scores, np.float64) / temperature
    weights = np.where(counts, np.exp(np.minimum(scaled - scaled[counts].max(), 0.0)), 0.0)
    return weights / math.fsum(weights)


def decide(answers: Sequence[str | None], classes: Sequence[int], weights: Float[np.ndarray, " N"], limits: Limits) -> Vote:
    """Adds up the weights of each class and looks whether the winner's lead is enough.

    Args:
      answers: of the trajectories, None where it does not count.
      classes: of the answers (`answer_classes`).
      weights: of the trajectories; not negative, 0 where the answer does not count, sum 1.
      limits: below which it abstains.

    Returns:
      The vote, without what explains the weights.
    """
    chex.assert_shape(weights, (len(classes),))
    found = []
    for number in range(max(classes, default=NO_CLASS) + 1):
        members = tuple(index for index, own in enumerate(classes) if own == number)
        mass = math.fsum(float(weights[index]) for index in members)
        found.append(AnswerClass(answer=str(answers[members[0]]), members=members, mass=mass))
    votes = sum(len(item.members) for item in found)
    if not found:
        return Vote(classes=(), winner=None, votes=0, margin=0.0, abstention="few_votes")
    winner = max(range(len(found)), key=lambda number: found[number].mass)
    mass = found[winner].mass
    margin = mass - max((item.mass for number, item in enumerate(found) if number != winner), default=0.0)
    abstention: Abstention | None = None
    if votes < limits.votes:
        abstention = "few_votes"
    elif mass < limits.mass:
        abstention = "low_mass"
    elif margin < limits.margin:
        abstention = "small_margin"
    elif len(found[winner].members) < limits.agree * len(classes):
        abstention = "few_agree"
    return Vote(classes=tuple(found), winner=winner, votes=votes, margin=margin, abstention=abstention)


def vote_over_trajectories(
    trajectories: Sequence[Trajectory],
    fidelity: Float[np.ndarray, " N"],
    equivalent: Callable[[str, str], bool],
    *,
    most_calls: int,
    neighbours: Sequence[tuple[Sequence[str], float]] = (),
    similarity_weights: SimilarityWeights | None = None,
    score_weights: ScoreWeights | None = None,
    temperature: float = 0.1,
    limits: Limits | None = None,
) -> Vote:
    """Pixel TTRL's vote: trajectories that look at the same things, and see what is there, vote for their answers.

    Args:
      trajectories: samples of one question.
      fidelity: F of each, in [0, 1].
      equivalent: which answers are the same (`verifiers.equivalence`).
      most_calls: T_max.
      neighbours: operations of each retrieved exemplar, and its retrieval score.
      similarity_weights: of answers, operations and footprints.
      score_weights: of fidelity, support and length.
      temperature: of the softmax.
      limits: below which it abstains.

    Returns:
      The vote with scores, similarity and fidelity.
    """
    chex.assert_shape(fidelity, (len(trajectories),))
    answers = [counted_answer(trajectory) for trajectory in trajectories]
    classes = answer_classes(answers, equivalent)
    used = [operations(trajectory) for trajectory in trajectories]
    places = [footprint(trajectory) for trajectory in trajectories]
    matrix = similarity_matrix(classes, used, places, similarity_weights or SimilarityWeights())
    scores = score_trajectories(
        matrix,
        fidelity,
        np.array([neighbour_support(own, neighbours) for own in used]),
        np.array([len(trajectory.steps) for trajectory in trajectories], int),
        most_calls=most_calls,
        weights=score_weights or ScoreWeights(),
    )
    weights = softmax_weights(classes, np.array([score.total for score in scores]), temperature)
    return dataclasses.replace(
        decide(answers, classes, weights, limits or Limits()),
        scores=scores,
        similarity=tuple(tuple(map(float, row)) for row in matrix),
        fidelity=tuple(map(float, fidelity)),
    )
