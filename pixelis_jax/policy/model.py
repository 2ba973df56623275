"""Qwen3-VL: vision tower, decoder, and the joint between them."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import nnx

from pixelis_jax.policy import layers
from pixelis_jax.policy.config import Execution, Lora, Precision, Qwen3VLConfig
from pixelis_jax.policy.kv_cache import KVCache, Tail, Window
from pixelis_jax.policy.text import TextDecoder
from pixelis_jax.policy.vision import VisionInputs, VisionTower, VisualFeatures


class Qwen3VL(nnx.Module):
    """The policy.

    Technical report: https://arxiv.org/abs/2511.21631. The functions are pure in the parameters and jit-able; shapes
    are static. Parameters of the released models load through `pixelis_jax.policy.weights`.
    """

    def __init__(
        self,
        config: Qwen3VLConfig,
        *,
        precision: Precision | None = None,
        execution: Execution | None = None,
        lora: Lora | None = None,
        rngs: nnx.Rngs,
    ):
        """Creates a randomly initialised model.

        Args:
          config: architecture.
          precision: number formats; float32 by default.
          execution: how it is computed; layer by layer by default.
          lora: adapters; none by default.
          rngs: stream ``params`` for the initialisation.
        """
        precision, execution = precision or Precision(), execution or Execution()
        taps = len(config.vision.deepstack_visual_indexes)
        self.visual = VisionTower(config.vision, precision=precision, execution=execution, rngs=rngs)
        self.decoder = TextDecoder(config.text, precision=precision, execution=execution, taps=taps, lora=lora, rngs=rngs)
        self.lm_head = None if config.tie_word_embeddings else _lm_head(config, precision, rngs)
        self.config = config
        self.precision = precision
        self.execution = execution
        self.lora = lora

    def encode_vision(self, vision: VisionInputs) -> VisualFeatures:
        """Encodes the frames of a batch: tokens ``[B, F * S/4, D]`` and DeepStack features ``[K, B, F * S/4, D]``."""
        return self.visual(vision)

    def __call__(
        self,
        ids: jax.Array,
        positions: jax.Array,
        *,
        visual: VisualFeatures | None = None,
        visual_index: jax.Array | None = None,
        attention_mask: jax.Array | None = None,
        cache: KVCache | None = None,
    ) -> tuple[jax.Array, KVCache | None]:
        """Runs the decoder over a batch of sequences, or over a chunk behind a cache.

        Args:
          ids: int32 ``[B, T]``.
          positions: time, height, width of each token, int32 ``[B, T, 3]`` (`rotary.mrope_positions`).
          visual: features of the batch's frames; None for text alone.
          visual_index: index into ``visual.tokens`` for each token, -1 for text, int32 ``[B, T]``
            (`rotary.visual_index`).
          attention_mask: bool validity, or int32 segment ids with 0 for padding, ``[B, T]``. A token sees earlier
            tokens of its own segment, so left padding, right padding and packing all work. None: all valid.
          cache: earlier tokens of each row. The chunk is right-padded, all its valid tokens see the whole row, and
            segments are not told apart.

        Returns:
          Hidden states after the final norm, ``[B, T, D]``, and the cache with the chunk appended (None without one).
        """
        chex.assert_rank([ids, positions], [2, 3])
        chex.assert_shape(positions, (*ids.shape, 3))
        segments = jnp.ones(ids.shape, jnp.int32) if attention_mask is None else attention_mask.astype(jnp.int32)
        x = self.decoder.embed(ids)
        deepstack = None
        if visual is not None:
            if visual_index is None:
                raise ValueError("visual features were given without visual_index")
            chex.assert_equal_shape([ids, visual_index])
            x, deepstack = _place_visual(x, visual, visual_index)
        return self.decoder(x, positions, segments, deepstack, cache)

    def decode(self, ids: jax.Array, positions: jax.Array, cache: KVCache, tail: Tail) -> tuple[jax.Array, Tail]:
        """Runs one text token of each row behind its cache and the tail.

        Args:
          ids: int32 ``[B]``.
          positions: of the tokens; time, height and width are the same; int32 ``[B]``.
          cache: only read: `KVCache.merge` takes the tail in when a block has ended.
          tail: the tokens decoded since.

        Returns:
          Hidden states after the final norm, ``[B, D]``, and the tail with the tokens in it.
        """
        hidden, tail = self._decode(ids, positions, cache, tail, None)
        return hidden, tail

    def decode_in_window(self, ids: jax.Array, positions: jax.Array, window: Window) -> tuple[jax.Array, Window]:
        """Runs one text token of each row behind a window.

        Args:
          ids: int32 ``[B]``.
          positions: as in `decode`.
          window: the tokens before them.

        Returns:
          Hidden states after the final norm, ``[B, D]``, and the window with the tokens in it.
        """
        return self._decode(ids, positions, None, None, window)

    def _decode(
        self, ids: jax.Array, positions: jax.Array, cache: KVCache | None, tail: Tail | None, window: Window | None
    ) -> tuple[jax.Array, Any]:
        x = self.decoder.embed(ids[:, None])
        spread = jnp.broadcast_to(positions[:, None, None], (*x.shape[:2], 3))
        hidden, past = self.decoder(x, spread, jnp.ones(x.shape[:2], jnp.int32), None, cache, tail, window)
        return hidden[:, 0], past

    def unembedding_matrix(self) -> jax.Array:
        """Returns the matrix ``[V, D]`` whose product with a hidden state gives logits."""
        return self.decoder.embedding[...] if self.lm_head is None else self.lm_head.kernel[...].T

    def unembed(self, hidden: jax.Array) -> jax.Array:
        """Returns float32 logits ``[..., V]`` of hidden states ``[..., D]``."""
        matrix = self.unembedding_matrix().astype(self.precision.compute)
        return jnp.einsum("...d,vd->...v", hidden, matrix, preferred_element_type=jnp.float32)


def _lm_head(config: Qwen3VLConfig, precision: Precision, rngs: nnx.Rngs) -> layers.Linear:
    text = config.text
    return layers.Linear(
        text.hidden_size,
        text.vocab_size,
        axes=("embed", "vocab"),
        bias=False,
        stddev=text.initializer_range,
        precision=precision,
        rngs=rngs,
    )


def _place_visual(x: jax.Array, visual: VisualFeatures, index: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Puts visual tokens over their placeholders in `x`, and spreads DeepStack features to ``[K, B, T, D]``."""
    # One gather for tokens and features together: on the way back it is one scatter instead of K + 1.
    stacked = jnp.concatenate([visual.tokens[None], visual.deepstack])
    spread = jnp.take_along_axis(stacked, jnp.maximum(index, 0)[None, :, :, None], axis=2)
    spread = jnp.where((index >= 0)[None, :, :, None], spread, 0).astype(x.dtype)
    return jnp.where((index >= 0)[..., None], spread[0], x), spread[1:]
