"""Layers shared by the vision tower and the language model.

Every parameter carries the metadata ``logical_axes``: one name (or None) a dimension, which `pixelis_jax.sharding`
turns into a placement on a mesh.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from pixelis_jax import sharding
from pixelis_jax.policy import quantization
from pixelis_jax.policy.config import Precision

# Added to the scores of hidden keys. Finite, so that a row that sees nothing (padding) gives a finite result.
HIDDEN = -1e30


class Linear(nnx.Module):
    """Affine map over the last axis, ``[..., in] -> [..., out]``, with a low-rank adapter beside it where `lora` says so.

    The kernel is ``[in, out]``. With a `base` (one of `quantization.FORMATS`) it is stored in few bits, with ``kernel_scale``
    ``[in / tile, out]`` beside it, and no gradient reaches it.
    """

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
        lora_rank: int = 0,
        lora_alpha: float = 0.0,
        base: str = "",
    ):
        kernel = jax.random.normal(rngs.params(), (in_size, out_size), precision.params) * stddev
        scale = None
        if base:
            kernel, scale = quantization.quantize(kernel, base)
        self.kernel = nnx.Param(kernel, logical_axes=axes)
        self.kernel_scale = None if scale is None else nnx.Param(scale, logical_axes=axes)
        self.bias = nnx.Param(jnp.zeros(out_size, precision.params), logical_axes=axes[1:]) if bias else None
        # The second matrix starts at zero, so that an adapter changes nothing before it is trained.
        down = jax.random.normal(rngs.params(), (in_size, lora_rank), precision.params) * in_size**-0.5 if lora_rank else None
        up = jnp.zeros((lora_rank, out_size), precision.params)
        self.lora_a = None if down is None else nnx.Param(down, logical_axes=(axes[0], "lora"))
        self.lora_b = None if down is None else nnx.Param(up, logical_axes=("lora", axes[1]))
        self.lora_scale = lora_alpha / max(lora_rank, 1)
        self.compute = precision.compute
        self.axes = axes

    def __call__(self, x: jax.Array) -> jax.Array:
        shape = x.shape[:-1]
        x = x.astype(self.compute)
        if not sharding.distributed():
            # Two dimensions: XLA's CPU backend is up to three times slower on the gradients of a batched product. On a mesh, rows
            # and tokens stay apart, since a dimension that joins two split ones cannot itself be split.
            x = x.reshape(-1, x.shape[-1])
        if self.kernel_scale is None:
            y = x @ self.kernel[...].astype(self.compute)
        else:
            y = quantization.matmul(x, self.kernel[...], self.kernel_scale[...], self.axes)
        if self.bias is not None:
            y += self.bias[...].astype(self.compute)
        if self.lora_a is not None and self.lora_b is not None:
            y += (x @ self.lora_a[...].astype(self.compute)) @ self.lora_b[...].astype(self.compute) * self.lora_scale
        return y.reshape(*shape, -1)


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
