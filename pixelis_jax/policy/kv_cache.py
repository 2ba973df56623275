"""Keys and values of earlier tokens, one row a sequence; rows have different lengths."""

import dataclasses
from collections.abc import Sequence
from typing import Self

import jax
import jax.numpy as jnp
from flax import struct
from jax.typing import DTypeLike

from pixelis_jax.policy.config import Execution, Qwen3VLConfig

Pair = tuple[jax.Array, jax.Array]

# Tokens of the cache that attention reads at a time.
PAGE = 512


@struct.dataclass
class KVCache:
    """Keys and values of L layers.

    Heads stand before tokens, so that a matrix product over a row's tokens reads memory in order. Each unrolled layer has
    arrays of its own: slices of one stacked array would be copied on every decoding step.

    Attributes:
      layers: rotated keys, and values, of the unrolled layers, each ``[B, Hkv, C, Dh]``.
      stacked: those of the scanned layers, each ``[L', B, Hkv, C, Dh]``; None without such layers.
      length: tokens held by each row, int32 ``[B]``; slots from there on are free and never seen.
      page: tokens that attention reads at a time; divides C.
      rows: the rows that a forward pass works on, int32 ``[R]``, each but once; None: all of them. A number out of range reads
        any row, and writes nothing.
      margin: how close the closest choice of experts was among the tokens of each row (`MixtureOfExperts.margin`), float32
        ``[B]``, infinite for an empty row; None without experts.
    """

    layers: tuple[Pair, ...]
    stacked: Pair | None
    length: jax.Array
    page: int = struct.field(pytree_node=False)
    rows: jax.Array | None = None
    margin: jax.Array | None = None

    @classmethod
    def create(
        cls,
        config: Qwen3VLConfig,
        batch: int,
        capacity: int,
        dtype: DTypeLike = jnp.float32,
        execution: Execution | None = None,
        page: int = PAGE,
    ) -> Self:
        """Returns an empty cache for `batch` rows of at least `capacity` tokens, for a model of that `execution`."""
        page = min(page, capacity)
        layers, stacked = _zeros(config, batch, -(-capacity // page) * page, dtype, execution)
        margin = jnp.full(batch, jnp.inf, jnp.float32) if config.text.num_experts else None
        return cls(layers=layers, stacked=stacked, length=jnp.zeros(batch, jnp.int32), page=page, margin=margin)

    @property
    def capacity(self) -> int:
        """C, the most tokens that a row can hold."""
        return jax.tree.leaves((self.layers, self.stacked))[0].shape[-2]

    @property
    def held(self) -> jax.Array:
        """Tokens held by each row that a forward pass works on, int32 ``[R]``."""
        return self.length if self.rows is None else jnp.take(self.length, self.rows, mode="clip")

    def append(self, chunks: Sequence[Pair], stacked: Pair | None, valid: jax.Array, margin: jax.Array | None = None) -> Self:
        """Writes a chunk behind each row's tokens.

        Tokens beyond the capacity are dropped: the caller sees to it that a row has room.

        Args:
          chunks: keys and values of the unrolled layers, each ``[R, Hkv, T, Dh]``.
          stacked: keys and values of the scanned layers, each ``[L', R, Hkv, T, Dh]``.
          valid: right-padded, ``[R, T]`` bool; padding is not written.
          margin: of the tokens, float32 ``[R, T]``; None without experts.

        Returns:
          The cache with ``length`` advanced by each row's valid tokens.
        """
        number = jnp.arange(len(valid)) if self.rows is None else self.rows
        rows = number[:, None]
        slots = jnp.where(valid, self.held[:, None] + jnp.arange(valid.shape[1]), self.capacity)

        def write(cache: jax.Array, new: jax.Array) -> jax.Array:
            # Index arrays around a slice move to the front: the update is [R, T, Hkv, Dh].
            return cache.at[rows, :, slots].set(jnp.swapaxes(new, 1, 2).astype(cache.dtype), mode="drop")

        def write_stacked(cache: jax.Array, new: jax.Array) -> jax.Array:
            # Here it is [R, T, L', Hkv, Dh].
            return cache.at[:, rows, :, slots].set(jnp.transpose(new, (1, 3, 0, 2, 4)).astype(cache.dtype), mode="drop")

        length = jnp.minimum(self.held + valid.sum(axis=1, dtype=jnp.int32), self.capacity)
        closest = self.margin
        if closest is not None and margin is not None:
            closest = closest.at[number].min(jnp.where(valid, margin, jnp.inf).min(axis=1), mode="drop")
        return dataclasses.replace(
            self,
            layers=jax.tree.map(write, self.layers, tuple(chunks)),
            stacked=jax.tree.map(write_stacked, self.stacked, stacked),
            length=self.length.at[number].set(length, mode="drop"),
            margin=closest,
        )

    def merge(self, tail: "Tail", counts: jax.Array) -> Self:
        """Writes the first `counts` ``[B]`` tokens of a tail behind each row's tokens.

        The whole tail is written, and what lies behind `counts` stays free: each row needs room for it.
        """

        def write(cache: jax.Array, new: jax.Array) -> jax.Array:
            def row(cache: jax.Array, new: jax.Array, start: jax.Array) -> jax.Array:
                return jax.lax.dynamic_update_slice_in_dim(cache, new.astype(cache.dtype), start, axis=-2)

            axis = cache.ndim - 4
            return jax.vmap(row, in_axes=(axis, axis, 0), out_axes=axis)(cache, new, self.length)

        return dataclasses.replace(
            self,
            layers=jax.tree.map(write, self.layers, tail.layers),
            stacked=jax.tree.map(write, self.stacked, tail.stacked),
            length=self.length + counts,
            margin=self.margin if tail.margin is None else tail.margin,
        )

    def at(self, rows: jax.Array | None, *, empty: jax.Array | None = None) -> Self:
        """Returns the cache for a forward pass over some rows.

        Args:
          rows: int32 ``[R]``; None for all.
          empty: which of them to empty first, bool ``[R]``.
        """
        length, margin = self.length, self.margin
        if empty is not None and rows is not None:
            emptied = jnp.where(empty, rows, len(length))
            length = length.at[emptied].set(0, mode="drop")
            margin = None if margin is None else margin.at[emptied].set(jnp.inf, mode="drop")
        return dataclasses.replace(self, rows=rows, length=length, margin=margin)

    def window(self, pages: int, block: int) -> "Window":
        """Takes the first pages out, behind room for a block of `block` tokens, for decoding that block.

        Where nothing behind those pages is filled, a window says the same as the cache. Only for unrolled layers.
        """
        if self.stacked is not None:
            raise ValueError("a window needs unrolled layers: those of a scan would be copied at every token")

        def cut(x: jax.Array) -> jax.Array:
            return jnp.pad(x[:, :, : pages * self.page], ((0, 0), (0, 0), (block, 0), (0, 0)))

        layers = tuple((jnp.swapaxes(cut(k), -1, -2), cut(v)) for k, v in self.layers)
        return Window(layers=layers, length=self.length, step=jnp.int32(0), block=block, margin=self.margin)

    def copy_row(self, source: jax.Array, target: jax.Array, length: jax.Array, margin: jax.Array | None = None) -> Self:
        """Makes row `target` what row `source` was when it held `length` tokens, with that `margin`; rows only ever grow."""

        def copy(x: jax.Array, axis: int) -> jax.Array:
            row = jax.lax.dynamic_slice_in_dim(x, source, 1, axis)
            return jax.lax.dynamic_update_slice_in_dim(x, row, target, axis)

        return dataclasses.replace(
            self,
            layers=jax.tree.map(lambda x: copy(x, 0), self.layers),
            stacked=jax.tree.map(lambda x: copy(x, 1), self.stacked),
            length=self.length.at[target].set(length),
            margin=self.margin if self.margin is None or margin is None else self.margin.at[target].set(margin),
        )


@struct.dataclass
class Window:
    """The tokens of a block and, behind them, the first pages of a cache, side by side in one array: one product over both.

    The block comes first, so that a token stands at the same place however many pages there are.

    Attributes:
      layers: of each layer rotated keys ``[B, Hkv, Dh, N + P]``, whose products with a query add up whole rows, and values
        ``[B, Hkv, N + P, Dh]``.
      length: tokens of the cache, int32 ``[B]``.
      step: where the next token goes, int32.
      block: N.
      margin: as in `Tail`.
    """

    layers: tuple[Pair, ...]
    length: jax.Array
    step: jax.Array
    block: int = struct.field(pytree_node=False)
    margin: jax.Array | None = None

    @property
    def seen(self) -> jax.Array:
        """What the next token sees, itself included, bool ``[B, N + P]``."""
        place = jnp.arange(self.layers[0][1].shape[2])
        return jnp.where(place < self.block, place <= self.step, place - self.block < self.length[:, None])

    def advanced(self, layers: Sequence[Pair], margin: jax.Array | None = None) -> Self:
        """Returns the window behind a step that is already in `layers`; `margin` as in `Tail.advanced`."""
        return dataclasses.replace(self, layers=tuple(layers), step=self.step + 1, margin=_closer(self.margin, margin))

    @property
    def tail(self) -> "Tail":
        """The tokens of the block."""
        layers = tuple((jnp.swapaxes(k[..., : self.block], -1, -2), v[:, :, : self.block]) for k, v in self.layers)
        return Tail(layers=layers, stacked=None, step=self.step, margin=self.margin)


@struct.dataclass
class Tail:
    """Keys and values of the tokens that a block has decoded so far: small, so that a step need not write into the cache.

    All rows stand at the same step; what a row decodes behind its end is garbage, which `KVCache.merge` leaves out.

    Attributes:
      layers, stacked: as in `KVCache`, with N tokens.
      step: where the next token goes, int32.
      margin: as in `KVCache`, of the cache's tokens and its own together, also those behind a row's end.
    """

    layers: tuple[Pair, ...]
    stacked: Pair | None
    step: jax.Array
    margin: jax.Array | None = None

    @classmethod
    def create(
        cls,
        config: Qwen3VLConfig,
        batch: int,
        size: int,
        dtype: DTypeLike = jnp.float32,
        execution: Execution | None = None,
        margin: jax.Array | None = None,
    ) -> Self:
        """Returns an empty tail of `size` tokens, behind a cache of that `margin`."""
        layers, stacked = _zeros(config, batch, size, dtype, execution)
        return cls(layers=layers, stacked=stacked, step=jnp.int32(0), margin=margin)

    @property
    def size(self) -> int:
        """N, the most tokens that it holds."""
        return jax.tree.leaves((self.layers, self.stacked))[0].shape[-2]

    def advanced(self, layers: Sequence[Pair], stacked: Pair | None, margin: jax.Array | None = None) -> Self:
        """Returns the tail with a step behind its tokens.

        Args:
          layers, stacked: keys and values of the step, each ``[.., B, Hkv, 1, Dh]``.
          margin: of its tokens, ``[B, 1]``; None without experts.
        """

        def put(old: jax.Array, new: jax.Array) -> jax.Array:
            return jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), self.step, axis=-2)

        return dataclasses.replace(
            self,
            layers=jax.tree.map(put, self.layers, tuple(layers)),
            stacked=jax.tree.map(put, self.stacked, stacked),
            step=self.step + 1,
            margin=_closer(self.margin, margin),
        )


def _closer(margin: jax.Array | None, new: jax.Array | None) -> jax.Array | None:
    """The margin ``[B]`` with that of one more token, ``[B, 1]``."""
    return margin if margin is None or new is None else jnp.minimum(margin, new[:, 0])


def _zeros(
    config: Qwen3VLConfig, batch: int, tokens: int, dtype: DTypeLike, execution: Execution | None
) -> tuple[tuple[Pair, ...], Pair | None]:
    text = config.text
    shape = (batch, text.num_key_value_heads, tokens, text.head_dim)
    unrolled = config.unrolled_layers(execution or Execution())
    scanned = text.num_hidden_layers - unrolled
    layers = tuple((jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)) for _ in range(unrolled))
    return layers, (jnp.zeros((scanned, *shape), dtype), jnp.zeros((scanned, *shape), dtype)) if scanned else None
