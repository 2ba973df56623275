"""Narrowing by hand, and draws against their probabilities."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pixelis_jax.rollout import sampling
from pixelis_jax.rollout.sampling import Sampling

PROBABILITIES = np.asarray([0.1, 0.4, 0.3, 0.2], np.float32)


def how(rows: int = 1, **fields: float) -> Sampling:
    asked = Sampling.create(rows)
    values = {"temperature": 1.0, "top_p": 1.0} | fields
    return dataclasses.replace(asked, **{name: jnp.full_like(getattr(asked, name), value) for name, value in values.items()})


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ({}, [0, 1, 2, 3]),
        ({"top_k": 2}, [1, 2]),
        ({"top_p": 0.5}, [1, 2]),  # 0.4 is not yet a half
        ({"top_p": 0.39}, [1]),
        ({"top_p": 0.0}, [1]),  # the most probable one always stays
        ({"min_p": 0.49}, [1, 2, 3]),  # at least half as probable as the first
        ({"min_p": 0.51}, [1, 2]),
        ({"top_k": 3, "min_p": 0.7}, [1, 2]),
    ],
)
def test_what_is_kept(fields, kept):
    found = sampling.narrow(jnp.log(PROBABILITIES)[None], how(**fields))[0]
    assert np.flatnonzero(np.isfinite(found)).tolist() == kept
    np.testing.assert_allclose(np.exp(found)[kept], PROBABILITIES[kept], rtol=1e-6)


def test_draws_have_the_probabilities_of_what_is_left():
    rows = 20_000
    keys = jax.vmap(jax.random.key_data)(jax.random.split(jax.random.key(0), rows))
    asked = dataclasses.replace(how(rows, top_k=3), key=keys)
    scaled = jnp.broadcast_to(jnp.log(PROBABILITIES), (rows, 4))
    tokens = sampling.choose(scaled, jnp.zeros(rows, jnp.int32), asked, draws=jnp.bool_(True), narrows=jnp.bool_(True))
    shares = np.bincount(tokens, minlength=4) / rows
    np.testing.assert_allclose(shares, [0, 4 / 9, 3 / 9, 2 / 9], atol=0.012)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=6, max_size=6, unique=True), st.integers(0, 5))
def test_a_row_depends_on_itself_alone(logits, sampled):
    one = jnp.asarray([logits], jnp.float32)
    other = jnp.concatenate([one, -one, one])
    counts = jnp.full(3, sampled, jnp.int32)
    flags = {"draws": jnp.bool_(True), "narrows": jnp.bool_(False)}
    alone = sampling.choose(one, counts[:1], how(), **flags)
    together = sampling.choose(other, counts, how(3), **flags)
    assert alone[0] == together[0] == together[2]


def test_bans_and_temperature():
    logits = jnp.log(jnp.broadcast_to(PROBABILITIES, (2, 4)))
    asked = dataclasses.replace(how(2), temperature=jnp.asarray([2.0, 0.0]), ban_tools=jnp.asarray([True, False]))
    found = np.asarray(sampling.scale(logits, jnp.asarray([True, False, False, False]), 2, asked))
    assert np.isneginf(found[0, [0, 2]]).all() and np.isneginf(found[1, 0]) and np.isfinite(found[1, 2])
    np.testing.assert_allclose(found[0, 1], np.log(0.4) / 2, rtol=1e-6)
    np.testing.assert_allclose(found[1, 1:], np.log(PROBABILITIES[1:]), rtol=1e-6)
