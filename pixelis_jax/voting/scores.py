"""What a trajectory's vote is worth (algorithms.md, section 3, step 4)."""

import dataclasses
import math
from collections.abc import Sequence

import chex
import numpy as np
from jaxtyping import Float, Int

from pixelis_jax.voting.similarity import operation_similarity


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreWeights:
    """Weights beside that of the agreement, which is 1; `length` is subtracted."""

    fidelity: float = 0.5
    support: float = 0.2
    length: float = 0.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
    """A trajectory's score and what it is made of.

    Attributes:
      agreement: mean over the others of their fidelity times their similarity to this one.
      fidelity: `F`, times its weight.
      support: `N`, times its weight.
      length: `T / T_max`, times minus its weight.
      total: the sum of the four.
    """

    agreement: float
    fidelity: float
    support: float
    length: float
    total: float


def neighbour_support(operations: Sequence[str], neighbours: Sequence[tuple[Sequence[str], float]]) -> float:
    """`N_i`: similarity of a trajectory's operations to those of the neighbours, weighted by how well each was retrieved.

    Args:
      operations: of the trajectory.
      neighbours: operations that each neighbour's exemplar used, and its retrieval score; one below 0 weighs nothing.

    Returns:
      A number in [0, 1]; 0 without neighbours, or if none weighs anything.
    """
    shares = [max(float(relevance), 0.0) for _, relevance in neighbours]
    total = math.fsum(shares)
    if not total > 0:
        return 0.0
    likeness = [operation_similarity(operations, other) for other, _ in neighbours]
    return math.fsum(share * like for share, like in zip(shares, likeness, strict=True)) / total


def score_trajectories(
    similarity: Float[np.ndarray, "N N"],
    fidelity: Float[np.ndarray, " N"],
    support: Float[np.ndarray, " N"],
    lengths: Int[np.ndarray, " N"],
    *,
    most_calls: int,
    weights: ScoreWeights,
) -> tuple[Score, ...]:
    """Computes `score_i = mean_{j != i} S_ij F_j + w_F F_i + w_N N_i - w_T T_i / T_max`.

    Args:
      similarity: S, of `similarity_matrix`.
      fidelity: F, each in [0, 1].
      support: N, of `neighbour_support`.
      lengths: T, steps of each trajectory.
      most_calls: T_max.
      weights: of all but the agreement.

    Returns:
      One score a trajectory. The agreement of a trajectory that has no others is 0.
    """
    count = len(fidelity)
    chex.assert_shape(similarity, (count, count))
    chex.assert_shape([fidelity, support, lengths], (count,))
    shared = np.asarray(similarity, np.float64) * np.asarray(fidelity, np.float64)
    scores = []
    for i in range(count):
        parts = (
            # An exact sum, so that the order of the trajectories changes no bit of it.
            math.fsum(np.delete(shared[i], i)) / max(count - 1, 1),
            weights.fidelity * float(fidelity[i]),
            weights.support * float(support[i]),
            -weights.length * float(lengths[i]) / most_calls,
        )
        scores.append(Score(agreement=parts[0], fidelity=parts[1], support=parts[2], length=parts[3], total=math.fsum(parts)))
    return tuple(scores)
