"""Masked imitation of demonstrated trajectories (algorithms.md, section 1)."""

import chex
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pixelis_jax.losses.averages import weighted_mean


def token_weights(roles: Int[Array, " N"], mask: Float[Array, " N"], role_weights: Float[Array, " R"]) -> Float[Array, " N"]:
    """Weighs each token by its role: `m_t w(role_t)`.

    Args:
      roles: role code of each token, in `[0, R)`.
      mask: 1 for an imitated token; 0 on prompt, observation, padding and steps that are only context.
      role_weights: weight of each role code.

    Returns:
      Weights of the tokens.
    """
    chex.assert_equal_shape([roles, mask])
    chex.assert_rank(role_weights, 1)
    return mask * jnp.asarray(role_weights)[roles]


def imitation_loss(log_probs: Float[Array, "*n"], weights: Float[Array, "*n"]) -> Float[Array, ""]:
    """Weighted negative log-likelihood, `sum_t w_t * -log p_t / sum_t w_t`.

    Args:
      log_probs: log-probability of each demonstrated token.
      weights: weight of each token (`token_weights`), not negative.

    Returns:
      The loss; 0 where no token has a weight.
    """
    return -weighted_mean(log_probs, weights)
