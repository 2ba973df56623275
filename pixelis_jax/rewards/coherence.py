"""Whether a step has to do with the one before it (algorithms.md, section 2)."""

import chex
import numpy as np
from jaxtyping import Bool, Float, Int


def background_cosine(features: Float[np.ndarray, "S D"], questions: Int[np.ndarray, " S"]) -> float | None:
    """Mean cosine of two steps of different questions: what two steps have in common without any coherence.

    From sums, not from pairs: over all pairs of different questions, `2 sum z_i z_j = |sum z|^2 - sum_q |sum_q z|^2`.

    Args:
      features: of all steps of a batch, each of length 1.
      questions: number of each step's question.

    Returns:
      The mean over all such pairs; None if there are none.
    """
    chex.assert_rank([features, questions], [2, 1])
    chex.assert_equal_shape_prefix([features, questions], 1)
    _, groups, counts = np.unique(questions, return_inverse=True, return_counts=True)
    sums = np.zeros((len(counts), features.shape[1]))
    np.add.at(sums, groups, np.asarray(features, np.float64))
    pairs = len(questions) ** 2 - int(np.square(counts).sum())
    if pairs == 0:
        return None
    return float((np.square(sums.sum(axis=0)).sum() - np.square(sums).sum()) / pairs)


def pair_rewards(
    features: Float[np.ndarray, "T D"],
    repeated: Bool[np.ndarray, " T"],
    background: float,
    *,
    ceiling: float = 0.95,
    least_width: float = 0.01,
) -> Float[np.ndarray, " P"]:
    """Rewards `clip((cos(z_t, z_{t+1}) - mu0) / (ceiling - mu0), -1, 1)` of adjacent steps; -1 where the later one is a repeat.

    The raw cosine is high for any two steps, and highest in a loop.

    Args:
      features: of the steps of one trajectory, each of length 1.
      repeated: whether a step's call repeats an earlier one.
      background: mu0, the running mean of `background_cosine`.
      ceiling: cosine from which a pair earns the full reward.
      least_width: least divisor, where mu0 comes near the ceiling or above it.

    Returns:
      One reward a pair, `P = max(T - 1, 0)`; that of steps t and t + 1 is earned by step t + 1.
    """
    chex.assert_rank([features, repeated], [2, 1])
    chex.assert_equal_shape_prefix([features, repeated], 1)
    features = np.asarray(features, np.float64)
    cosines = np.einsum("td,td->t", features[:-1], features[1:])
    rewards = np.clip((cosines - background) / max(ceiling - background, least_width), -1.0, 1.0)
    return np.where(repeated[1:], -1.0, rewards)


def coherence_reward(pairs: Float[np.ndarray, " P"], mean: float) -> float:
    """`R_coh`: mean over the pairs; without any, the running mean of `R_coh`, so that a second call is neither paid nor fined.

    Args:
      pairs: of `pair_rewards`.
      mean: running mean of the rewards of trajectories that have pairs (of the others it would only hear itself).

    Returns:
      A number in [-1, 1].
    """
    chex.assert_rank(pairs, 1)
    return float(pairs.mean()) if len(pairs) else mean
