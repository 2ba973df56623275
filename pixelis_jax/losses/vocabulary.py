"""What chunked log-probabilities and the chunked divergence share: loops over positions and over parts of the vocabulary."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

# Logit of a banned token. Finite, so that a zero weight on a banned target gives 0 and not NaN.
BANNED_LOGIT = -1e30

Sums = tuple[Array, tuple[Array, ...]]
"""Highest logit of each position so far, and sums over the vocabulary of terms that hold `exp(logit - highest)`."""


def to_chunks(array: Array, axis: int, chunk: int) -> Array:
    """Splits an axis of N positions, padded with zeros: `[*B, N, ...]` to `[chunks, *B, chunk, ...]`.

    Chunks go first, for the loop; rows stay an axis of their own, because a mesh splits them.
    """
    count = array.shape[axis]
    chunk = min(chunk, count)
    array = jnp.pad(array, [(0, -count % chunk if place == axis else 0) for place in range(array.ndim)])
    return jnp.moveaxis(array.reshape(*array.shape[:axis], -1, chunk, *array.shape[axis + 1 :]), axis, 0)


def from_chunks(array: Array, count: int) -> Array:
    """Undoes `to_chunks` for one number a position: `[chunks, *B, chunk]` to `[*B, count]`."""
    return jnp.moveaxis(array, 0, -2).reshape(*array.shape[1:-1], -1)[..., :count]


def block_count(vocab: int, vocab_chunk: int) -> int:
    """Least number of equal parts of the vocabulary of at most `vocab_chunk` tokens each."""
    return next(n for n in range(-(-vocab // vocab_chunk), vocab + 1) if vocab % n == 0)


def split_vocabulary(array: Array, blocks: int) -> Array:
    """`[V, ...]` to `[blocks, V / blocks, ...]`."""
    return array.reshape(blocks, -1, *array.shape[1:])


def block_logits(hidden: Array, block: Array, banned: Array, temperature: float) -> Array:
    """Float32 logits `[..., v]` of hidden states `[..., D]` over a part of the vocabulary `[v, D]`, after its ban `[v]`."""
    logits = jnp.einsum("...d,vd->...v", hidden, block, preferred_element_type=jnp.float32) / temperature
    return jnp.where(banned, BANNED_LOGIT, logits)


def hidden_gradient(to_logits: Array, block: Array) -> Array:
    """A block's share of the gradient to the hidden states, float32."""
    return jnp.einsum("...cv,vd->...cd", to_logits, block, preferred_element_type=jnp.float32)


def block_gradient(to_logits: Array, hidden: Array) -> Array:
    """A chunk's share of the gradient to a block of the unembedding, float32 `[V, D]`."""
    # A product in the other order would have XLA's CPU backend transpose the chunk's logits first, on one thread.
    return jnp.einsum("...cd,...cv->dv", hidden, to_logits, preferred_element_type=jnp.float32).T


def no_sums(shape: tuple[int, ...], count: int) -> Sums:
    """Where `add_block` starts: a maximum of minus infinity and `count` empty sums."""
    return jnp.full(shape, -jnp.inf), (jnp.zeros(shape),) * count


def add_block(top: Array, sums: tuple[Array, ...], logits: Array, *factors: Array) -> Sums:
    """Adds a block to online sums `sum_v exp(logit_v - top)` and, for each of `factors`, `sum_v exp(logit_v - top) factor_v`.

    Args:
      top: highest logit so far.
      sums: so far, relative to `top`.
      logits: of the block, with the vocabulary last.
      *factors: of the logits' shape.

    Returns:
      The highest logit, and the sums relative to it.
    """
    higher = jnp.maximum(top, logits.max(axis=-1))
    exponentials, scale = jnp.exp(logits - higher[..., None]), jnp.exp(top - higher)
    added = (exponentials, *(exponentials * factor for factor in factors))
    return higher, tuple(total * scale + more.sum(axis=-1) for total, more in zip(sums, added, strict=True))


def join_shards(top: Array, sums: tuple[Array, ...], vocab_axis: str | None) -> Sums:
    """Sums over the whole vocabulary from those of each shard of it, inside a `jax.shard_map`."""
    if not vocab_axis:
        return top, sums
    highest = jax.lax.pmax(top, vocab_axis)
    return highest, jax.lax.psum(tuple(total * jnp.exp(top - highest) for total in sums), vocab_axis)
