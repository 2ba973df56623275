"""What a call is worth for what it may teach (algorithms.md, section 2)."""

import chex
import numpy as np
from jaxtyping import Bool, Float

from pixelis_jax import trajectory as trajectories


def counted_calls(trajectory: trajectories.Trajectory) -> Bool[np.ndarray, " T"]:
    """Which steps can earn curiosity: those whose call is valid and repeats none before it.

    Args:
      trajectory: with T steps.

    Returns:
      One bool a step.
    """
    repeated = trajectories.repeats(trajectory)
    steps = zip(trajectory.steps, repeated, strict=True)
    return np.array([trajectories.is_valid(step) and not again for step, again in steps], bool)


def curiosity_rewards(
    surprises: Float[np.ndarray, " T"], counted: Bool[np.ndarray, " T"], mean: float, *, most_calls: int, task: float
) -> Float[np.ndarray, " T"]:
    """Shares `min(1, surprise_t / mean) / most_calls` of the calls that count; their sum is `R_cur`.

    Args:
      surprises: of each call, not negative: `losses.disagreement` of the heads about what it shows or, as the paper says it,
        `losses.prediction_error` (which pays for noise for ever).
      counted: which calls earn anything (`counted_calls`); the others' surprises may be anything.
      mean: running mean of the same surprises. While it is 0 nothing is known to be surprising, and nothing is paid.
      most_calls: T_max, so that the reward of a whole trajectory is at most 1.
      task: `R_task`. Where it is exactly 0 the shares are halved; an answer that is partly right is not wrong.

    Returns:
      One share a step, 0 where a call does not count.
    """
    chex.assert_rank([surprises, counted], 1)
    chex.assert_equal_shape([surprises, counted])
    if mean <= 0:
        return np.zeros(len(counted))
    shares = np.minimum(np.where(counted, np.asarray(surprises, np.float64), 0.0) / mean, 1.0) / most_calls
    return shares / 2 if task == 0 else shares
