"""Log-probabilities of chosen tokens without the logits of a whole batch.

The vocabulary of Qwen3-VL has 151,936 entries: logits of a batch would be its largest array by far. Only a weighted
position needs any, so callers first gather those (`select_weighted`) and then reduce them chunk by chunk
(`token_log_probs`), a part of the vocabulary at a time; the backward pass computes each chunk again instead of keeping it.
"""

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from pixelis_jax.losses import vocabulary
from pixelis_jax.losses.vocabulary import Sums


class Selected(NamedTuple):
    """The weighted positions of a sequence, padded to a static number.

    Attributes:
      hidden: hidden states of the positions, zeros where padded.
      positions: where they stand in the sequence; `N` (one past the end) where padded.
      weights: their weights, 0 where padded.
    """

    hidden: Float[Array, "C D"]
    positions: Int[Array, " C"]
    weights: Float[Array, " C"]


def select_weighted(hidden: Float[Array, "N D"], weights: Float[Array, " N"], capacity: int) -> Selected:
    """Gathers the positions of non-zero weight, in order.

    Args:
      hidden: hidden states.
      weights: weight of each position.
      capacity: static number of positions to return. Further positions would be lost, so the caller takes it from the data:
        at least the number of non-zero weights in any sequence of the bucket.

    Returns:
      The gathered positions.
    """
    chex.assert_rank([hidden, weights], [2, 1])
    chex.assert_equal_shape_prefix([hidden, weights], 1)
    (index,) = jnp.nonzero(weights, size=capacity, fill_value=weights.shape[0])
    gather = functools.partial(jnp.take, indices=index, axis=0, mode="fill", fill_value=0)
    return Selected(hidden=gather(hidden), positions=index, weights=gather(weights))


def token_log_probs(
    hidden: Float[Array, "*B N D"],
    unembedding: Float[Array, "V D"],
    targets: Int[Array, "*B N"],
    *,
    temperature: float = 1.0,
    banned: Bool[Array, " V"] | None = None,
    chunk: int = 1024,
    vocab_chunk: int = 1 << 30,
    vocab_axis: str | None = None,
) -> Float[Array, "*B N"]:
    """Computes `log softmax(ban(hidden @ unembedding.T / temperature))[targets]` in float32.

    The one function behind imitation, policy gradient, divergence and test-time updates. Forward and backward pass make logits
    of a chunk of positions and a chunk of the vocabulary at a time; what the backward pass keeps is one number a position.

    Args:
      hidden: final hidden states.
      unembedding: output embeddings.
      targets: the token whose log-probability is asked for at each position, in `[0, V)`.
      temperature: divides the logits before the ban, as the sampler does.
      banned: tokens that take no probability, at the same static set as in the sampler.
      chunk: positions of each row reduced at a time.
      vocab_chunk: most tokens of the vocabulary at a time. They are split evenly, so it is a divisor of V that counts.
      vocab_axis: mesh axis over which V is split, inside a `jax.shard_map`; `targets` count over all of it, `banned` is the
        shard's own.

    Returns:
      Log-probabilities; about `BANNED_LOGIT` for a banned target.
    """
    chex.assert_rank([unembedding, hidden], [2, targets.ndim + 1])
    chex.assert_equal_shape_prefix([hidden, targets], targets.ndim)
    blocks = vocabulary.block_count(unembedding.shape[0], vocab_chunk)
    if banned is None:
        banned = jnp.zeros(unembedding.shape[0], bool)
    hidden_c, targets_c = (vocabulary.to_chunks(array, targets.ndim - 1, chunk) for array in (hidden, targets))
    log_probs = _log_probs(hidden_c, unembedding.astype(hidden.dtype), targets_c, banned, temperature, blocks, vocab_axis)
    return vocabulary.from_chunks(log_probs, targets.shape[-1])


def _blocks(unembedding: Array, banned: Array, blocks: int, vocab_axis: str | None) -> tuple[Array, Array, Array]:
    """Chunks of the vocabulary: embeddings, bans, and the number of each one's first token."""
    size = unembedding.shape[0] // blocks
    first = jnp.arange(blocks) * size
    if vocab_axis:
        first += jax.lax.axis_index(vocab_axis) * unembedding.shape[0]
    return vocabulary.split_vocabulary(unembedding, blocks), vocabulary.split_vocabulary(banned, blocks), first


def _reduce(
    hidden: Array, unembedding: Array, targets: Array, banned: Array, temperature: float, blocks: int, vocab_axis: str | None
) -> tuple[Array, Array]:
    """Logit of each target and log of the sum of all exponentials, `[chunks, *B, c]` each."""

    def one_chunk(rows: tuple[Array, Array]) -> tuple[Array, Array]:
        hidden_c, targets_c = rows

        def one_block(carry: tuple[Sums, Array], part: tuple[Array, Array, Array]) -> tuple[tuple[Sums, Array], None]:
            sums, chosen = carry
            block, ban, first = part
            logits = vocabulary.block_logits(hidden_c, block, ban, temperature)
            place = targets_c - first
            inside = (place >= 0) & (place < len(block))
            found = jnp.take_along_axis(logits, jnp.clip(place, 0, len(block) - 1)[..., None], axis=-1)[..., 0]
            return (vocabulary.add_block(*sums, logits), jnp.where(inside, found, chosen)), None

        start = (vocabulary.no_sums(targets_c.shape, 1), jnp.full(targets_c.shape, -jnp.inf))
        (sums, chosen), _ = jax.lax.scan(one_block, start, _blocks(unembedding, banned, blocks, vocab_axis))
        top, (total,) = vocabulary.join_shards(*sums, vocab_axis)
        if vocab_axis:
            chosen = jax.lax.pmax(chosen, vocab_axis)
        return chosen, top + jnp.log(total)

    return jax.lax.map(one_chunk, (hidden, targets))


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _log_probs(
    hidden: Array, unembedding: Array, targets: Array, banned: Array, temperature: float, blocks: int, vocab_axis: str | None
) -> Array:
    chosen, normaliser = _reduce(hidden, unembedding, targets, banned, temperature, blocks, vocab_axis)
    return chosen - normaliser


def _log_probs_forward(
    hidden: Array, unembedding: Array, targets: Array, banned: Array, temperature: float, blocks: int, vocab_axis: str | None
) -> tuple[Array, tuple[Array, ...]]:
    chosen, normaliser = _reduce(hidden, unembedding, targets, banned, temperature, blocks, vocab_axis)
    return chosen - normaliser, (hidden, unembedding, targets, banned, normaliser)


def _log_probs_backward(
    temperature: float, blocks: int, vocab_axis: str | None, kept: tuple[Array, ...], gradient: Array
) -> tuple[Array, Array, np.ndarray, np.ndarray]:
    hidden, unembedding, targets, banned, normaliser = kept
    if vocab_axis:
        # `jax.shard_map` hands each device its share of the gradient of a result that all of them hold.
        gradient = jax.lax.psum(gradient, vocab_axis)

    def one_block(to_hidden: Array, part: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        block, ban, first = part

        def one_chunk(to_block: Array, rows: tuple[Array, Array, Array, Array]) -> tuple[Array, Array]:
            hidden_c, targets_c, normaliser_c, gradient_c = rows
            logits = vocabulary.block_logits(hidden_c, block, ban, temperature)
            hit = (targets_c - first)[..., None] == jnp.arange(len(block))
            to_logits = gradient_c[..., None] * (hit - jnp.exp(logits - normaliser_c[..., None])) / temperature
            to_logits = jnp.where(ban, 0, to_logits).astype(hidden_c.dtype)
            to_block += vocabulary.block_gradient(to_logits, hidden_c)
            return to_block, vocabulary.hidden_gradient(to_logits, block)

        start = jnp.zeros(block.shape, jnp.float32)
        to_block, added = jax.lax.scan(one_chunk, start, (hidden, targets, normaliser, gradient))
        return to_hidden + added, to_block.astype(block.dtype)

    parts = _blocks(unembedding, banned, blocks, vocab_axis)
    to_hidden, to_unembedding = jax.lax.scan(one_block, jnp.zeros(hidden.shape, jnp.float32), parts)
    # Integers have no gradient.
    no_targets, no_banned = (np.zeros(array.shape, jax.dtypes.float0) for array in (targets, banned))
    return to_hidden.astype(hidden.dtype), to_unembedding.reshape(unembedding.shape), no_targets, no_banned


_log_probs.defvjp(_log_probs_forward, _log_probs_backward)
