"""Attention whose scores never exist as one array: behind a cache, page by page; in training on TPU, JAX's splash kernel.

FlashAttention: Dao et al., https://arxiv.org/abs/2205.14135; the kernel: ``jax.experimental.pallas.ops.tpu.splash_attention``.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.sharding import NamedSharding, PartitionSpec

from pixelis_jax import sharding
from pixelis_jax.policy.config import ConfigError
from pixelis_jax.policy.kv_cache import Pair
from pixelis_jax.policy.layers import HIDDEN

# Width of a TPU register: the kernel wants tokens and head widths in multiples of it.
LANES = 128
# Tokens that one step of the kernel holds; larger blocks read keys less often and need more of the core's memory.
BLOCK = 512
# Queries of a tile without a kernel, at least, and tiles of a sequence, at most: each is compiled on its own.
TILE = 128
TILES = 4

State = tuple[jax.Array, jax.Array, jax.Array]


def behind_cache(
    q: jax.Array,
    own: Pair,
    bias: tuple[jax.Array, ...] | None,
    tail: Pair | None,
    past: Pair,
    *,
    step: jax.Array | None,
    length: jax.Array,
    page: int,
    rows: jax.Array | None = None,
) -> jax.Array:
    """Attends to new tokens, to a tail, and to a cache, of which only the pages that some row has filled are read.

    What a row does not see adds exactly nothing to it, so the result of a row depends on that row alone, to the bit.

    Args:
      q: scaled queries, ``[B, H, M, Dh]``, one head a key head.
      own: keys and values of new tokens, each ``[B, H, N, Dh]``. Each query sees at least one of them.
      bias: added to scores on them, tile by tile (`by_tiles`); None: all are seen.
      tail: keys and values of a block's tokens, each ``[B, H, S, Dh]``.
      past: cached keys and values, each ``[B, H, C, Dh]``, or more rows, of which `rows` says which.
      step: tokens that the tail holds.
      length: cached tokens of each row, int32 ``[B]``.
      page: tokens that are read at a time; divides C.
      rows: of the cache, int32 ``[B]``; all by default.

    Returns:
      ``[B, H, M, Dh]``.
    """
    # A lone token's products are sums over Dh: a matrix product would be called once a row and head.
    lone = own[0].shape[2] == 1

    def begin(q: jax.Array, own: Pair, bias: jax.Array | None) -> State:
        found = jnp.sum(q.astype(jnp.float32) * own[0], axis=-1, keepdims=True) if lone else scores(q, own[0])
        found = found if bias is None else found + bias
        top = jnp.max(found, axis=-1, keepdims=True)
        weights = jnp.exp(found - top)
        mixed = weights * own[1].astype(jnp.float32) if lone else _mix(weights, own[1], q.dtype)
        return top, jnp.sum(weights, axis=-1, keepdims=True), mixed

    state = begin(q, own, None) if bias is None else by_tiles(begin, q, own, bias)

    def add(k: jax.Array, v: jax.Array, seen: jax.Array, state: State) -> State:
        top, total, mixed = state
        found = scores(q, k) + jnp.where(seen, jnp.float32(0), jnp.float32(HIDDEN))
        new_top = jnp.maximum(top, jnp.max(found, axis=-1, keepdims=True))
        weights, shrink = jnp.exp(found - new_top), jnp.exp(top - new_top)
        total = total * shrink + jnp.sum(weights, axis=-1, keepdims=True)
        return new_top, total, mixed * shrink + _mix(weights, v, q.dtype)

    def read(index: jax.Array, state: State) -> State:
        # The barrier keeps what is made of a lone page in the loop: outside, XLA would make it of an empty one, too.
        index, *page_source = jax.lax.optimization_barrier((index, *past))
        k, v = (jax.lax.dynamic_slice_in_dim(x, index * page, page, axis=2) for x in page_source)
        if rows is not None:
            k, v = (jnp.take(x, rows, axis=0, mode="clip") for x in (k, v))
        return add(k, v, (index * page + jnp.arange(page) < length[:, None])[:, None, None], state)

    if tail is not None:
        assert step is not None  # made from the same tail
        state = add(*tail, jnp.arange(tail[0].shape[2]) < step, state)
    state = jax.lax.fori_loop(0, (jnp.max(length) + page - 1) // page, read, state)
    return (state[2] / state[1]).astype(q.dtype)


def tile_ends(count: int) -> tuple[int, ...]:
    """Where tiles of queries end that attend causally: keys behind a tile need no scores.

    Args:
      count: number T of queries and keys.

    Returns:
      Ends of at most `TILES` tiles of at least `TILE` queries; one tile where a mesh splits the tokens.
    """
    size = count if sharding.distributed() else max(TILE, -(-count // TILES))
    return tuple(min(start + size, count) for start in range(0, count, size))


def by_tiles(attend: Callable[[jax.Array, Pair, jax.Array], Any], q: jax.Array, own: Pair, biases: Sequence[jax.Array]) -> Any:
    """Attends tile by tile, each to the tokens up to its end.

    Args:
      attend: of queries ``[B, H, G * t, Dh]``, keys and values ``[B, H, e, Dh]`` and a bias, to arrays ``[B, H, G * t, ...]``.
      q: queries of G heads a key head, ``[B, H, G * T, Dh]``.
      own: keys and values, each ``[B, H, T, Dh]``.
      biases: one a tile, ``[..., G * t, e]``.

    Returns:
      What `attend` returns, of all queries: ``[B, H, G * T, ...]``.
    """
    if len(biases) == 1:
        return attend(q, own, biases[0])
    rows, heads, _, width = q.shape
    q = q.reshape(rows, heads, -1, own[0].shape[2], width)
    start, tiles = 0, []
    for bias in biases:
        end = bias.shape[-1]
        tile = attend(q[:, :, :, start:end].reshape(rows, heads, -1, width), (own[0][:, :, :end], own[1][:, :, :end]), bias)
        tiles.append(jax.tree.map(lambda x, size=end - start: x.reshape(rows, heads, -1, size, x.shape[-1]), tile))
        start = end
    return jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=3).reshape(rows, heads, -1, parts[0].shape[-1]), *tiles)


def over_window(q: jax.Array, own: Pair, window: Pair, bias: jax.Array, step: jax.Array) -> tuple[jax.Array, Pair]:
    """Puts a token into a window and attends to all that it sees there.

    As `behind_cache`, the result of a row depends on that row alone: what it does not see adds exactly nothing. Products are sums
    along what lies furthest apart, which XLA fuses with the softmax: matrix products would be called once a row and key head.

    Args:
      q: scaled queries of one token, ``[B, H, G, Dh]``, one head a key head.
      own: its key and value, each ``[B, H, 1, Dh]``.
      window: keys ``[B, H, Dh, N]`` and values ``[B, H, N, Dh]``.
      bias: added to scores, 0 where a place is seen, float32 ``[B, 1, 1, N]``.
      step: where the token goes.

    Returns:
      ``[B, H, G, Dh]``, and the window with the token in it.
    """
    k = jax.lax.dynamic_update_slice_in_dim(window[0], jnp.swapaxes(own[0], -1, -2).astype(window[0].dtype), step, axis=3)
    v = jax.lax.dynamic_update_slice_in_dim(window[1], own[1].astype(window[1].dtype), step, axis=2)
    found = jnp.sum(q[..., None].astype(jnp.float32) * k[:, :, None], axis=-2) + bias
    weights = jnp.exp(found - jnp.max(found, axis=-1, keepdims=True))
    mixed = jnp.sum(weights[..., None] * v[:, :, None], axis=-2) / jnp.sum(weights, axis=-1, keepdims=True)
    return mixed.astype(q.dtype), (k, v)


def scores(q: jax.Array, k: jax.Array) -> jax.Array:
    """Returns scores of queries ``[B, H, M, Dh]`` on keys ``[B, H, N, Dh]``: float32 ``[B, H, M, N]``."""
    return jnp.einsum("bhqd,bhkd->bhqk", q, k.astype(q.dtype), preferred_element_type=jnp.float32)


def _mix(weights: jax.Array, v: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
    """Values ``[B, H, N, Dh]`` by weights ``[B, H, M, N]``, products in `dtype`, sums in float32."""
    return jnp.einsum("bhqk,bhkd->bhqd", weights.astype(dtype), v.astype(dtype), preferred_element_type=jnp.float32)


def fits(tokens: int) -> bool:
    """Whether the kernel takes sequences of so many tokens."""
    return tokens % LANES == 0


def splash(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segments: jax.Array,
    *,
    causal: bool,
    batch: str = "batch",
    length: str | None = "length",
) -> jax.Array:
    """Attends inside each row, between tokens of the same segment.

    Args:
      q: scaled queries, ``[B, H, T, Dh]``.
      k: keys, ``[B, Hkv, T, Dh]``; Hkv divides H.
      v: values, ``[B, Hkv, T, Dh]``.
      segments: int32 ``[B, T]``.
      causal: a token sees itself and earlier ones, else all.
      batch: logical axis of the rows.
      length: logical axis of the tokens, for queries; keys and values are whole on every device.

    Returns:
      ``[B, H, T, Dh]``; rows of a segment without other tokens are their own values.

    Raises:
      ConfigError: a length that the kernel does not take, or key heads that the mesh cannot split as it splits query heads.
    """
    heads, tokens, width = q.shape[1:]
    if not fits(tokens):
        raise ConfigError(f"splash attention takes multiples of {LANES} tokens, got {tokens}")
    padding = -width % LANES
    if padding:  # zeros add nothing to a score, and are cut from the result
        q, k, v = (jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, padding))) for x in (q, k, v))
    mesh = jax.sharding.get_abstract_mesh()
    parallel = sharding.distributed()
    q_spec, k_spec, rows = PartitionSpec(), PartitionSpec(), PartitionSpec()
    head_shards = token_shards = 1
    if parallel:
        q_spec = sharding.partition_spec((batch, "act_heads", length, None), q.shape, mesh)
        k_spec = sharding.partition_spec((batch, "act_kv_heads", None, None), k.shape, mesh)
        rows = sharding.partition_spec((batch, None), segments.shape, mesh)
        if q_spec[1] != k_spec[1]:
            raise ConfigError(f"{k.shape[1]} key heads cannot be split like {heads} query heads over {dict(mesh.shape)}")
        split = [sharding.only_axis(axes) for axes in q_spec[1:3]]
        head_shards, token_shards = (mesh.shape[axis] if axis else 1 for axis in split)
    mask = masks.CausalMask((tokens, tokens)) if causal else masks.FullMask((tokens, tokens))
    kernel = kernels.make_splash_mha(
        masks.MultiHeadMask([mask] * heads),
        block_sizes=_block_sizes(tokens // token_shards, tokens),
        head_shards=head_shards,
        q_seq_shards=token_shards,
    )

    def attend(kernel, q, k, v, q_segments, kv_segments):  # type: ignore[no-untyped-def]
        def one(q, k, v, q_segments, kv_segments):  # type: ignore[no-untyped-def]
            return kernel(q, k, v, segment_ids=kernels.SegmentIds(q=q_segments, kv=kv_segments))

        return jax.vmap(one)(q, k, v, q_segments, kv_segments)

    if parallel:
        kernel_spec = kernel.manual_sharding_spec(NamedSharding(mesh, PartitionSpec(q_spec[1], q_spec[2])))
        q_rows = PartitionSpec(rows[0], q_spec[2])
        attend = jax.shard_map(
            attend, mesh=mesh, in_specs=(kernel_spec, q_spec, k_spec, k_spec, q_rows, rows), out_specs=q_spec, check_vma=False
        )
    return attend(kernel, q, k, v, segments, segments)[..., :width]


def _block_sizes(queries: int, keys: int) -> kernels.BlockSizes:
    q, kv = (next(size for size in (BLOCK, 256, LANES) if count % size == 0) for count in (queries, keys))
    return kernels.BlockSizes(
        block_q=q,
        block_kv=kv,
        block_kv_compute=kv,
        block_q_dkv=q,
        block_kv_dkv=kv,
        block_kv_dkv_compute=kv,
        block_q_dq=q,
        block_kv_dq=kv,
    )
