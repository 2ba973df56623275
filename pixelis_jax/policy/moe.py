"""A mixture of experts in place of the feed-forward block: each token meets the few experts that its router chooses.

Exact: no capacity limit, no token is dropped. Tokens are sorted by expert and every expert multiplies its own run of rows
(`jax.lax.ragged_dot`, or where TPU kernels are asked for JAX's ``megablox``). On a mesh, experts are split over the axis
``expert``: its devices see each other's tokens, each computes what its own experts add, and the sums return to where the tokens
live.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental.pallas.ops.tpu import megablox

from pixelis_jax import sharding
from pixelis_jax.policy.attention import LANES
from pixelis_jax.policy.config import Precision, TextConfig


class MixtureOfExperts(nnx.Module):
    """Router and experts of one decoder layer."""

    def __init__(self, config: TextConfig, *, precision: Precision, rngs: nnx.Rngs):
        experts, size, wide = config.num_experts, config.hidden_size, config.moe_intermediate_size

        def draw(*shape: int) -> jax.Array:
            return jax.random.normal(rngs.params(), shape, precision.params) * config.initializer_range

        self.router = nnx.Param(draw(size, experts), logical_axes=("embed", None))
        # Gate and up have an axis of their own, so that the width can be sharded.
        self.gate_up = nnx.Param(draw(experts, size, 2, wide), logical_axes=("expert", "embed", None, "mlp"))
        self.down = nnx.Param(draw(experts, wide, size), logical_axes=("expert", "mlp", "embed"))
        self.chosen = config.num_experts_per_tok
        self.compute = precision.compute

    def __call__(self, x: jax.Array, *, kernel: bool = False) -> jax.Array:
        """Maps ``[B, T, D]`` to ``[B, T, D]``; `kernel` as in `mix`."""
        weights, experts = self.route(x)
        arrays = (x, weights, experts, self.gate_up[...].astype(self.compute), self.down[...].astype(self.compute))
        if not sharding.distributed():
            return mix(*arrays, kernel=kernel)
        mesh = jax.sharding.get_abstract_mesh()
        tokens = sharding.partition_spec(("batch", "length", None), x.shape, mesh)
        gate_up = sharding.partition_spec(("expert", "embed", None, "mlp"), arrays[3].shape, mesh)
        down = sharding.partition_spec(("expert", "mlp", "embed"), arrays[4].shape, mesh)
        mixing = functools.partial(
            mix,
            expert_axis=sharding.only_axis(gate_up[0]),
            width_axis=sharding.only_axis(gate_up[3]),
            gathered="expert" in (tokens[0] or ()),
            kernel=kernel,
        )

        def local(x: jax.Array, weights: jax.Array, experts: jax.Array, *kernels: jax.Array) -> jax.Array:
            # Gathered in here (fully sharded data parallelism), so that the gradient is scattered as it is summed.
            return mixing(x, weights, experts, _gather(kernels[0], gate_up[1], 1), _gather(kernels[1], down[2], 2))

        specs = (tokens, tokens, tokens, gate_up, down)
        return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=tokens, check_vma=False)(*arrays)

    def route(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Chooses experts.

        Args:
          x: ``[B, T, D]``.

        Returns:
          Weights that sum to one, ``[B, T, k]``, and the experts that they belong to, int32 ``[B, T, k]``.
        """
        weights, experts = jax.lax.top_k(jax.nn.softmax(self._logits(x), axis=-1), self.chosen)
        return (weights / weights.sum(axis=-1, keepdims=True)).astype(x.dtype), experts

    def margin(self, x: jax.Array) -> jax.Array:
        """Says how close a choice was: how far the router's logit of the last chosen expert lies above the first one left out.

        Another order of summation moves logits by about 1e-6 (float32): with a smaller margin it may choose another expert.

        Args:
          x: ``[B, T, D]``.

        Returns:
          float32 ``[B, T]``; infinite where every expert is chosen.
        """
        if self.chosen == self.router.shape[-1]:
            return jnp.full(x.shape[:2], jnp.inf, jnp.float32)
        best = jax.lax.top_k(self._logits(x), self.chosen + 1)[0]
        return best[..., -2] - best[..., -1]

    def _logits(self, x: jax.Array) -> jax.Array:
        return (x @ self.router[...].astype(self.compute)).astype(jnp.float32)


def mix(
    x: jax.Array,
    weights: jax.Array,
    experts: jax.Array,
    gate_up: jax.Array,
    down: jax.Array,
    *,
    expert_axis: str | None = None,
    width_axis: str | None = None,
    gathered: bool = False,
    kernel: bool = False,
) -> jax.Array:
    """Sums what the chosen experts say of each token.

    Args:
      x: ``[B, T, D]``.
      weights: ``[B, T, k]``.
      experts: numbers among all experts, ``[B, T, k]``.
      gate_up: of the E experts that live here, ``[E, D, 2, I]``.
      down: ``[E, I, D]``.
      expert_axis: mesh axis over which experts are split, inside a `jax.shard_map`.
      width_axis: mesh axis over which I is split.
      gathered: the batch is split over the expert axis too, so its devices must see each other's tokens.
      kernel: products by Pallas kernels (TPU only), where the kernels take as many rows.

    Returns:
      ``[B, T, D]``.
    """
    shape = x.shape
    if expert_axis and gathered:
        x, weights, experts = (jax.lax.all_gather(a, expert_axis, axis=0, tiled=True) for a in (x, weights, experts))
    flat, chosen, count = x.reshape(-1, shape[-1]), experts.shape[-1], len(gate_up)
    first = jax.lax.axis_index(expert_axis) * count if expert_axis else 0
    number = experts.reshape(-1) - first
    # Choices of experts that live elsewhere go to the end, behind all groups.
    number = jnp.where((number >= 0) & (number < count), number, count)
    order = jnp.argsort(number, stable=True)
    inverse = jnp.argsort(order, stable=True)
    sizes = jnp.bincount(number, length=count + 1).astype(jnp.int32)
    multiply = _by_kernel if kernel and number.size % LANES == 0 else _by_runs

    rows = _permute(jnp.repeat(flat, chosen, axis=0), order, inverse)  # [N * k, D], by expert
    hidden = multiply(rows, gate_up.reshape(*gate_up.shape[:2], -1), sizes)
    gate, up = jnp.split(hidden, 2, axis=-1)
    said = multiply(jax.nn.silu(gate) * up, down, sizes)
    here = jnp.arange(len(said))[:, None] < len(said) - sizes[count]
    said = _permute(jnp.where(here, said, 0), inverse, order).reshape(-1, chosen, shape[-1])
    mixed = jnp.einsum("nkd,nk->nd", said, weights.reshape(-1, chosen)).reshape(x.shape)
    if width_axis:
        mixed = jax.lax.psum(mixed, width_axis)
    if expert_axis:
        if gathered:
            return jax.lax.psum_scatter(mixed, expert_axis, scatter_dimension=0, tiled=True)
        mixed = jax.lax.psum(mixed, expert_axis)
    return mixed


def _gather(x: jax.Array, axes: tuple[str, ...] | str | None, dimension: int) -> jax.Array:
    """A dimension that mesh axes split, whole; inside a `jax.shard_map`."""
    return jax.lax.all_gather(x, axes, axis=dimension, tiled=True) if axes else x


def _by_runs(rows: jax.Array, weights: jax.Array, sizes: jax.Array) -> jax.Array:
    """Multiplies each run of rows by the weights of its expert.

    Args:
      rows: ``[M, K]``, by expert; those of experts that live elsewhere come last, and what they get means nothing.
      weights: of the E experts that live here, ``[E, K, N]``.
      sizes: rows of each expert and of the rest, int32 ``[E + 1]``.

    Returns:
      ``[M, N]``.
    """
    return jax.lax.ragged_dot(rows, weights, sizes[: len(weights)])


def _by_kernel(rows: jax.Array, weights: jax.Array, sizes: jax.Array) -> jax.Array:
    """`_by_runs` by Pallas kernels: for the gradient of `jax.lax.ragged_dot` the TPU compiler multiplies with every expert."""
    return megablox.gmm(rows, weights, sizes, rows.dtype, _tiles)


def _tiles(rows: int, inner: int, outer: int) -> tuple[int, int, int]:
    """Tiles of a product ``[rows, inner] x [inner, outer]``: the largest that divide it and fit the core's memory."""

    def tile(size: int, most: int) -> int:
        return next((tile for tile in range(most, 0, -LANES) if size % tile == 0), min(size, most))

    return tile(rows, 512), tile(inner, 1024), tile(outer, 1024)


@jax.custom_vjp
def _permute(x: jax.Array, order: jax.Array, inverse: jax.Array) -> jax.Array:
    """``x[order]``, whose gradient is again a gather and not a scatter."""
    return x[order]


def _permute_forward(x: jax.Array, order: jax.Array, inverse: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return x[order], (order, inverse)


def _permute_backward(orders: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, np.ndarray, np.ndarray]:
    order, inverse = orders
    none = np.zeros(order.shape, jax.dtypes.float0)  # integers have no gradient
    return gradient[inverse], none, none


_permute.defvjp(_permute_forward, _permute_backward)
