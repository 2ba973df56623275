"""One token of each slot from its logits, on the device.

The log-probability that is recorded is that of the policy: after the static ban and the temperature, before anything that
narrows the choice down.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

# Name -> shape and number format of a slot's value.
FIELDS: Mapping[str, tuple[tuple[int, ...], Any]] = {
    "key": ((2,), jnp.uint32),
    "temperature": ((), jnp.float32),
    "top_p": ((), jnp.float32),
    "top_k": ((), jnp.int32),
    "min_p": ((), jnp.float32),
    "ban_tools": ((), jnp.bool_),
    "max_turn_tokens": ((), jnp.int32),
    "max_tokens": ((), jnp.int32),
}


@struct.dataclass
class Sampling:
    """How each slot samples, ``[B]`` each; `engine.SlotOptions` says what the fields mean."""

    key: jax.Array
    temperature: jax.Array
    top_p: jax.Array
    top_k: jax.Array
    min_p: jax.Array
    ban_tools: jax.Array
    max_turn_tokens: jax.Array
    max_tokens: jax.Array

    @classmethod
    def create(cls, slots: int) -> "Sampling":
        """Returns slots that ask for nothing."""
        return cls(**{name: jnp.zeros((slots, *shape), dtype) for name, (shape, dtype) in FIELDS.items()})


def scale(logits: jax.Array, banned: jax.Array, tool_open_id: int, how: Sampling) -> jax.Array:
    """Applies the static ban and the temperature (1 where a slot is greedy).

    Args:
      logits: float32 ``[B, V]``.
      banned: bool ``[V]``.
      tool_open_id: banned where a slot has ``ban_tools``.
      how: of each slot.

    Returns:
      Unnormalised log-probabilities of the policy, ``[B, V]``.
    """
    ban = banned | (how.ban_tools[:, None] & (jnp.arange(logits.shape[-1]) == tool_open_id))
    temperature = jnp.where(how.temperature <= 0, 1.0, how.temperature)
    return jnp.where(ban, -jnp.inf, logits) / temperature[:, None]


def unpack(words: jax.Array, vocab: int) -> jax.Array:
    """Reads a set of tokens, a bit each, lowest bit first.

    Args:
      words: uint32 ``[B, ceil(V / 32)]``.
      vocab: V.

    Returns:
      bool ``[B, V]``.
    """
    bits = (words[:, :, None] >> jnp.arange(32, dtype=jnp.uint32)) & 1
    return bits.reshape(len(words), -1)[:, :vocab].astype(bool)


def choose(scaled: jax.Array, sampled: jax.Array, how: Sampling, *, draws: jax.Array, narrows: jax.Array) -> jax.Array:
    """Takes a token of each slot: the most probable one where the temperature is 0, else a draw.

    Args:
      scaled: of `scale`, or narrower still, ``[B, V]``.
      sampled: tokens that each slot has sampled before: token n is drawn with ``fold_in(key, n)``, int32 ``[B]``.
      how: of each slot.
      draws: whether any slot draws: without one no random numbers are made.
      narrows: whether any slot has top-k, top-p or min-p: without one nothing is sorted.

    Returns:
      int32 ``[B]``.
    """

    def draw(scaled: jax.Array) -> jax.Array:
        scaled = jax.lax.cond(narrows, lambda x: narrow(x, how), lambda x: x, scaled)
        keys = jax.vmap(jax.random.fold_in)(how.key, sampled)
        drawn = jax.vmap(jax.random.categorical)(keys, scaled)
        return jnp.where(how.temperature <= 0, most_probable(scaled), drawn.astype(jnp.int32))

    return jax.lax.cond(draws, draw, most_probable, scaled)


def most_probable(scaled: jax.Array) -> jax.Array:
    """Returns the first of the largest of each row ``[B, V]``: two plain reductions, which XLA's CPU backend vectorises."""
    vocab = scaled.shape[-1]
    largest = scaled == jnp.max(scaled, axis=-1, keepdims=True)
    return jnp.min(jnp.where(largest, jnp.arange(vocab, dtype=jnp.int32), vocab - 1), axis=-1)


def narrow(scaled: jax.Array, how: Sampling) -> jax.Array:
    """Leaves the tokens of each slot's top-k, top-p and min-p; tokens as probable as the last one left stay too.

    Args:
      scaled: unnormalised log-probabilities, ``[B, V]``.
      how: of each slot; all three hold together.

    Returns:
      The same with -inf elsewhere. The most probable token always stays.
    """
    vocab = scaled.shape[-1]
    ordered = -jnp.sort(-scaled, axis=-1)
    probabilities = jax.nn.softmax(ordered, axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    count_p = jnp.sum(before < how.top_p[:, None], axis=-1)
    count_k = jnp.where(how.top_k > 0, how.top_k, vocab)
    count_m = jnp.sum(probabilities >= how.min_p[:, None] * probabilities[:, :1], axis=-1)
    count = jnp.clip(jnp.minimum(jnp.minimum(count_p, count_k), count_m), 1, vocab)
    last = jnp.take_along_axis(ordered, count[:, None] - 1, axis=-1)
    return jnp.where(scaled >= last, scaled, -jnp.inf)
