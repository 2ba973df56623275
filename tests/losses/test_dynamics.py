"""Curiosity's network: shapes, numbers by hand, heads of their own, and disagreement that learning removes."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pixelis_jax import losses


def test_every_head_begins_elsewhere() -> None:
    params = losses.init_dynamics(jax.random.key(0), 6, 3, hidden=16)
    chex.assert_shape(params["hidden"]["kernel"], (4, 9, 16))
    chex.assert_shape(params["output"]["kernel"], (4, 16, 6))
    for layer in params.values():
        for a in range(4):
            assert not layer["bias"][a].any()
            assert not any(np.allclose(layer["kernel"][a], layer["kernel"][b]) for b in range(a))
    chex.assert_trees_all_equal(params, losses.init_dynamics(jax.random.key(0), 6, 3, hidden=16))


def test_the_scale_of_the_kernels_is_that_of_one_head() -> None:
    params = losses.init_dynamics(jax.random.key(1), 90, 10, heads=3, hidden=200)
    np.testing.assert_allclose(params["hidden"]["kernel"].std(axis=(1, 2)), np.sqrt(2 / 100), rtol=0.05)
    np.testing.assert_allclose(params["output"]["kernel"].std(axis=(1, 2)), np.sqrt(1 / 200), rtol=0.05)


@pytest.mark.parametrize("jit", [False, True])
def test_prediction_by_hand(jit: bool) -> None:
    predict = jax.jit(losses.predict_features) if jit else losses.predict_features
    # Two heads; the first adds feature and action, the second takes the action from the feature, both behind the rectifier.
    params = {
        "hidden": {"kernel": jnp.array([[[1.0], [1.0]], [[1.0], [-1.0]]]), "bias": jnp.array([[0.0], [0.5]])},
        "output": {"kernel": jnp.array([[[2.0]], [[1.0]]]), "bias": jnp.array([[0.0], [10.0]])},
    }
    features, actions = jnp.array([[[1.0], [2.0]]]), jnp.array([[[1.0], [3.0]]])
    np.testing.assert_allclose(predict(params, features, actions), [[[[4.0], [10.0]]], [[[10.5], [10.0]]]])


@pytest.mark.parametrize("jit", [False, True])
def test_error_and_disagreement_by_hand(jit: bool) -> None:
    error, disagreement = losses.prediction_error, losses.disagreement
    if jit:
        error, disagreement = jax.jit(error), jax.jit(disagreement)
    predictions = jnp.array([[[0.0, 1.0], [2.0, 2.0]], [[2.0, 1.0], [2.0, 2.0]]])  # 2 heads, 2 actions
    targets = jnp.array([[0.0, 0.0], [2.0, 0.0]])
    np.testing.assert_allclose(error(predictions, targets), [(1.0 + 5.0) / 2, 4.0])
    # Wrong together is no disagreement.
    np.testing.assert_allclose(disagreement(predictions), [1.0, 0.0])


@pytest.mark.parametrize("jit", [False, True])
def test_the_loss_is_the_weighted_mean_of_the_errors(jit: bool) -> None:
    loss = jax.jit(losses.dynamics_loss) if jit else losses.dynamics_loss
    params = jax.tree.map(jnp.zeros_like, losses.init_dynamics(jax.random.key(0), 2, 1, heads=3, hidden=4))
    features, actions = jnp.ones((3, 2)), jnp.ones((3, 1))
    targets = jnp.array([[1.0, 2.0], [3.0, 0.0], [100.0, 100.0]])
    np.testing.assert_allclose(loss(params, features, actions, targets, jnp.array([1.0, 3.0, 0.0])), (5.0 + 27.0) / 4)
    assert loss(params, features, actions, targets, jnp.zeros(3)) == 0


def test_disagreement_goes_where_learning_went_and_error_stays_at_noise() -> None:
    rng = np.random.default_rng(0)
    features = np.eye(4, dtype=np.float32)[rng.integers(0, 3, 256)]  # the fourth is never seen
    actions = np.eye(2, dtype=np.float32)[rng.integers(0, 2, 256)]
    noise = rng.normal(size=256).astype(np.float32) * (features[:, 0] == 1)  # what follows the first cannot be predicted
    targets = np.roll(features, 1, axis=1) + noise[:, None] * np.array([0.0, 0.0, 0.0, 1.0], np.float32)
    params = losses.init_dynamics(jax.random.key(0), 4, 2, hidden=32)
    optimizer = optax.adam(1e-2)

    @jax.jit
    def step(params, state):
        gradients = jax.grad(losses.dynamics_loss)(params, features, actions, targets, np.ones(256, np.float32))
        updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for _ in range(300):
        params, state = step(params, state)
    noisy, known, _, unseen = np.eye(4, dtype=np.float32)[:, None].repeat(2, 1)
    both = np.eye(2, dtype=np.float32)
    spread = {
        name: float(losses.disagreement(losses.predict_features(params, x, both)).mean())
        for name, x in {"noisy": noisy, "known": known, "unseen": unseen}.items()
    }
    assert spread["noisy"] < 0.1 * spread["unseen"] and spread["known"] < 0.1 * spread["unseen"]
    errors = losses.prediction_error(losses.predict_features(params, features, actions), targets)
    assert errors[features[:, 0] == 1].mean() > 0.5 and errors[features[:, 1] == 1].mean() < 0.01
