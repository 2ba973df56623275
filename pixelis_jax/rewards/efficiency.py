"""A light prior for short chains of valid calls (algorithms.md, section 2)."""

import chex
import numpy as np
from jaxtyping import Bool, Float


def efficiency_penalty(valid: Bool[np.ndarray, " T"], *, most_calls: int) -> float:
    """`P = T / T_max + share of invalid calls`; 0 without calls.

    Args:
      valid: whether each call was valid (`trajectory.is_valid`).
      most_calls: T_max.

    Returns:
      The penalty, not negative.
    """
    chex.assert_rank(valid, 1)
    return len(valid) / most_calls + (float(1.0 - np.mean(valid)) if len(valid) else 0.0)


def step_penalties(valid: Bool[np.ndarray, " T"], *, most_calls: int) -> Float[np.ndarray, " T"]:
    """What each call adds to `efficiency_penalty`: `1 / T_max`, and `1 / T` if it is invalid.

    Args:
      valid: whether each call was valid.
      most_calls: T_max.

    Returns:
      One penalty a step.
    """
    chex.assert_rank(valid, 1)
    return 1.0 / most_calls + np.where(valid, 0.0, 1.0 / max(len(valid), 1))
