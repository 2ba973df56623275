"""Rewards where they were earned, for credit a step instead of one advantage for a whole trajectory."""

import chex
import numpy as np
from jaxtyping import Float

from pixelis_jax.rewards.combine import Weights


def step_rewards(
    curiosity: Float[np.ndarray, " T"], pairs: Float[np.ndarray, " P"], penalties: Float[np.ndarray, " T"], weights: Weights
) -> Float[np.ndarray, " T"]:
    """Weighted shaping rewards by the step that earned them.

    Args:
      curiosity: of `curiosity_rewards`.
      pairs: of `pair_rewards`; each belongs to its later step, and their mean is what counts.
      penalties: of `step_penalties`.
      weights: of the three.

    Returns:
      One reward a step. Their sum is that of the weighted parts of `combine`, but for the coherence of a trajectory without
      pairs, which no step earned and which belongs to the terminal reward.
    """
    chex.assert_rank([curiosity, pairs, penalties], 1)
    chex.assert_equal_shape([curiosity, penalties])
    chex.assert_shape(pairs, (max(len(curiosity) - 1, 0),))
    rewards = weights.curiosity * curiosity - weights.penalty * penalties
    rewards[1:] += weights.coherence * pairs / max(len(pairs), 1)
    return rewards


def turn_returns(rewards: Float[np.ndarray, " T"], terminal: float) -> Float[np.ndarray, " T+1"]:
    """Reward earned from each turn on, `sum_{s >= t} r_s + terminal`, undiscounted.

    Args:
      rewards: earned by the call of each of the turns 0..T-1.
      terminal: earned by the answer, which is turn T.

    Returns:
      One return a turn: the first is the whole trajectory's, the last the answer's.
    """
    chex.assert_rank(rewards, 1)
    return np.cumsum([terminal, *rewards[::-1]])[::-1]
