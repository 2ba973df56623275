"""Splash attention on meshes: traced for devices that are not there."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh

from pixelis_jax.policy import ConfigError, attention
from pixelis_jax.sharding import MESH_AXES


def trace(heads, key_heads, *, tokens=512, **axes):
    mesh = AbstractMesh(tuple(axes.get(name, 1) for name in MESH_AXES), tuple(MESH_AXES))
    q, k = (jax.ShapeDtypeStruct((4, count, tokens, 64), jnp.bfloat16) for count in (heads, key_heads))
    segments = jax.ShapeDtypeStruct((4, tokens), jnp.int32)
    with jax.sharding.use_abstract_mesh(mesh):
        return jax.eval_shape(lambda q, k, s: attention.splash(q, k, k, s, causal=True), q, k, segments)


@pytest.mark.parametrize(
    "axes", [{"fsdp": 2}, {"tensor": 2}, {"context": 2}, {"data": 2, "tensor": 2, "context": 2}, {"tensor": 8}]
)
def test_heads_and_tokens_are_split(axes):
    assert trace(8, 8, **axes).shape == (4, 8, 512, 64)


def test_key_heads_that_cannot_be_split_alike_are_refused():
    with pytest.raises(ConfigError, match="2 key heads cannot be split like 8 query heads"):
        trace(8, 2, tensor=4)


def test_a_length_that_the_kernel_does_not_take_is_refused():
    with pytest.raises(ConfigError, match="multiples of 128 tokens, got 500"):
        trace(8, 8, tokens=500, fsdp=2)
