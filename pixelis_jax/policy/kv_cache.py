"""Keys and values of earlier tokens, one row a sequence; rows have different lengths."""

import dataclasses
from collections.abc import Sequence
from typing import Self

import jax
import jax.numpy as jnp
from flax import struct
from jax.typing import DTypeLike

from pixelis_jax.policy.config import Qwen3VLConfig


@struct.dataclass
class KVCache:
    """Keys and values of L layers.

    Heads stand before tokens, so that a matrix product over a row's tokens reads memory in order. Each layer has arrays
    of its own: slices of one stacked array would be copied on every decoding step.

    Attributes:
      k: rotated keys, L arrays ``[B, Hkv, C, Dh]``.
      v: values, L arrays ``[B, Hkv, C, Dh]``.
      length: tokens held by each row, int32 ``[B]``; slots from there on are free and never seen.
    """

    k: tuple[jax.Array, ...]
    v: tuple[jax.Array, ...]
    length: jax.Array

    @classmethod
    def create(cls, config: Qwen3VLConfig, batch: int, capacity: int, dtype: DTypeLike = jnp.float32) -> Self:
        """Returns an empty cache for `batch` rows of at most `capacity` tokens."""
        text = config.text
        shape = (batch, text.num_key_value_heads, capacity, text.head_dim)
        k, v = (tuple(jnp.zeros(shape, dtype) for _ in range(text.num_hidden_layers)) for _ in range(2))
        return cls(k=k, v=v, length=jnp.zeros(batch, jnp.int32))

    @property
    def capacity(self) -> int:
        """C, the most tokens that a row can hold."""
        return self.k[0].shape[2]

    def append(self, k: Sequence[jax.Array], v: Sequence[jax.Array], valid: jax.Array) -> Self:
        """Writes a chunk behind each row's tokens.

        Tokens beyond the capacity are dropped: the caller sees to it that a row has room.

        Args:
          k: L arrays ``[B, Hkv, T, Dh]``.
          v: L arrays ``[B, Hkv, T, Dh]``.
          valid: right-padded, ``[B, T]`` bool; padding is not written.

        Returns:
          The cache with ``length`` advanced by each row's valid tokens.
        """
        rows, steps = jnp.indices(valid.shape, sparse=True)
        slots = jnp.where(valid, self.length[:, None] + steps, self.capacity)

        def write(cache: jax.Array, new: jax.Array) -> jax.Array:
            # Index arrays around a slice move to the front: the update is [B, T, Hkv, Dh].
            return cache.at[rows, :, slots].set(jnp.swapaxes(new, 1, 2).astype(cache.dtype), mode="drop")

        return dataclasses.replace(
            self,
            k=tuple(map(write, self.k, k)),
            v=tuple(map(write, self.v, v)),
            length=jnp.minimum(self.length + valid.sum(axis=1, dtype=jnp.int32), self.capacity),
        )

    def reset(self, rows: jax.Array) -> Self:
        """Empties the rows where `rows` ``[B]`` bool is true."""
        return dataclasses.replace(self, length=jnp.where(rows, 0, self.length))
