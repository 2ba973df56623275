"""Masked imitation against numbers worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixelis_jax import losses

ROLE_WEIGHTS = np.array([0.0, 0.0, 1.0, 1.0, 3.0, 2.0, 1.5], np.float32)


@pytest.mark.parametrize("jit", [False, True])
def test_hand_computed(jit: bool) -> None:
    weigh = jax.jit(losses.token_weights) if jit else losses.token_weights
    loss = jax.jit(losses.imitation_loss) if jit else losses.imitation_loss
    # A thought, an operation, an argument of a step that is only context, an answer, a prompt token.
    weights = weigh(np.array([2, 4, 5, 6, 0]), np.array([1.0, 1.0, 0.0, 1.0, 1.0], np.float32), ROLE_WEIGHTS)
    np.testing.assert_array_equal(weights, [1.0, 3.0, 0.0, 1.5, 0.0])
    log_probs = jnp.array([-1.0, -2.0, -100.0, -4.0, -100.0])
    np.testing.assert_allclose(loss(log_probs, weights), (1.0 + 6.0 + 6.0) / 5.5, rtol=1e-6)


def test_no_weight_no_loss_and_no_nan() -> None:
    value, gradient = jax.value_and_grad(losses.imitation_loss)(jnp.array([-1.0, -2.0]), jnp.zeros(2))
    assert value == 0 and np.array_equal(gradient, [0.0, 0.0])


def test_gradient_is_the_normalised_weight() -> None:
    weights = jnp.array([1.0, 3.0, 0.0])
    gradient = jax.grad(losses.imitation_loss)(jnp.array([-1.0, -2.0, -3.0]), weights)
    np.testing.assert_allclose(gradient, [-0.25, -0.75, 0.0], rtol=1e-6)
