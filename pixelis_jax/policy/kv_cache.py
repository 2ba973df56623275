"""Keys and values of earlier tokens, one row a sequence; rows have different lengths."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Self

import jax
import jax.numpy as jnp
from flax import struct
from jax.typing import DTypeLike

from pixelis_jax.policy.config import Execution, Qwen3VLConfig

Pair = tuple[jax.Array, jax.Array]


@struct.dataclass
class KVCache:
    """Keys and values of L layers.

    Heads stand before tokens, so that a matrix product over a row's tokens reads memory in order. Each unrolled layer has
    arrays of its own: slices of one stacked array would be copied on every decoding step.

    Attributes:
      k: rotated keys of the unrolled layers, each ``[B, Hkv, C, Dh]``.
      v: values of the unrolled layers, each ``[B, Hkv, C, Dh]``.
      stacked: keys and values of the scanned layers, each ``[L', B, Hkv, C, Dh]``; None without such layers.
      length: tokens held by each row, int32 ``[B]``; slots from there on are free and never seen.
    """

    k: tuple[jax.Array, ...]
    v: tuple[jax.Array, ...]
    stacked: Pair | None
    length: jax.Array

    @classmethod
    def create(
        cls, config: Qwen3VLConfig, batch: int, capacity: int, dtype: DTypeLike = jnp.float32, execution: Execution | None = None
    ) -> Self:
        """Returns an empty cache for `batch` rows of at most `capacity` tokens, for a model of that `execution`."""
        text = config.text
        shape = (batch, text.num_key_value_heads, capacity, text.head_dim)
        layers = config.unrolled_layers(execution or Execution())
        k, v = (tuple(jnp.zeros(shape, dtype) for _ in range(layers)) for _ in range(2))
        scanned = text.num_hidden_layers - layers
        stacked = (jnp.zeros((scanned, *shape), dtype), jnp.zeros((scanned, *shape), dtype)) if scanned else None
        return cls(k=k, v=v, stacked=stacked, length=jnp.zeros(batch, jnp.int32))

    @property
    def capacity(self) -> int:
        """C, the most tokens that a row can hold."""
        return self.k[0].shape[2] if self.k else self.stacked[0].shape[3]  # type: ignore[index]

    def append(self, chunks: Sequence[Pair], stacked: Pair | None, valid: jax.Array) -> Self:
        """Writes a chunk behind each row's tokens.

        Tokens beyond the capacity are dropped: the caller sees to it that a row has room.

        Args:
          chunks: keys and values of the unrolled layers, each ``[B, Hkv, T, Dh]``.
          stacked: keys and values of the scanned layers, each ``[L', B, Hkv, T, Dh]``.
          valid: right-padded, ``[B, T]`` bool; padding is not written.

        Returns:
          The cache with ``length`` advanced by each row's valid tokens.
        """
        rows, steps = jnp.indices(valid.shape, sparse=True)
        slots = jnp.where(valid, self.length[:, None] + steps, self.capacity)

        def write(cache: jax.Array, new: jax.Array) -> jax.Array:
            # Index arrays around a slice move to the front: the update is [B, T, Hkv, Dh].
            return cache.at[rows, :, slots].set(jnp.swapaxes(new, 1, 2).astype(cache.dtype), mode="drop")

        def write_stacked(cache: jax.Array, new: jax.Array) -> jax.Array:
            # Here it is [B, T, L', Hkv, Dh].
            return cache.at[:, rows, :, slots].set(jnp.transpose(new, (1, 3, 0, 2, 4)).astype(cache.dtype), mode="drop")

        return dataclasses.replace(
            self,
            k=tuple(write(cache, chunk[0]) for cache, chunk in zip(self.k, chunks, strict=True)),
            v=tuple(write(cache, chunk[1]) for cache, chunk in zip(self.v, chunks, strict=True)),
            stacked=None if self.stacked is None else jax.tree.map(write_stacked, self.stacked, stacked),
            length=jnp.minimum(self.length + valid.sum(axis=1, dtype=jnp.int32), self.capacity),
        )

    def reset(self, rows: jax.Array) -> Self:
        """Empties the rows where `rows` ``[B]`` bool is true."""
        return dataclasses.replace(self, length=jnp.where(rows, 0, self.length))

    def take(self, rows: jax.Array) -> Self:
        """Returns the rows `rows` ``[R]`` as a cache of their own; a number out of range gives the nearest row."""
        pick = functools.partial(jnp.take, indices=rows, mode="clip")
        stacked = None if self.stacked is None else jax.tree.map(functools.partial(pick, axis=1), self.stacked)
        rest = jax.tree.map(functools.partial(pick, axis=0), dataclasses.replace(self, stacked=None))
        return dataclasses.replace(rest, stacked=stacked)

    def put(self, rows: jax.Array, new: Self) -> Self:
        """Writes the rows of another cache over `rows` ``[R]``; a number out of range writes nothing."""
        stacked = None
        if self.stacked is not None:
            stacked = jax.tree.map(lambda old, x: old.at[:, rows].set(x, mode="drop"), self.stacked, new.stacked)
        rest = jax.tree.map(
            lambda old, x: old.at[rows].set(x, mode="drop"),
            dataclasses.replace(self, stacked=None),
            dataclasses.replace(new, stacked=None),
        )
        return dataclasses.replace(rest, stacked=stacked)
