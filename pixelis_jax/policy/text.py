"""The decoder of Qwen3-VL: grouped-query attention with per-head norms, SwiGLU, DeepStack features added on the way."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx, struct

from pixelis_jax.policy import layers
from pixelis_jax.policy.config import Precision, TextConfig
from pixelis_jax.policy.kv_cache import KVCache
from pixelis_jax.policy.rotary import rotate, text_angles


@struct.dataclass
class AttentionContext:
    """What every layer needs and no layer changes.

    Attributes:
      cos, sin: rotary table of the T tokens, float32 ``[B, 1, T, Dh / 2]``.
      chunk_bias: added to scores between the T tokens, repeated for the G query heads of a group, float32
        ``[B, 1, G * T, T]``.
      past_bias: added to scores on the cache, float32 ``[B, 1, 1, C]``; None without a cache.
    """

    cos: jax.Array
    sin: jax.Array
    chunk_bias: jax.Array
    past_bias: jax.Array | None

    @classmethod
    def create(cls, positions: jax.Array, segments: jax.Array, cache: KVCache | None, config: TextConfig) -> "AttentionContext":
        """Builds the context from positions ``[B, T, 3]`` and segment ids ``[B, T]`` (0 = padding)."""
        angles = text_angles(positions, config)[:, None]
        count = segments.shape[1]
        causal = jnp.tril(jnp.ones((count, count), bool))
        visible = (segments[:, :, None] == segments[:, None, :]) & (segments[:, None, :] != 0) & causal
        past = None
        if cache is not None:
            past = _bias(jnp.arange(cache.capacity) < cache.length[:, None])[:, None, None, :]
        # Repeated here once: a broadcast over a fifth dimension in every layer doubles the cost of attention on CPU.
        chunk = jnp.tile(_bias(visible), (1, config.num_attention_heads // config.num_key_value_heads, 1))[:, None]
        context = cls(cos=jnp.cos(angles), sin=jnp.sin(angles), chunk_bias=chunk, past_bias=past)
        # Without the barrier XLA computes these again inside every layer's fusions.
        return jax.lax.optimization_barrier(context)


def _bias(visible: jax.Array) -> jax.Array:
    return jnp.where(visible, jnp.float32(0), jnp.float32(layers.HIDDEN))


class TextAttention(nnx.Module):
    """Causal grouped-query attention; keys and values of a group are shared, never repeated in memory."""

    def __init__(self, config: TextConfig, *, precision: Precision, rngs: nnx.Rngs):
        size, width = config.hidden_size, config.head_dim
        queries, keys = config.num_attention_heads * width, config.num_key_value_heads * width
        linear = functools.partial(layers.Linear, bias=False, stddev=config.initializer_range, precision=precision, rngs=rngs)
        self.q_proj = linear(size, queries, axes=("embed", "heads"))
        self.k_proj = linear(size, keys, axes=("embed", "kv_heads"))
        self.v_proj = linear(size, keys, axes=("embed", "kv_heads"))
        self.o_proj = linear(queries, size, axes=("heads", "embed"))
        self.q_norm = layers.RMSNorm(width, eps=config.rms_norm_eps, precision=precision)
        self.k_norm = layers.RMSNorm(width, eps=config.rms_norm_eps, precision=precision)
        self.kv_heads = config.num_key_value_heads
        self.head_dim = width
        self.compute = precision.compute

    def __call__(
        self, x: jax.Array, context: AttentionContext, past: tuple[jax.Array, jax.Array] | None
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """Attends to the cache and, causally, to the chunk itself.

        Args:
          x: ``[B, T, D]``.
          context: rotary table and masks.
          past: this layer's cached keys and values, each ``[B, Hkv, C, Dh]``, or None.

        Returns:
          ``[B, T, D]`` and the chunk's own keys and values, each ``[B, Hkv, T, Dh]``.
        """
        batch, count, _ = x.shape
        q = rotate(self.q_norm(self._heads(self.q_proj(x))), context.cos, context.sin)
        k = rotate(self.k_norm(self._heads(self.k_proj(x))), context.cos, context.sin)
        v = self._heads(self.v_proj(x))
        # The query heads of one group become extra rows of one matrix product: [B, Hkv, G * T, Dh].
        grouped = q.reshape(batch, self.kv_heads, -1, self.head_dim) * self.head_dim**-0.5
        scores = _scores(grouped, k) + context.chunk_bias
        if past is not None:
            assert context.past_bias is not None  # made from the same cache
            # The chunk is not yet in the cache: reading before the one write at the end lets XLA update in place.
            scores = jnp.concatenate([_scores(grouped, past[0]) + context.past_bias, scores], axis=-1)
        weights = layers.softmax(scores, self.compute)
        capacity = weights.shape[-1] - count
        mixed = jnp.einsum("bhqk,bhkd->bhqd", weights[..., capacity:], v)
        if past is not None:
            mixed += jnp.einsum("bhqk,bhkd->bhqd", weights[..., :capacity], past[1].astype(self.compute))
        mixed = jnp.transpose(mixed.reshape(batch, -1, count, self.head_dim), (0, 2, 1, 3))
        return self.o_proj(mixed.reshape(batch, count, -1)), (k, v)

    def _heads(self, x: jax.Array) -> jax.Array:
        """Splits ``[B, T, H * Dh]`` into ``[B, H, T, Dh]``."""
        return jnp.transpose(x.reshape(*x.shape[:2], -1, self.head_dim), (0, 2, 1, 3))


def _scores(q: jax.Array, k: jax.Array) -> jax.Array:
    """Scores of queries ``[B, H, M, Dh]`` on keys ``[B, H, N, Dh]``: float32 ``[B, H, M, N]``."""
    return jnp.einsum("bhqd,bhkd->bhqk", q, k.astype(q.dtype), preferred_element_type=jnp.float32)


class TextMLP(nnx.Module):
    """SwiGLU (Shazeer, https://arxiv.org/abs/2002.05202)."""

    def __init__(self, config: TextConfig, *, precision: Precision, rngs: nnx.Rngs):
        size, wide = config.hidden_size, config.intermediate_size
        linear = functools.partial(layers.Linear, bias=False, stddev=config.initializer_range, precision=precision, rngs=rngs)
        self.gate_proj = linear(size, wide, axes=("embed", "mlp"))
        self.up_proj = linear(size, wide, axes=("embed", "mlp"))
        self.down_proj = linear(wide, size, axes=("mlp", "embed"))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down_proj(jax.nn.silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nnx.Module):
    """Pre-norm decoder layer."""

    def __init__(self, config: TextConfig, *, precision: Precision, rngs: nnx.Rngs):
        self.input_norm = layers.RMSNorm(config.hidden_size, eps=config.rms_norm_eps, precision=precision)
        self.attn = TextAttention(config, precision=precision, rngs=rngs)
        self.post_attention_norm = layers.RMSNorm(config.hidden_size, eps=config.rms_norm_eps, precision=precision)
        self.mlp = TextMLP(config, precision=precision, rngs=rngs)

    def __call__(
        self, x: jax.Array, context: AttentionContext, past: tuple[jax.Array, jax.Array] | None
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """Maps ``[B, T, D]`` to ``[B, T, D]``; other arguments and results as in `TextAttention`."""
        mixed, chunk = self.attn(self.input_norm(x), context, past)
        x = x + mixed
        return x + self.mlp(self.post_attention_norm(x)), chunk


class TextDecoder(nnx.Module):
    """Embedding, decoder layers, final norm."""

    def __init__(self, config: TextConfig, *, precision: Precision, remat: bool, rngs: nnx.Rngs):
        shape = (config.vocab_size, config.hidden_size)
        table = jax.random.normal(rngs.params(), shape, precision.params) * config.initializer_range
        self.embedding = nnx.Param(table, logical_axes=("vocab", "embed"))
        self.layers = nnx.List([DecoderLayer(config, precision=precision, rngs=rngs) for _ in range(config.num_hidden_layers)])
        self.norm = layers.RMSNorm(config.hidden_size, eps=config.rms_norm_eps, precision=precision)
        self.config = config
        self.compute = precision.compute
        self.remat = remat

    def embed(self, ids: jax.Array) -> jax.Array:
        """Returns the embeddings ``[B, T, D]`` of ids ``[B, T]``."""
        return jnp.take(self.embedding[...], ids, axis=0).astype(self.compute)

    def __call__(
        self,
        x: jax.Array,
        positions: jax.Array,
        segments: jax.Array,
        deepstack: jax.Array | None,
        cache: KVCache | None,
    ) -> tuple[jax.Array, KVCache | None]:
        """Runs the layers.

        Args:
          x: embeddings with visual tokens in place, ``[B, T, D]``.
          positions: ``[B, T, 3]``.
          segments: int32 ``[B, T]``, 0 = padding.
          deepstack: feature k to add after layer k, zero on text, ``[K, B, T, D]``; None for text alone.
          cache: earlier tokens, or None.

        Returns:
          Hidden states after the final norm, ``[B, T, D]``, and the cache with the chunk appended.
        """
        context = AttentionContext.create(positions, segments, cache, self.config)
        layer_call = nnx.remat(DecoderLayer.__call__) if self.remat else DecoderLayer.__call__
        chunks = []
        for index, layer in enumerate(self.layers):
            past = None if cache is None else (cache.k[index], cache.v[index])
            x, chunk = layer_call(layer, x, context, past)
            if deepstack is not None and index < deepstack.shape[0]:
                x = x + deepstack[index]
            chunks.append(chunk)
        if cache is not None:
            keys, values = zip(*chunks, strict=True)
            cache = cache.append(keys, values, segments != 0)
        return self.norm(x), cache
