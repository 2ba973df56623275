"""Log-probabilities of tokens under the policy, and its divergence from another, on one device or on a mesh."""

import functools
from collections.abc import Callable, Sequence

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
    function = functools.partial(losses.token_log_probs, temperature=temperature, chunk=chunk, vocab_chunk=vocab_chunk)
    return _by_vocabulary(function, [(hidden, model)], [targets], banned)


def token_kl(
    model: Qwen3VL,
    hidden: jax.Array,
    reference: Qwen3VL,
    reference_hidden: jax.Array,
    banned: np.ndarray,
    *,
    temperature: float = 1.0,
    chunk: int,
    vocab_chunk: int,
) -> jax.Array:
    """Computes the divergence from a reference at each position: `losses.token_kl`, split as `token_log_probs`.

    Args:
      model: gives the unembedding.
      hidden: ``[B, N, D]``.
      reference: gives the unembedding of the reference.
      reference_hidden: ``[B, N, D]``.
      banned: bool ``[V]``.
      temperature: divides the logits.
      chunk: positions of a row of which logits exist at a time.
      vocab_chunk: most logits of a position that exist at a time.

    Returns:
      float32 ``[B, N]``.
    """
    function = functools.partial(losses.token_kl, temperature=temperature, chunk=chunk, vocab_chunk=vocab_chunk)
    return _by_vocabulary(function, [(hidden, model), (reference_hidden, reference)], [], banned)


def _by_vocabulary(
    function: Callable[..., jax.Array],
    policies: Sequence[tuple[jax.Array, Qwen3VL]],
    others: Sequence[jax.Array],
    banned: np.ndarray,
) -> jax.Array:
    """Calls a loss of (hidden, unembedding) of some policies and of other arrays ``[B, N]``, every device on its part."""
    pairs = [(hidden, model.unembedding_matrix().astype(hidden.dtype)) for hidden, model in policies]
    arrays = [array for pair in pairs for array in pair]
    if not sharding.distributed():
        return function(*arrays, *others, banned=jnp.asarray(banned))
    mesh = jax.sharding.get_abstract_mesh()
    rows = sharding.partition_spec(("batch", None), pairs[0][0].shape[:2], mesh)
    vocab = sharding.partition_spec(("act_vocab", None), pairs[0][1].shape, mesh)
    axis = sharding.only_axis(vocab[0])

    def local(banned: jax.Array, *arrays: jax.Array) -> jax.Array:
        return function(*arrays, banned=banned, vocab_axis=axis)

    mapped = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(jax.P(vocab[0]), *[jax.P(*rows, None), vocab] * len(pairs), *[rows] * len(others)),
        out_specs=rows,
        check_vma=False,
    )
    return mapped(jnp.asarray(banned), *arrays, *others)
