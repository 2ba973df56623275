"""Log-probabilities of tokens under the policy, on one device or on a mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from pixelis_jax import losses, sharding
from pixelis_jax.policy import Qwen3VL


def token_log_probs(
    model: Qwen3VL,
    hidden: jax.Array,
    targets: jax.Array,
    banned: np.ndarray,
    *,
    temperature: float = 1.0,
    chunk: int,
    vocab_chunk: int,
) -> jax.Array:
    """Computes the log-probability of each target: `losses.token_log_probs`, split by rows and by vocabulary.

    Left to the compiler, a loop over chunks would gather the embeddings and sum their gradient once a chunk. Here both happen
    once: every device reduces its own rows over its own part of the vocabulary.

    Args:
      model: gives the unembedding.
      hidden: ``[B, N, D]``.
      targets: int32 ``[B, N]``.
      banned: bool ``[V]``.
      temperature: divides the logits.
      chunk: positions of a row of which logits exist at a time.
      vocab_chunk: most logits of a position that exist at a time.

    Returns:
      float32 ``[B, N]``.
    """
    unembedding = model.unembedding_matrix().astype(hidden.dtype)
    function = functools.partial(losses.token_log_probs, temperature=temperature, chunk=chunk, vocab_chunk=vocab_chunk)
    if not sharding.distributed():
        return function(hidden, unembedding, targets, banned=jnp.asarray(banned))
    mesh = jax.sharding.get_abstract_mesh()
    rows = sharding.partition_spec(("batch", None), targets.shape, mesh)
    vocab = sharding.partition_spec(("act_vocab", None), unembedding.shape, mesh)
    axis = sharding.only_axis(vocab[0])

    def local(hidden: jax.Array, unembedding: jax.Array, targets: jax.Array, banned: jax.Array) -> jax.Array:
        return function(hidden, unembedding, targets, banned=banned, vocab_axis=axis)

    mapped = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(jax.P(*rows, None), vocab, rows, jax.P(vocab[0])),
        out_specs=rows,
        check_vma=False,
    )
    return mapped(hidden, unembedding, targets, jnp.asarray(banned))
