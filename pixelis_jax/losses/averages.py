"""A mean that is defined where nothing has a weight."""

import chex
import jax.numpy as jnp
from jaxtyping import Array, Float


def weighted_mean(values: Float[Array, "*n"], weights: Float[Array, "*n"]) -> Float[Array, ""]:
    """Computes `sum w x / sum w`.

    Args:
      values: finite, also where they have no weight.
      weights: not negative.

    Returns:
      The mean; 0 where nothing has a weight.
    """
    chex.assert_equal_shape([values, weights])
    total = jnp.sum(weights)
    return jnp.sum(weights * values) / jnp.where(total > 0, total, 1.0)
