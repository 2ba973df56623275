"""Layers of one shape: kept one by one, or stacked and scanned, with or without recomputation in the backward pass."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

M = TypeVar("M", bound=nnx.Module)


def stack(modules: Sequence[M]) -> M:
    """Joins modules of one structure into one whose parameters have a leading axis ``layers``.

    Args:
      modules: at least one module; all with parameters of the same names and shapes.

    Returns:
      A module of the same class. It is no layer itself: only `scan` makes sense of its parameters.
    """
    graph = nnx.graphdef(modules[0])
    flat = [dict(nnx.to_flat_state(nnx.state(module))) for module in modules]
    joined = {}
    for path, variable in flat[0].items():
        axes = variable.get_metadata().get("logical_axes", (None,) * variable.ndim)
        value = jnp.stack([layer[path][...] for layer in flat])
        joined[path] = variable.replace(value, logical_axes=("layers", *axes))
    return nnx.merge(graph, nnx.from_flat_state(joined))


def scan(
    stacked: M,
    call: Callable[[M, Any, Any], tuple[Any, Any]],
    carry: Any,
    xs: Any = None,
    *,
    remat: str = "none",
    start: int = 0,
    stop: int | None = None,
) -> tuple[Any, Any]:
    """Runs layers one after the other as one `jax.lax.scan`.

    Args:
      stacked: what `stack` returned.
      call: (layer, carry, x) -> (carry, y).
      carry: goes in at the first layer.
      xs: leaves ``[layers, ...]``, a slice for each layer.
      remat: as `Execution.remat`.
      start: first layer.
      stop: the layer behind the last one; all by default.

    Returns:
      The last carry, and all y stacked.
    """
    graph, state = nnx.split(stacked)
    if start or stop is not None:
        state = jax.tree.map(lambda x: x[start:stop], state)

    def body(carry: Any, inputs: Any) -> tuple[Any, Any]:
        layer_state, x = inputs
        return call(nnx.merge(graph, layer_state), carry, x)

    # A scan is a loop, so its body cannot be merged with its own recomputation.
    return jax.lax.scan(checkpoint(body, remat, prevent_cse=False), carry, (state, xs))


def run(
    layer: M, call: Callable[[M, Any, Any], tuple[Any, Any]], carry: Any, x: Any = None, *, remat: str = "none"
) -> tuple[Any, Any]:
    """Runs one layer: like `scan` over a stack of one, without the axis."""
    if remat == "none":
        return call(layer, carry, x)
    graph, state = nnx.split(layer)
    return checkpoint(lambda state, carry, x: call(nnx.merge(graph, state), carry, x), remat)(state, carry, x)


def checkpoint(function: Callable[..., Any], remat: str, *, prevent_cse: bool = True) -> Callable[..., Any]:
    """Makes the backward pass compute a function again; `remat` as in `Execution`."""
    if remat == "none":
        return function
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if remat == "dots" else None
    return jax.checkpoint(function, policy=policy, prevent_cse=prevent_cse)
