"""Log-probabilities of chosen tokens without the logits of a whole batch.

The vocabulary of Qwen3-VL has 151,936 entries: logits of a batch would be its largest array by far. Only a weighted
position needs any, so callers first gather those (`select_weighted`) and then reduce them chunk by chunk
(`token_log_probs`); the backward pass computes each chunk again instead of keeping it.
"""

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

# Logit of a banned token. Finite, so that a zero weight on a banned target gives 0 and not NaN.
BANNED_LOGIT = -1e30


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
    hidden: Float[Array, "N D"],
    unembedding: Float[Array, "V D"],
    targets: Int[Array, " N"],
    *,
    temperature: float = 1.0,
    banned: Bool[Array, " V"] | None = None,
    chunk: int = 1024,
) -> Float[Array, " N"]:
    """Computes `log softmax(ban(hidden @ unembedding.T / temperature))[targets]` in float32.

    Args:
      hidden: final hidden states.
      unembedding: output embeddings.
      targets: the token whose log-probability is asked for at each position, in `[0, V)`.
      temperature: divides the logits before the ban, as the sampler does.
      banned: tokens that take no probability, at the same static set as in the sampler.
      chunk: positions reduced at a time; the largest temporary array is `[chunk, V]`.

    Returns:
      Log-probabilities; about `BANNED_LOGIT` for a banned target.
    """
    chex.assert_rank([hidden, unembedding, targets], [2, 2, 1])
    chex.assert_equal_shape_prefix([hidden, targets], 1)
    count = hidden.shape[0]
    chunk = min(chunk, count)
    padding = -count % chunk
    hidden = jnp.pad(hidden, ((0, padding), (0, 0))).reshape(-1, chunk, hidden.shape[1])
    targets = jnp.pad(targets, (0, padding)).reshape(-1, chunk)
    unembedding = unembedding.astype(hidden.dtype)

    # The checkpoint is what keeps the logits of all chunks from being saved for the backward pass.
    @jax.checkpoint
    def one_chunk(hidden_c: Float[Array, "c D"], targets_c: Int[Array, " c"]) -> Float[Array, " c"]:
        logits = jnp.einsum("cd,vd->cv", hidden_c, unembedding, preferred_element_type=jnp.float32) / temperature
        if banned is not None:
            logits = jnp.where(banned, BANNED_LOGIT, logits)
        chosen = jnp.take_along_axis(logits, targets_c[:, None], axis=-1)[:, 0]
        return chosen - jax.nn.logsumexp(logits, axis=-1)

    return jax.lax.map(lambda rows: one_chunk(*rows), (hidden, targets)).reshape(-1)[:count]
