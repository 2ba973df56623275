"""Exact KL divergence from a reference, position by position over the whole vocabulary, without the logits of a batch.

A divergence estimated from the sampled token alone has, off-policy, a biased and heavy-tailed gradient (algorithms.md,
section 2); the exact one costs the reference's logits too. As in `chunked`, they exist for a chunk of positions and a part of
the vocabulary at a time, and the backward pass makes them again.
"""

import functools

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from pixelis_jax.losses import vocabulary
from pixelis_jax.losses.vocabulary import Sums

_Arrays = tuple[Array, ...]


def token_kl(
    hidden: Float[Array, "*B N D"],
    unembedding: Float[Array, "V D"],
    reference_hidden: Float[Array, "*B N E"],
    reference_unembedding: Float[Array, "V E"],
    *,
    temperature: float = 1.0,
    banned: Bool[Array, " V"] | None = None,
    chunk: int = 1024,
    vocab_chunk: int = 1 << 30,
    vocab_axis: str | None = None,
) -> Float[Array, "*B N"]:
    """Computes `KL(pi || ref) = sum_v pi_v (log pi_v - log ref_v)` at each position, in float32.

    With logits l of the policy and m of the reference, `KL = E_pi[l - m] - (log Z_pi - log Z_ref)`: one pass over the
    vocabulary. Its gradient to a logit is `pi_v (l_v - m_v - E_pi[l - m])`. The reference gets none.

    Args:
      hidden: final hidden states of the policy.
      unembedding: output embeddings of the policy.
      reference_hidden: final hidden states of the reference, of any width.
      reference_unembedding: output embeddings of the reference.
      temperature: divides the logits of both before the ban.
      banned: tokens that take no probability under either.
      chunk: positions of each row reduced at a time.
      vocab_chunk: most tokens of the vocabulary at a time. They are split evenly, so it is a divisor of V that counts.
      vocab_axis: mesh axis over which V is split, inside a `jax.shard_map`; `banned` is the shard's own.

    Returns:
      The divergence in nats, not negative.
    """
    chex.assert_equal_rank([hidden, reference_hidden])
    chex.assert_equal_shape_prefix([hidden, reference_hidden], hidden.ndim - 1)
    chex.assert_rank([unembedding, reference_unembedding], 2)
    chex.assert_equal_shape_prefix([unembedding, reference_unembedding], 1)
    axis, vocab = hidden.ndim - 2, unembedding.shape[0]
    policy, reference = (vocabulary.to_chunks(array, axis, chunk) for array in (hidden, reference_hidden))
    if banned is None:
        banned = jnp.zeros(vocab, bool)
    blocks = vocabulary.block_count(vocab, vocab_chunk)
    parts = [
        vocabulary.split_vocabulary(array, blocks)
        for array in (unembedding.astype(hidden.dtype), reference_unembedding.astype(reference_hidden.dtype), jnp.asarray(banned))
    ]
    return vocabulary.from_chunks(
        _kl(policy, parts[0], reference, parts[1], parts[2], temperature, vocab_axis), hidden.shape[axis]
    )


def _reduce(
    hidden: Array,
    blocks: Array,
    reference: Array,
    reference_blocks: Array,
    banned: Array,
    temperature: float,
    vocab_axis: str | None,
) -> tuple[Array, Array, Array]:
    """The divergence, the log of the sum of the policy's exponentials, and `E_pi[l - m]`: `[chunks, *B, c]` each."""

    def one_chunk(rows: tuple[Array, Array]) -> tuple[Array, Array, Array]:
        hidden_c, reference_c = rows

        def one_block(carry: tuple[Sums, Sums], part: tuple[Array, Array, Array]) -> tuple[tuple[Sums, Sums], None]:
            block, reference_block, ban = part
            logits = vocabulary.block_logits(hidden_c, block, ban, temperature)
            theirs = vocabulary.block_logits(reference_c, reference_block, ban, temperature)
            return (vocabulary.add_block(*carry[0], logits, logits - theirs), vocabulary.add_block(*carry[1], theirs)), None

        start = (vocabulary.no_sums(hidden_c.shape[:-1], 2), vocabulary.no_sums(hidden_c.shape[:-1], 1))
        (ours, theirs), _ = jax.lax.scan(one_block, start, (blocks, reference_blocks, banned))
        top, (total, weighted) = vocabulary.join_shards(*ours, vocab_axis)
        their_top, (their_total,) = vocabulary.join_shards(*theirs, vocab_axis)
        gap = weighted / total
        # Differences of like with like, each small where policy and reference agree; the normalisers themselves are large.
        kl = gap - (top - their_top) - (jnp.log(total) - jnp.log(their_total))
        # Rounding may take it just below 0.
        return jnp.maximum(kl, 0.0), top + jnp.log(total), gap

    return jax.lax.map(one_chunk, (hidden, reference))


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _kl(
    hidden: Array,
    blocks: Array,
    reference: Array,
    reference_blocks: Array,
    banned: Array,
    temperature: float,
    vocab_axis: str | None,
) -> Array:
    return _reduce(hidden, blocks, reference, reference_blocks, banned, temperature, vocab_axis)[0]


def _kl_forward(
    hidden: Array,
    blocks: Array,
    reference: Array,
    reference_blocks: Array,
    banned: Array,
    temperature: float,
    vocab_axis: str | None,
) -> tuple[Array, _Arrays]:
    kl, normaliser, gap = _reduce(hidden, blocks, reference, reference_blocks, banned, temperature, vocab_axis)
    return kl, (hidden, blocks, reference, reference_blocks, banned, normaliser, gap)


def _kl_backward(
    temperature: float, vocab_axis: str | None, kept: _Arrays, gradient: Array
) -> tuple[Array, Array, None, None, None]:
    hidden, blocks, reference, reference_blocks, banned, normaliser, gap = kept
    if vocab_axis:
        # `jax.shard_map` hands each device its share of the gradient of a result that all of them hold.
        gradient = jax.lax.psum(gradient, vocab_axis)

    def one_block(to_hidden: Array, part: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        block, reference_block, ban = part

        def one_chunk(to_block: Array, rows: _Arrays) -> tuple[Array, Array]:
            hidden_c, reference_c, normaliser_c, gap_c, gradient_c = rows
            logits = vocabulary.block_logits(hidden_c, block, ban, temperature)
            theirs = vocabulary.block_logits(reference_c, reference_block, ban, temperature)
            slope = jnp.exp(logits - normaliser_c[..., None]) * (logits - theirs - gap_c[..., None])
            to_logits = jnp.where(ban, 0, gradient_c[..., None] * slope / temperature).astype(hidden_c.dtype)
            return to_block + vocabulary.block_gradient(to_logits, hidden_c), vocabulary.hidden_gradient(to_logits, block)

        start = jnp.zeros(block.shape, jnp.float32)
        to_block, added = jax.lax.scan(one_chunk, start, (hidden, reference, normaliser, gap, gradient))
        return to_hidden + added, to_block.astype(block.dtype)

    start = jnp.zeros(hidden.shape, jnp.float32)
    to_hidden, to_blocks = jax.lax.scan(one_block, start, (blocks, reference_blocks, banned))
    return to_hidden.astype(hidden.dtype), to_blocks, None, None, None


_kl.defvjp(_kl_forward, _kl_backward)
