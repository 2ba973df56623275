"""Splash attention, the Pallas kernel of JAX for TPU: scores of long sequences never exist as an array.

FlashAttention: Dao et al., https://arxiv.org/abs/2205.14135; the kernel: ``jax.experimental.pallas.ops.tpu.splash_attention``.
"""

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.sharding import NamedSharding, PartitionSpec

from pixelis_jax import sharding
from pixelis_jax.policy.config import ConfigError

# Width of a TPU register: the kernel wants tokens and head widths in multiples of it.
LANES = 128
# Tokens that one step of the kernel holds; larger blocks read keys less often and need more of the core's memory.
BLOCK = 512


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
