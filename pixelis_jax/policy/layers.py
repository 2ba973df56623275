"""Layers shared by the vision tower and the language model.

Every parameter carries the metadata ``logical_axes``: one name (or None) a dimension, which `pixelis_jax.sharding`
turns into a placement on a mesh.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from pixelis_jax.policy.config import Precision

# Added to the scores of hidden keys. Finite, so that a row that sees nothing (padding) gives a finite result.
HIDDEN = -1e30


class Linear(nnx.Module):
    """Affine map over the last axis, ``[..., in] -> [..., out]``."""

    def __init__(
        self,
        in_size: int,
        out_size: int,
        *,
        axes: tuple[str | None, str | None],
        bias: bool,
        stddev: float,
        precision: Precision,
        rngs: nnx.Rngs,
    ):
        kernel = jax.random.normal(rngs.params(), (in_size, out_size), precision.params) * stddev
        self.kernel = nnx.Param(kernel, logical_axes=axes)
        self.bias = nnx.Param(jnp.zeros(out_size, precision.params), logical_axes=axes[1:]) if bias else None
        self.compute = precision.compute

    def __call__(self, x: jax.Array) -> jax.Array:
        # Two dimensions: XLA's CPU backend is up to three times slower on the gradients of a batched product.
        flat = x.reshape(-1, x.shape[-1]).astype(self.compute)
        y = flat @ self.kernel[...].astype(self.compute)
        if self.bias is not None:
            y += self.bias[...].astype(self.compute)
        return y.reshape(*x.shape[:-1], -1)


class RMSNorm(nnx.Module):
    """Root-mean-square normalisation with a learned scale (Zhang and Sennrich, https://arxiv.org/abs/1910.07467)."""

    def __init__(self, size: int, *, eps: float, precision: Precision):
        self.scale = nnx.Param(jnp.ones(size, precision.params), logical_axes=(None,))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        wide = x.astype(jnp.float32)
        wide *= jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        return wide.astype(x.dtype) * self.scale[...].astype(x.dtype)


class LayerNorm(nnx.Module):
    """Layer normalisation with scale and bias (Ba et al., https://arxiv.org/abs/1607.06450)."""

    def __init__(self, size: int, *, precision: Precision, eps: float = 1e-6):
        self.scale = nnx.Param(jnp.ones(size, precision.params), logical_axes=(None,))
        self.bias = nnx.Param(jnp.zeros(size, precision.params), logical_axes=(None,))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        wide = x.astype(jnp.float32)
        wide -= jnp.mean(wide, axis=-1, keepdims=True)
        wide *= jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        return (wide * self.scale[...].astype(jnp.float32) + self.bias[...].astype(jnp.float32)).astype(x.dtype)


def gelu_tanh(x: jax.Array) -> jax.Array:
    """GELU in its tanh approximation, used by the vision MLP."""
    return jax.nn.gelu(x, approximate=True)


def gelu_exact(x: jax.Array) -> jax.Array:
    """GELU by the error function, used by the mergers."""
    return jax.nn.gelu(x, approximate=False)


def softmax(scores: jax.Array, dtype: DTypeLike) -> jax.Array:
    """Softmax over the last axis, reduced in float32 and returned as `dtype`."""
    return jax.nn.softmax(scores.astype(jnp.float32), axis=-1).astype(dtype)
