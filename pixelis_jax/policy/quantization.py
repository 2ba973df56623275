"""Frozen kernels in few bits, and products with them (QLoRA, Dettmers et al., https://arxiv.org/abs/2305.14314).

The number formats are qwix's. Only the array level is used: values and scales are parameters of their own, so that stacking,
placement on a mesh and checkpoints treat them as any other.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import qwix
from jax.typing import DTypeLike

from pixelis_jax import sharding


@dataclasses.dataclass(frozen=True, kw_only=True)
class Format:
    """How a kernel is stored.

    Attributes:
      dtype: of the values.
      tile: inputs that share a scale, for each output; 0: all of them do.
    """

    dtype: DTypeLike
    tile: int

    def tile_of(self, in_size: int) -> int:
        """Inputs that share a scale in a kernel of `in_size` inputs: the tile, or the largest part of it that divides them."""
        return math.gcd(self.tile, in_size) if self.tile else in_size


FORMATS: Mapping[str, Format] = {
    # Rounding to 255 steps is so fine that a scale for each output is enough, and it costs nothing.
    "int8": Format(dtype=jnp.int8, tile=0),
    # 15 steps are not: an outlier would spoil its whole column. Blocks of 64, as in the paper.
    "int4": Format(dtype=jnp.int4, tile=64),
}
"""What `Lora.base` may say."""


@functools.partial(jax.jit, static_argnames="base")
def quantize(kernel: jax.Array, base: str) -> tuple[jax.Array, jax.Array]:
    """Rounds a kernel to a format of few bits.

    Args:
      kernel: ``[in, out]``, of any float format.
      base: one of `FORMATS`.

    Returns:
      Values ``[in, out]`` and float32 scales ``[in / tile, out]``, whose product is the kernel within half a step.
    """
    form = FORMATS[base]
    tiles = {0: form.tile_of(kernel.shape[0])}
    # In float32 whatever the kernel is: qwix takes the format of the scale, and of the division, from its argument.
    made = qwix.quantize(kernel.astype(jnp.float32), form.dtype, channelwise_axes=(1,), tiled_axes=tiles)
    return made.qvalue, made.scale


def dequantize(values: jax.Array, scale: jax.Array) -> jax.Array:
    """Returns the float32 kernel ``[in, out]`` that `quantize` stored."""
    return qwix.dequantize(qwix.QArray(values, scale))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def matmul(x: jax.Array, values: jax.Array, scale: jax.Array, axes: tuple[str | None, str | None] = (None, None)) -> jax.Array:
    """Product with a frozen kernel, which is brought to the format of `x` right before.

    Its gradient reaches `x` alone, and the backward pass dequantises again: as a residual, the kernel of every layer would lie in
    memory in the format of `x` between the two passes.

    Args:
      x: ``[..., in]``.
      values: ``[in, out]``, of `quantize`.
      scale: ``[in / tile, out]``.
      axes: logical names of the kernel's dimensions.

    Returns:
      ``[..., out]``, in the format of `x`.
    """
    return x @ _gathered(values, scale, axes).astype(x.dtype)


def _gathered(values: jax.Array, scale: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
    """The float32 kernel for one product.

    Its rows are gathered here (fully sharded data parallelism), in few bits: left to itself, the compiler sends what is already
    dequantised.
    """
    whole = tuple(None if "fsdp" in sharding.mesh_axes_of(name) else name for name in axes)
    values, scale = (sharding.constrain(array, *whole) for array in (values, scale))
    # Multiplied in float32 and rounded once by the caller; the compiler fuses both into the product or one pass before it.
    return dequantize(values, scale)


def _forward(
    x: jax.Array, values: jax.Array, scale: jax.Array, axes: tuple[str | None, str | None]
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return matmul(x, values, scale, axes), (values, scale)


def _backward(
    axes: tuple[str | None, str | None], kernel: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, None, None]:
    # Behind the barrier the compiler neither keeps the forward pass's kernel nor makes this one before it is needed.
    (values, scale), gradient = jax.lax.optimization_barrier((kernel, gradient))
    return gradient @ _gathered(values, scale, axes).astype(gradient.dtype).T, None, None


matmul.defvjp(_forward, _backward)
