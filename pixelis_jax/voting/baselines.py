"""Votes and exemplars to compare with, and the advantages of option `grpo` (algorithms.md, section 3)."""

from collections.abc import Callable, Sequence

import chex
import numpy as np
from jaxtyping import Float

from pixelis_jax.voting.answers import answer_classes
from pixelis_jax.voting.vote import Limits, Vote, decide, softmax_weights

HARD = Limits(votes=1, mass=0.0, margin=0.0)
"""Abstains only if there is no answer."""


def majority(answers: Sequence[str | None], equivalent: Callable[[str, str], bool], limits: Limits = HARD) -> Vote:
    """Counts answers; a class's mass is its share of the votes.

    Args:
      answers: of the trajectories, None where it does not count (`counted_answer`).
      equivalent: which answers are the same.
      limits: `HARD` is the hard majority; `Limits(votes=1, mass=0, margin=m)` abstains where the winner leads by less than m of
        the votes.

    Returns:
      The vote; of equal classes the first wins.
    """
    classes = answer_classes(answers, equivalent)
    counts = np.array([answer is not None for answer in answers], float)
    return decide(answers, classes, counts / max(counts.sum(), 1.0), limits)


def answer_consistency(
    answers: Sequence[str | None],
    equivalent: Callable[[str, str], bool],
    *,
    temperature: float = 0.1,
    limits: Limits | None = None,
) -> Vote:
    """Answer-only self-consistency (Ans-SSC): what is left of the vote when it looks at answers alone.

    Self-consistency (https://arxiv.org/abs/2203.11171) counts answers. Here an answer's score is the share of the other
    trajectories that agree, and softmax and abstention are those of the vote over trajectories, so that the two differ in what
    they look at and in nothing else.

    Args:
      answers: of the trajectories, None where it does not count.
      equivalent: which answers are the same.
      temperature: of the softmax.
      limits: below which it abstains.
    """
    classes = answer_classes(answers, equivalent)
    counted = np.array([answer is not None for answer in answers], bool)
    same = np.equal.outer(classes, classes) & counted
    agreement = (same.sum(axis=1) - 1.0) / max(len(answers) - 1, 1)
    return decide(answers, classes, softmax_weights(classes, agreement, temperature), limits or Limits())


def process_scoring(
    answers: Sequence[str | None],
    equivalent: Callable[[str, str], bool],
    fidelity: Float[np.ndarray, " N"],
    *,
    temperature: float = 0.1,
    limits: Limits | None = None,
) -> Vote:
    """Process-reward scoring: a trajectory's score is its fidelity alone, whatever the others do.

    Args:
      answers: of the trajectories, None where it does not count.
      equivalent: which answers are the same.
      fidelity: F of each, in [0, 1].
      temperature: of the softmax.
      limits: below which it abstains.
    """
    classes = answer_classes(answers, equivalent)
    return decide(answers, classes, softmax_weights(classes, fidelity, temperature), limits or Limits())


def random_exemplar(vote: Vote, seed: int) -> int | None:
    """Any trajectory of the winning class, in place of `exemplar`; None if there is no winner."""
    return int(np.random.default_rng(seed).choice(vote.members)) if vote.members else None


def consensus_advantages(
    similarity: Float[np.ndarray, "N N"], members: Sequence[int], *, least_std: float = 0.25
) -> Float[np.ndarray, " N"]:
    """Advantages of option `grpo`: `(r - mean r) / max(std r, least_std)`, r_i = mean similarity to the winners other than i.

    They sum to 0 whatever won, so a group that agrees fully teaches nothing.

    Args:
      similarity: S, of `similarity_matrix`.
      members: trajectories of the winning class; of an empty one nobody has an advantage.
      least_std: least divisor, above 0, as in `losses.group_advantages`.

    Returns:
      The advantages.
    """
    count = len(similarity)
    chex.assert_shape(similarity, (count, count))
    if not members:
        return np.zeros(count)
    wins = np.zeros(count)
    wins[list(members)] = 1.0
    others = wins.sum() - wins  # winners other than i
    similarity = np.asarray(similarity, np.float64)
    rewards = (similarity @ wins - np.diagonal(similarity) * wins) / np.maximum(others, 1.0)
    centred = rewards - rewards.mean()
    return centred / max(float(centred.std()), least_std)
