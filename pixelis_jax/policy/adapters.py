"""Low-rank adapters of a model: which parameters they are, their first values, and folding them into the weights.

Hu et al., https://arxiv.org/abs/2106.09685.
"""

from collections.abc import Hashable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from pixelis_jax.policy import quantization
from pixelis_jax.policy.layers import Linear
from pixelis_jax.policy.model import Qwen3VL
from pixelis_jax.sharding import parameter_sharding


def is_adapter(path: Sequence[Hashable]) -> bool:
    """Whether a parameter's path names part of an adapter."""
    return str(path[-1]).startswith("lora_")


def init_adapters(model: Qwen3VL, key: jax.Array, mesh: Mesh | None = None) -> None:
    """Gives adapters their first values, in place: ``a`` of standard deviation 1/sqrt(in), ``b`` zero.

    Args:
      model: a model with adapters, which may be shapes without numbers.
      key: of the draw; every adapter draws from a key of its own.
      mesh: where to place them; None leaves them on the default device.
    """
    # Scales do not count, so that adapters beside a base in few bits draw what they draw beside any other.
    nodes = ((path, node) for path, node in nnx.iter_graph(model) if not path or path[-1] != "kernel_scale")
    for number, (path, node) in enumerate(nodes):
        if not isinstance(node, nnx.Param) or not is_adapter(path):
            continue
        placement = None if mesh is None else parameter_sharding(node, mesh)
        if path[-1] == "lora_a":
            value = jax.random.normal(jax.random.fold_in(key, number), node.shape, node.dtype) * node.shape[-2] ** -0.5
        else:
            value = jnp.zeros(node.shape, node.dtype)
        node.set_value(value if placement is None else jax.device_put(value, placement))


def merge_adapters(model: Qwen3VL) -> Qwen3VL:
    """Returns a model without adapters that computes the same: ``kernel + a b alpha / rank``.

    A base in few bits is dequantised on the way: all kernels are in the format of the other parameters.

    Args:
      model: left as it is.
    """
    merged = nnx.clone(model)
    for _, node in nnx.iter_graph(merged):
        if isinstance(node, Linear) and node.lora_a is not None and node.lora_b is not None:
            added = jnp.matmul(node.lora_a[...].astype(jnp.float32), node.lora_b[...].astype(jnp.float32)) * node.lora_scale
            node.kernel.set_value((_kernel(node) + added).astype(merged.precision.params))
            node.lora_a = node.lora_b = node.kernel_scale = None
    merged.lora = None
    return merged


def _kernel(linear: Linear) -> jax.Array:
    """The float32 kernel ``[in, out]`` of a projection, or ``[layers, in, out]`` of a stack of them."""
    if linear.kernel_scale is None:
        return linear.kernel[...].astype(jnp.float32)
    dequantize = jax.vmap(quantization.dequantize) if linear.kernel.ndim == 3 else quantization.dequantize
    return dequantize(linear.kernel[...], linear.kernel_scale[...])
