"""Chunked log-probabilities: equal to the naive form, forward and backward, without its memory."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxprs import largest_array

from pixelis_jax import losses


def _naive(hidden, unembedding, targets, temperature, banned):
    logits = hidden @ unembedding.T / temperature
    logits = jnp.where(banned, losses.BANNED_LOGIT, logits)
    return jax.nn.log_softmax(logits)[jnp.arange(len(targets)), targets]


def _inputs(n=13, d=6, v=19):
    rng = np.random.default_rng(0)
    banned = np.zeros(v, bool)
    banned[[2, 17]] = True
    targets = rng.choice(np.flatnonzero(~banned), n)
    return rng.normal(size=(n, d)).astype(np.float32), rng.normal(size=(v, d)).astype(np.float32), targets, banned


def test_hand_computed() -> None:
    # Logits 0 and ln 3 give 1/4 and 3/4; at temperature 1/2 they are 0 and ln 9: 1/10 and 9/10.
    hidden, unembedding = jnp.ones((2, 1)), jnp.array([[0.0], [np.log(3.0)]])
    targets = jnp.array([0, 1])
    np.testing.assert_allclose(losses.token_log_probs(hidden, unembedding, targets), np.log([0.25, 0.75]), rtol=1e-6)
    sharp = losses.token_log_probs(hidden, unembedding, targets, temperature=0.5)
    np.testing.assert_allclose(sharp, np.log([0.1, 0.9]), rtol=1e-5)
    # With the second token banned the first is certain.
    only = losses.token_log_probs(hidden, unembedding, jnp.array([0, 0]), banned=jnp.array([False, True]))
    np.testing.assert_allclose(only, [0.0, 0.0], atol=1e-7)


@pytest.mark.parametrize(("chunk", "vocab_chunk"), [(1, 19), (4, 99), (13, 7), (64, 1)])
@pytest.mark.parametrize("jit", [False, True])
def test_equals_naive_form_for_any_chunk(chunk: int, vocab_chunk: int, jit: bool) -> None:
    hidden, unembedding, targets, banned = _inputs()
    function = functools.partial(losses.token_log_probs, temperature=0.7, banned=banned, chunk=chunk, vocab_chunk=vocab_chunk)
    function = jax.jit(function) if jit else function
    expected = _naive(hidden, unembedding, targets, 0.7, banned)
    np.testing.assert_allclose(function(hidden, unembedding, targets), expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("vocab_chunk", [24, 5])
def test_gradients_equal_those_of_the_naive_form(vocab_chunk: int) -> None:
    hidden, unembedding, targets, banned = _inputs(v=24)
    weights = np.linspace(0.0, 2.0, len(targets), dtype=np.float32)
    options = {"temperature": 0.7, "banned": banned, "chunk": 4, "vocab_chunk": vocab_chunk}

    def ours(h, u):
        return jnp.sum(weights * losses.token_log_probs(h, u, targets, **options))

    def naive(h, u):
        return jnp.sum(weights * _naive(h, u, targets, 0.7, banned))

    chex.assert_trees_all_close(
        jax.jit(jax.grad(ours, (0, 1)))(hidden, unembedding),
        jax.jit(jax.grad(naive, (0, 1)))(hidden, unembedding),
        rtol=1e-5,
        atol=1e-5,
    )


def test_rows_are_reduced_side_by_side() -> None:
    hidden, unembedding, targets, banned = _inputs(n=12)
    flat = losses.token_log_probs(hidden, unembedding, targets, banned=banned)
    rows = losses.token_log_probs(hidden.reshape(3, 4, -1), unembedding, targets.reshape(3, 4), banned=banned, chunk=3)
    np.testing.assert_allclose(rows.reshape(-1), flat, rtol=1e-6)


def test_a_banned_target_of_weight_zero_gives_no_nan() -> None:
    hidden, unembedding, targets, banned = _inputs()
    targets = np.where(np.arange(len(targets)) == 3, 2, targets)  # 2 is banned
    weights = (np.arange(len(targets)) != 3).astype(np.float32)

    def loss(h):
        return losses.imitation_loss(losses.token_log_probs(h, unembedding, targets, banned=banned), weights)

    value, gradient = jax.value_and_grad(loss)(hidden)
    assert np.isfinite(value) and np.isfinite(gradient).all()


def test_logits_of_the_whole_batch_never_exist() -> None:
    n, d, v, chunk, vocab_chunk = 4096, 8, 1000, 256, 250
    hidden, unembedding = jnp.zeros((n, d)), jnp.zeros((v, d))
    targets = jnp.zeros(n, jnp.int32)

    def ours(h, u):
        return losses.token_log_probs(h, u, targets, chunk=chunk, vocab_chunk=vocab_chunk).sum()

    def naive(h, u):
        return _naive(h, u, targets, 1.0, np.zeros(v, bool)).sum()

    # The largest legitimate array is one chunk's logits; the check itself must see the naive form's.
    assert largest_array(jax.make_jaxpr(jax.grad(ours, (0, 1)))(hidden, unembedding).jaxpr) == chunk * vocab_chunk
    assert largest_array(jax.make_jaxpr(jax.grad(naive, (0, 1)))(hidden, unembedding).jaxpr) >= n * v


@pytest.mark.parametrize("jit", [False, True])
def test_select_weighted(jit: bool) -> None:
    hidden = jnp.arange(10.0).reshape(5, 2)
    select = functools.partial(losses.select_weighted, capacity=4)
    selected = (jax.jit(select) if jit else select)(hidden, jnp.array([0.0, 2.0, 0.0, 1.0, 3.0]))
    np.testing.assert_array_equal(selected.positions, [1, 3, 4, 5])
    np.testing.assert_array_equal(selected.weights, [2.0, 1.0, 3.0, 0.0])
    np.testing.assert_array_equal(selected.hidden, [[2, 3], [6, 7], [8, 9], [0, 0]])


def test_loss_over_selected_positions_has_the_gradients_of_all_positions() -> None:
    hidden, unembedding, targets, banned = _inputs()
    weights = np.where(np.arange(len(targets)) % 3 == 0, 1.5, 0.0).astype(np.float32)

    def all_positions(h):
        return losses.imitation_loss(_naive(h, unembedding, targets, 1.0, banned), weights)

    def selected_positions(h):
        chosen = losses.select_weighted(h, weights, capacity=8)
        picked = jnp.asarray(targets)[jnp.minimum(chosen.positions, len(targets) - 1)]
        log_probs = losses.token_log_probs(chosen.hidden, unembedding, picked, banned=banned, chunk=4)
        return losses.imitation_loss(log_probs, chosen.weights)

    chex.assert_trees_all_close(
        jax.value_and_grad(selected_positions)(hidden), jax.value_and_grad(all_positions)(hidden), rtol=1e-5, atol=1e-6
    )
