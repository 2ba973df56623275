"""The chunked divergence: equal to the dense form, forward and backward, without its memory, on one device and split."""

import functools
import json
import os
import pathlib
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxprs import largest_array

from pixelis_jax import losses

_jitted = jax.jit(losses.token_kl, static_argnames="vocab_chunk")

SCRIPT = pathlib.Path(__file__).with_name("divergence_mesh.py")


def _dense(hidden, unembedding, reference_hidden, reference_unembedding, temperature, banned):
    def log_softmax(h, u):
        return jax.nn.log_softmax(jnp.where(banned, losses.BANNED_LOGIT, h @ u.T / temperature))

    ours, theirs = log_softmax(hidden, unembedding), log_softmax(reference_hidden, reference_unembedding)
    return jnp.where(banned, 0, jnp.exp(ours) * (ours - theirs)).sum(axis=-1)


def _inputs(n=13, d=6, e=4, v=24):
    rng = np.random.default_rng(0)
    banned = np.zeros(v, bool)
    banned[[2, 17]] = True
    arrays = [rng.normal(size=shape).astype(np.float32) for shape in ((n, d), (v, d), (n, e), (v, e))]
    return arrays, banned


@pytest.mark.parametrize("jit", [False, True])
def test_by_hand(jit: bool) -> None:
    # The policy gives 1/4 and 3/4, the reference 1/2 and 1/2.
    function = jax.jit(losses.token_kl) if jit else losses.token_kl
    one, two = jnp.ones((1, 1)), jnp.array([[0.0], [np.log(3.0)]])
    expected = 0.25 * np.log(0.5) + 0.75 * np.log(1.5)
    np.testing.assert_allclose(function(one, two, one, jnp.zeros((2, 1))), [expected], rtol=1e-6)
    # The other way round it is another number.
    np.testing.assert_allclose(function(one, jnp.zeros((2, 1)), one, two), [0.5 * np.log(2.0) + 0.5 * np.log(2 / 3)], rtol=1e-5)
    # With the second token banned both are certain of the first.
    assert function(one, two, one, jnp.zeros((2, 1)), banned=jnp.array([False, True])) == 0


@pytest.mark.parametrize(("chunk", "vocab_chunk"), [(1, 24), (4, 99), (13, 7), (64, 1)])
@pytest.mark.parametrize("jit", [False, True])
def test_equals_the_dense_form_for_any_chunk(chunk: int, vocab_chunk: int, jit: bool) -> None:
    arrays, banned = _inputs()
    function = functools.partial(losses.token_kl, temperature=0.7, banned=banned, chunk=chunk, vocab_chunk=vocab_chunk)
    function = jax.jit(function) if jit else function
    np.testing.assert_allclose(function(*arrays), _dense(*arrays, 0.7, banned), rtol=3e-6, atol=3e-6)


@pytest.mark.parametrize("vocab_chunk", [24, 5])
def test_gradients_equal_those_of_the_dense_form(vocab_chunk: int) -> None:
    arrays, banned = _inputs()
    weights = np.linspace(0.0, 2.0, len(arrays[0]), dtype=np.float32)
    options = {"temperature": 0.7, "banned": banned, "chunk": 4, "vocab_chunk": vocab_chunk}

    def ours(*arrays):
        return jnp.sum(weights * losses.token_kl(*arrays, **options))

    def dense(*arrays):
        return jnp.sum(weights * _dense(*arrays, 0.7, banned))

    gradients = jax.jit(jax.grad(ours, (0, 1, 2, 3)))(*arrays)
    chex.assert_trees_all_close(gradients[:2], jax.jit(jax.grad(dense, (0, 1)))(*arrays), rtol=1e-5, atol=1e-5)
    # A reference stands still.
    assert not any(np.any(gradient) for gradient in gradients[2:])


def test_rows_are_reduced_side_by_side() -> None:
    arrays, banned = _inputs(n=12)
    flat = losses.token_kl(*arrays, banned=banned)
    hidden, unembedding, reference, reference_unembedding = arrays
    rows = losses.token_kl(
        hidden.reshape(3, 4, -1), unembedding, reference.reshape(3, 4, -1), reference_unembedding, banned=banned, chunk=3
    )
    np.testing.assert_allclose(rows.reshape(-1), flat, rtol=1e-6)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([1e-3, 1.0, 30.0]), vocab_chunk=st.sampled_from([3, 12]))
def test_never_negative_and_zero_from_itself(seed: int, scale: float, vocab_chunk: int) -> None:
    rng = np.random.default_rng(seed)
    hidden, unembedding = rng.normal(size=(7, 5)).astype(np.float32), rng.normal(size=(12, 5)).astype(np.float32)
    other = (hidden + scale * rng.normal(size=hidden.shape)).astype(np.float32)
    banned = rng.random(12) < 0.3
    kl = _jitted(hidden, unembedding, other, unembedding, banned=banned, vocab_chunk=vocab_chunk)
    assert (kl >= 0).all() and np.isfinite(kl).all()
    # To a few units of the last place of the sums: an optimising compiler may add the two up in different orders.
    assert (_jitted(hidden, unembedding, hidden, unembedding, banned=banned, vocab_chunk=vocab_chunk) < 1e-6).all()


def test_a_small_divergence_keeps_its_digits() -> None:
    # Logits of about a hundred and a divergence of 1e-5: a difference of float32 normalisers is off by as much.
    ours, naive = [], []
    for seed in range(4):
        unembedding = np.random.default_rng(seed).normal(size=(50, 3)) * [10.0, 1.0, 0.0] + [0.0, 0.0, 100.0]
        hidden, other = np.ones((1, 3)), np.array([[1.0, 1.02, 1.0]])
        p, q = (np.exp(array @ unembedding.T - 100) for array in (hidden, other))
        exact = (p / p.sum() * np.log(p / p.sum() / (q / q.sum()))).sum()
        single = [np.asarray(array, np.float32) for array in (hidden, unembedding, other, unembedding)]
        ours.append(abs(losses.token_kl(*single)[0] - exact))
        logits, theirs = single[0] @ single[1].T, single[2] @ single[3].T
        normalisers = jax.nn.logsumexp(logits) - jax.nn.logsumexp(theirs)
        naive.append(abs((jax.nn.softmax(logits) * (logits - theirs)).sum() - normalisers - exact))
    assert max(ours) < 5e-7 < 2e-6 < max(naive)


@pytest.mark.parametrize("jit", [False, True])
def test_bfloat16_states_are_reduced_in_float32(jit: bool) -> None:
    arrays, banned = _inputs()
    half = [jnp.asarray(array, jnp.bfloat16) for array in arrays]
    function = functools.partial(losses.token_kl, banned=banned, vocab_chunk=8)
    kl = (jax.jit(function) if jit else function)(*half)
    assert kl.dtype == jnp.float32
    np.testing.assert_allclose(kl, _dense(*(x.astype(jnp.float32) for x in half), 1.0, banned), rtol=1e-5, atol=1e-5)
    gradients = jax.grad(lambda h, u: function(h, u, *half[2:]).sum(), (0, 1))(*half[:2])
    assert all(gradient.dtype == jnp.bfloat16 for gradient in gradients)


def test_logits_of_the_whole_batch_never_exist() -> None:
    n, d, v, chunk, vocab_chunk = 4096, 8, 1000, 256, 250
    hidden, unembedding = jnp.zeros((n, d)), jnp.zeros((v, d))

    def ours(h, u):
        return losses.token_kl(h, u, hidden, unembedding, chunk=chunk, vocab_chunk=vocab_chunk).sum()

    def dense(h, u):
        return _dense(h, u, hidden, unembedding, 1.0, np.zeros(v, bool)).sum()

    assert largest_array(jax.make_jaxpr(jax.grad(ours, (0, 1)))(hidden, unembedding).jaxpr) == chunk * vocab_chunk
    assert largest_array(jax.make_jaxpr(jax.grad(dense, (0, 1)))(hidden, unembedding).jaxpr) >= n * v


def test_states_and_vocabularies_must_agree() -> None:
    (hidden, unembedding, reference, reference_unembedding), _ = _inputs()
    with pytest.raises(AssertionError):
        losses.token_kl(hidden, unembedding, reference[:-1], reference_unembedding)
    with pytest.raises(AssertionError):
        losses.token_kl(hidden, unembedding, reference, reference_unembedding[:-1])


def test_split_over_eight_devices_it_is_the_same() -> None:
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "PYTHONPATH": str(SCRIPT.parents[2]),
    }
    done = subprocess.run([sys.executable, SCRIPT], env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["devices"] == 8
    assert result["kl"] < 1e-5 and result["gradients"] < 1e-5 and result["largest"] > 0.1, result
