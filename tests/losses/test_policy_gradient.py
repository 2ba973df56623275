"""The clipped policy gradient and group advantages against numbers worked out by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixelis_jax import losses


@pytest.mark.parametrize("jit", [False, True])
def test_loss_by_hand(jit: bool) -> None:
    function = jax.jit(losses.clipped_policy_gradient) if jit else losses.clipped_policy_gradient
    ratios = np.array([1.0, 1.5, 0.5, 1.5, 0.5, 1.25, 3.0], np.float32)
    advantages = np.array([1.0, 1.0, 1.0, -1.0, -1.0, 2.0, 5.0], np.float32)
    weights = np.array([1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0], np.float32)
    old = np.full(7, -2.0, np.float32)
    loss, terms = function(old + np.log(ratios), old, advantages, weights)
    # r A = 1; clipped to 1.28; 0.5 (the minimum is the unclipped one); -1.5 likewise; clipped to -0.8; 2.5; no action token.
    np.testing.assert_allclose(loss, -(1.0 + 1.28 + 0.5 - 1.5 - 0.8 + 2.5) / 6, rtol=1e-5)
    np.testing.assert_array_equal(terms.clipped, [False, True, False, False, True, False, False])
    np.testing.assert_allclose(terms.clip_share, 2 / 6, rtol=1e-6)
    np.testing.assert_allclose(terms.log_ratios, [*np.log(ratios[:-1]), 0.0], rtol=1e-5, atol=1e-6)
    # k3 of r is r - 1 - log r; those of 1.5 and 0.5 come twice.
    k3 = 2 * (0.5 - np.log(1.5)) + 2 * (-0.5 - np.log(0.5)) + 0.25 - np.log(1.25)
    np.testing.assert_allclose(terms.old_kl, k3 / 6, rtol=1e-4)


def test_the_limits_are_the_callers() -> None:
    log_probs, weights = jnp.log(jnp.array([1.5, 0.5])), jnp.ones(2)
    loss, _ = losses.clipped_policy_gradient(
        log_probs, jnp.zeros(2), jnp.array([1.0, -1.0]), weights, clip_low=0.3, clip_high=0.4
    )
    np.testing.assert_allclose(loss, -(1.4 - 0.7) / 2, rtol=1e-6)


def test_gradient_is_that_of_the_ratio_and_stops_at_the_clip() -> None:
    def loss(log_probs, advantages):
        return losses.clipped_policy_gradient(log_probs, jnp.zeros(5), advantages, jnp.array([1.0, 1.0, 1.0, 1.0, 0.0]))[0]

    log_probs, advantages = jnp.log(jnp.array([1.0, 1.1, 1.5, 0.5, 1.0])), jnp.array([2.0, 1.0, 1.0, -1.0, 1.0])
    np.testing.assert_allclose(jax.grad(loss)(log_probs, advantages), [-2.0 / 4, -1.1 / 4, 0.0, 0.0, 0.0], rtol=1e-6)


@pytest.mark.parametrize("jit", [False, True])
def test_what_stands_at_unused_tokens_makes_no_nan(jit: bool) -> None:
    def loss(log_probs):
        old = jnp.array([-1.0, losses.BANNED_LOGIT, 0.0, jnp.nan])
        return losses.clipped_policy_gradient(
            log_probs, old, jnp.array([1.0, 1.0, jnp.nan, 1.0]), jnp.array([1.0, 0.0, 0.0, 0.0])
        )[0]

    function = jax.value_and_grad(loss)
    value, gradient = (jax.jit(function) if jit else function)(jnp.array([-1.0, -1.0, losses.BANNED_LOGIT, 0.0]))
    assert value == -1
    np.testing.assert_array_equal(gradient, [-1.0, 0.0, 0.0, 0.0])


def test_no_weight_no_loss() -> None:
    loss, terms = losses.clipped_policy_gradient(*jnp.ones((3, 2, 4)), jnp.zeros((2, 4)))
    assert loss == 0 and terms.clip_share == 0 and terms.old_kl == 0 and terms.clipped.shape == (2, 4)


@pytest.mark.parametrize("jit", [False, True])
def test_k3_is_unbiased_and_not_negative(jit: bool) -> None:
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.2, 0.6])
    estimates = (jax.jit(losses.k3) if jit else losses.k3)(jnp.log(q / p))
    assert (estimates >= 0).all()
    np.testing.assert_allclose((p * estimates).sum(), (p * np.log(p / q)).sum(), rtol=1e-5)


def test_advantages_by_hand() -> None:
    rewards = np.array([[1.0, 0.0, 1.0, 0.0], [1.0, 1.1, 0.9, 1.0], [1.0, 0.0, np.nan, 0.5], [0.3, np.nan, 9.0, 9.0], [1.0] * 4])
    valid = np.array([[True] * 4, [True] * 4, [True, True, False, True], [True, False, False, False], [False] * 4])
    std = np.sqrt(1 / 6)  # of 1, 0, 0.5
    expected = [
        [1.0, -1.0, 1.0, -1.0],  # the standard deviation is 0.5
        [0.0, 0.4, -0.4, 0.0],  # it is 0.07: shaping alone stays small
        [0.5 / std, -0.5 / std, 0.0, 0.0],
        [0.0] * 4,
        [0.0] * 4,
    ]
    np.testing.assert_allclose(losses.group_advantages(rewards, valid), expected, atol=1e-12)
    np.testing.assert_allclose(losses.group_advantages(rewards[:1], valid[:1], least_std=1.0), [[0.5, -0.5, 0.5, -0.5]])


@given(st.lists(st.tuples(st.floats(-2, 2), st.booleans()), min_size=1, max_size=9))
def test_advantages_sum_to_zero_and_ignore_invalid_trajectories(group: list[tuple[float, bool]]) -> None:
    rewards, valid = np.array([[reward for reward, _ in group]]), np.array([[mask for _, mask in group]])
    advantages = losses.group_advantages(rewards, valid)
    assert abs(advantages.sum()) < 1e-9 and not advantages[~valid].any()
    alone = losses.group_advantages(rewards[:, valid[0]], valid[:, valid[0]])
    np.testing.assert_allclose(advantages[valid], alone[0], atol=1e-12)


def test_zero_spread() -> None:
    rewards = np.array([[1.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.5, np.nan, 0.7], [np.nan] * 3])
    valid = np.array([[True, True, False], [True] * 3, [True, False, False], [False] * 3])
    np.testing.assert_array_equal(losses.zero_spread(rewards, valid), [True, False, True, True])


@pytest.mark.parametrize("function", [losses.group_advantages, losses.zero_spread])
def test_shapes_must_agree(function: functools.partial) -> None:
    with pytest.raises(AssertionError):
        function(np.zeros((2, 3)), np.ones((3, 2), bool))


def test_turn_advantages_by_hand():
    # Whole trajectories earn 2.0, 1.0 and 0.0 (the last does not count): std 0.5 over the first two.
    returns = [np.array([2.0, 1.5, 1.0]), np.array([1.0]), np.array([0.0, 5.0])]
    valid = np.array([True, True, False])
    found = losses.turn_advantages(returns, valid, least_std=0.25)
    # Baselines: 1.5; then 1.5 and, of the second's last turn, 1.0; then 1.0 and 1.0.
    np.testing.assert_allclose(found[0], [1.0, 0.5, 0.0])
    np.testing.assert_allclose(found[1], [-1.0])
    assert found[2].tolist() == [0.0, 0.0]
    np.testing.assert_allclose(losses.turn_advantages(returns, valid, least_std=1.0)[1], [-0.5])
    assert [row.tolist() for row in losses.turn_advantages(returns, np.zeros(3, bool))] == [[0, 0, 0], [0], [0, 0]]


def test_where_nothing_is_earned_on_the_way_turns_share_the_trajectory_s_advantage():
    rewards = np.array([[1.0, 0.0, 1.0]])
    valid = np.ones((1, 3), bool)
    found = losses.turn_advantages([np.full(2, value) for value in rewards[0]], valid[0])
    expected = losses.group_advantages(rewards, valid)[0]
    np.testing.assert_allclose([row[0] for row in found], expected)
    np.testing.assert_allclose([row[1] for row in found], expected)
