"""The decoder of Qwen3-VL: grouped-query attention with per-head norms, SwiGLU or experts, DeepStack features on the way."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx, struct

from pixelis_jax import sharding
from pixelis_jax.policy import attention, layers, stack
from pixelis_jax.policy.config import Execution, Lora, Precision, TextConfig
from pixelis_jax.policy.kv_cache import KVCache, Pair, Tail, Window
from pixelis_jax.policy.moe import MixtureOfExperts
from pixelis_jax.policy.rotary import rotate, text_angles
from pixelis_jax.sharding import constrain

# Keys and values of the cache and of the tail; or of a window, which is both.
Past = tuple[Pair, Pair | None]
# What a layer adds to them: keys and values of the chunk, and how close each token's choice of experts was, float32 ``[B, T]``.
Made = tuple[Pair, jax.Array | None]


@struct.dataclass
class AttentionContext:
    """What every layer needs and no layer changes.

    Attributes:
      cos, sin: rotary table of the T tokens, float32 ``[B, 1, T, Dh / 2]``.
      local_bias: added to scores of each tile of t queries (`attention.tile_ends`) on the e tokens up to its end, repeated for
        the G query heads of a group, float32 ``[B, 1, G * t, e]``. None where `splash` attends, which takes the segments
        themselves, and on a window.
      window_bias: added to scores on a window, float32 ``[B, 1, 1, N]``; None without one.
      segments: int32 ``[B, T]``, 0 = padding.
      length, rows: tokens of the cache, int32 ``[B]``, and the rows of it, or None for all; None without one.
      step: tokens of the tail, int32; None without one.
      page: tokens of the cache that are read at a time; static.
    """

    cos: jax.Array
    sin: jax.Array
    local_bias: tuple[jax.Array, ...] | None
    segments: jax.Array
    window_bias: jax.Array | None = None
    length: jax.Array | None = None
    rows: jax.Array | None = None
    step: jax.Array | None = None
    page: int = struct.field(pytree_node=False, default=0)

    @property
    def on_kernels(self) -> bool:
        """Whether Pallas kernels compute where there are some."""
        return self.local_bias is None and self.window_bias is None

    @classmethod
    def create(
        cls,
        positions: jax.Array,
        segments: jax.Array,
        config: TextConfig,
        *,
        cache: KVCache | None = None,
        tail: Tail | None = None,
        window: Window | None = None,
        splash: bool = False,
    ) -> "AttentionContext":
        """Builds the context from positions ``[B, T, 3]`` and segment ids ``[B, T]`` (0 = padding)."""
        angles = text_angles(positions, config)[:, None]
        if splash:
            tables = jax.lax.optimization_barrier((jnp.cos(angles), jnp.sin(angles)))
            return cls(cos=tables[0], sin=tables[1], local_bias=None, segments=segments)
        if window is not None:
            bias = _bias(window.seen)[:, None, None]
            cos, sin, bias = jax.lax.optimization_barrier((jnp.cos(angles), jnp.sin(angles), bias))
            return cls(cos=cos, sin=sin, local_bias=None, segments=segments, window_bias=bias, step=window.step)
        count = segments.shape[1]
        causal = jnp.tril(jnp.ones((count, count), bool))
        visible = (segments[:, :, None] == segments[:, None, :]) & (segments[:, None, :] != 0) & causal
        if cache is not None:  # a padded query, too, has to see something
            visible |= jnp.eye(count, dtype=bool)
        # Repeated here once: a broadcast over a fifth dimension in every layer doubles the cost of attention on CPU.
        groups = config.num_attention_heads // config.num_key_value_heads
        ends = (count,) if tail is not None else attention.tile_ends(count)
        tiles = [visible[:, start:end, :end] for start, end in zip((0, *ends), ends, strict=False)]
        local = tuple(jnp.tile(_bias(tile), (1, groups, 1))[:, None] for tile in tiles)
        context = cls(
            cos=jnp.cos(angles),
            sin=jnp.sin(angles),
            local_bias=local,
            segments=segments,
            length=None if cache is None else cache.held,
            rows=None if cache is None else cache.rows,
            step=None if tail is None else tail.step,
            page=0 if cache is None else cache.page,
        )
        return _once(context, segments)


def _once(context: Any, segments: jax.Array) -> Any:
    """Has XLA compute tables of tokens once, not again inside every layer's fusions.

    Its CPU backend drops barriers before it fuses, but fuses nothing into a branch.

    Args:
      context: the tables.
      segments: of their tokens, ``[B, T]``, 0 = padding.
    """
    if sharding.distributed() or segments.shape[1] == 1:  # a lone token's tables are cheaper than a branch
        return jax.lax.optimization_barrier(context)
    return jax.lax.cond(jnp.any(segments != 0), lambda: context, lambda: jax.tree.map(jnp.zeros_like, context))


def _bias(visible: jax.Array) -> jax.Array:
    return jnp.where(visible, jnp.float32(0), jnp.float32(layers.HIDDEN))


class TextAttention(nnx.Module):
    """Causal grouped-query attention; keys and values of a group are shared, never repeated in memory."""

    def __init__(self, config: TextConfig, *, precision: Precision, lora: Lora | None = None, rngs: nnx.Rngs):
        size, width = config.hidden_size, config.head_dim
        queries, keys = config.num_attention_heads * width, config.num_key_value_heads * width
        linear = _projection(config, precision, lora, rngs)
        self.q_proj = linear("q_proj", size, queries, axes=("embed", "heads"))
        self.k_proj = linear("k_proj", size, keys, axes=("embed", "kv_heads"))
        self.v_proj = linear("v_proj", size, keys, axes=("embed", "kv_heads"))
        self.o_proj = linear("o_proj", queries, size, axes=("heads", "embed"))
        self.q_norm = layers.RMSNorm(width, eps=config.rms_norm_eps, precision=precision)
        self.k_norm = layers.RMSNorm(width, eps=config.rms_norm_eps, precision=precision)
        self.kv_heads = config.num_key_value_heads
        self.head_dim = width
        self.compute = precision.compute

    def __call__(self, x: jax.Array, context: AttentionContext, past: Past | None) -> tuple[jax.Array, Pair]:
        """Attends to the cache, to the tail and, causally, to the chunk itself.

        Args:
          x: ``[B, T, D]``.
          context: rotary table and masks.
          past: this layer's cached keys and values, each ``[B, Hkv, C, Dh]``, and those of the tail, each ``[B, Hkv, N, Dh]``,
            or None for either.

        Returns:
          ``[B, T, D]`` and the chunk's own keys and values, each ``[B, Hkv, T, Dh]``, or the window with them.
        """
        batch, count, _ = x.shape
        q = constrain(self._heads(self.q_proj(x)), "batch", "act_heads", "length", None)
        q = rotate(self.q_norm(q), context.cos, context.sin)
        # Keys and values of all tokens are needed everywhere on the context axis.
        k, v = (constrain(self._heads(p(x)), "batch", "act_kv_heads", None, None) for p in (self.k_proj, self.v_proj))
        k = rotate(self.k_norm(k), context.cos, context.sin)
        if context.window_bias is not None:
            assert past is not None and context.step is not None  # made from the same window
            grouped = q.reshape(batch, self.kv_heads, -1, self.head_dim) * self.head_dim**-0.5
            mixed, window = attention.over_window(grouped, (k, v), past[0], context.window_bias, context.step)
            return self._joined(mixed.reshape(batch, -1, count, self.head_dim)), window
        if context.local_bias is None:
            mixed = attention.splash(q * self.head_dim**-0.5, k, v, context.segments, causal=True)
            return self._joined(mixed), (k, v)
        # The query heads of one group become extra rows of one matrix product: [B, Hkv, G * T, Dh].
        grouped = q.reshape(batch, self.kv_heads, -1, self.head_dim) * self.head_dim**-0.5
        if past is None:
            mixed = attention.by_tiles(self._attend, grouped, (k, v), context.local_bias)
        else:
            # New tokens are not yet in the cache or the tail: reading before the one write at the end lets XLA update in place.
            assert context.length is not None  # made from the same cache
            cached, tail = past
            mixed = attention.behind_cache(
                grouped,
                (k, v),
                context.local_bias if tail is None else None,
                tail,
                cached,
                step=context.step,
                length=context.length,
                page=context.page,
                rows=context.rows,
            )
        return self._joined(mixed.reshape(batch, -1, count, self.head_dim)), (k, v)

    def _attend(self, q: jax.Array, own: Pair, bias: jax.Array) -> jax.Array:
        """Attends with queries ``[B, Hkv, M, Dh]`` to keys and values ``[B, Hkv, N, Dh]``."""
        weights = layers.softmax(attention.scores(q, own[0]) + bias, self.compute)
        return jnp.einsum("bhqk,bhkd->bhqd", weights, own[1])

    def _joined(self, mixed: jax.Array) -> jax.Array:
        """Joins heads ``[B, H, T, Dh]`` to ``[B, T, D]``."""
        batch, _, count, _ = mixed.shape
        return self.o_proj(jnp.transpose(mixed, (0, 2, 1, 3)).reshape(batch, count, -1))

    def _heads(self, x: jax.Array) -> jax.Array:
        """Splits ``[B, T, H * Dh]`` into ``[B, H, T, Dh]``."""
        return jnp.transpose(x.reshape(*x.shape[:2], -1, self.head_dim), (0, 2, 1, 3))


class TextMLP(nnx.Module):
    """SwiGLU (Shazeer, https://arxiv.org/abs/2002.05202)."""

    def __init__(self, config: TextConfig, *, precision: Precision, lora: Lora | None = None, rngs: nnx.Rngs):
        size, wide = config.hidden_size, config.intermediate_size
        linear = _projection(config, precision, lora, rngs)
        self.gate_proj = linear("gate_proj", size, wide, axes=("embed", "mlp"))
        self.up_proj = linear("up_proj", size, wide, axes=("embed", "mlp"))
        self.down_proj = linear("down_proj", wide, size, axes=("mlp", "embed"))

    def __call__(self, x: jax.Array) -> jax.Array:
        wide = jax.nn.silu(self.gate_proj(x)) * self.up_proj(x)
        return self.down_proj(constrain(wide, "batch", "length", "act_mlp"))


class DecoderLayer(nnx.Module):
    """Pre-norm decoder layer."""

    def __init__(self, config: TextConfig, *, precision: Precision, lora: Lora | None = None, rngs: nnx.Rngs):
        self.input_norm = layers.RMSNorm(config.hidden_size, eps=config.rms_norm_eps, precision=precision)
        self.attn = TextAttention(config, precision=precision, lora=lora, rngs=rngs)
        self.post_attention_norm = layers.RMSNorm(config.hidden_size, eps=config.rms_norm_eps, precision=precision)
        if config.num_experts:
            self.mlp: TextMLP | MixtureOfExperts = MixtureOfExperts(config, precision=precision, rngs=rngs)
        else:
            self.mlp = TextMLP(config, precision=precision, lora=lora, rngs=rngs)

    def __call__(self, x: jax.Array, context: AttentionContext, past: Past | None) -> tuple[jax.Array, Made]:
        """Maps ``[B, T, D]`` to ``[B, T, D]``; other arguments and results as in `TextAttention`.

        Beside keys and values comes `MixtureOfExperts.margin`; None without experts or without a past.
        """
        x = constrain(x, "batch", "length", "act_embed")
        mixed, chunk = self.attn(self.input_norm(x), context, past)
        x = x + mixed
        wide = self.post_attention_norm(x)
        margin = None
        if isinstance(self.mlp, MixtureOfExperts):
            x = x + self.mlp(wide, kernel=context.on_kernels)
            margin = None if past is None else self.mlp.margin(wide)
        else:
            x = x + self.mlp(wide)
        return constrain(x, "batch", "length", "act_embed"), (chunk, margin)


class TextDecoder(nnx.Module):
    """Embedding, decoder layers, final norm."""

    def __init__(
        self,
        config: TextConfig,
        *,
        precision: Precision,
        execution: Execution,
        taps: int,
        lora: Lora | None = None,
        rngs: nnx.Rngs,
    ):
        """Creates the decoder; behind each of its first `taps` layers a DeepStack feature is added."""
        shape = (config.vocab_size, config.hidden_size)
        table = jax.random.normal(rngs.params(), shape, precision.params) * config.initializer_range
        self.embedding = nnx.Param(table, logical_axes=("vocab", "embed"))
        made = [DecoderLayer(config, precision=precision, lora=lora, rngs=rngs) for _ in range(config.num_hidden_layers)]
        unrolled = taps if execution.scan_layers else len(made)
        self.layers = nnx.List(made[:unrolled])
        self.stacked = stack.stack(made[unrolled:]) if made[unrolled:] else None
        self.norm = layers.RMSNorm(config.hidden_size, eps=config.rms_norm_eps, precision=precision)
        self.config = config
        self.compute = precision.compute
        self.execution = execution

    def embed(self, ids: jax.Array) -> jax.Array:
        """Returns the embeddings ``[B, T, D]`` of ids ``[B, T]``."""
        # Each device looks up its own columns for the tokens of its group, which then go to where the rows live: the table is
        # never gathered, nor is its gradient.
        found = jnp.take(self.embedding[...], constrain(ids, "lookup_batch", None), axis=0).astype(self.compute)
        return constrain(constrain(found, "lookup_batch", None, "embed"), "batch", "length", "act_embed")

    def __call__(
        self,
        x: jax.Array,
        positions: jax.Array,
        segments: jax.Array,
        deepstack: jax.Array | None,
        cache: KVCache | None,
        tail: Tail | None = None,
        window: Window | None = None,
    ) -> tuple[jax.Array, Any]:
        """Runs the layers.

        Args:
          x: embeddings with visual tokens in place, ``[B, T, D]``.
          positions: ``[B, T, 3]``.
          segments: int32 ``[B, T]``, 0 = padding.
          deepstack: feature k to add after layer k, zero on text, ``[K, B, T, D]``; None for text alone.
          cache: earlier tokens, or None.
          tail: takes the one new token of each row, in place of the cache.
          window: earlier tokens, and takes the one new token of each row: in place of both.

        Returns:
          Hidden states after the final norm, ``[B, T, D]``, and the tail with the token in it, or the cache with the chunk
          appended; or the window with the token in it.
        """
        remat = self.execution.remat
        splash = self.execution.attention == "splash" and cache is None
        context = AttentionContext.create(positions, segments, self.config, cache=cache, tail=tail, window=window, splash=splash)

        def call(layer: DecoderLayer, x: jax.Array, past: Past | None) -> tuple[jax.Array, Made | None]:
            x, new = layer(x, context, past)
            return x, None if cache is None and window is None else new

        made = []
        for index, layer in enumerate(self.layers):
            past = None if cache is None else (cache.layers[index], None if tail is None else tail.layers[index])
            if window is not None:
                past = (window.layers[index], None)
            x, new = stack.run(layer, call, x, past, remat=remat)
            if deepstack is not None and index < deepstack.shape[0]:
                x = x + deepstack[index]
            made.append(new)
        stacked = None
        if self.stacked is not None:
            stacked_past = None if cache is None else (cache.stacked, None if tail is None else tail.stacked)
            x, stacked = stack.scan(self.stacked, call, x, stacked_past, remat=remat)
        if cache is None and window is None:
            return self.norm(x), None
        pairs = tuple(pair for pair, _ in made)
        stacked_pair, stacked_margins = stacked or (None, None)
        margins = [margin for _, margin in made] + ([] if stacked_margins is None else [stacked_margins.min(axis=0)])
        margin = functools.reduce(jnp.minimum, margins) if self.config.num_experts else None
        if window is not None:
            return self.norm(x), window.advanced(pairs, margin)
        if tail is not None:
            return self.norm(x), tail.advanced(pairs, stacked_pair, margin)
        assert cache is not None  # one of the three
        cache = cache.append(pairs, stacked_pair, segments != 0, margin)
        return self.norm(x), cache


def _projection(config: TextConfig, precision: Precision, lora: Lora | None, rngs: nnx.Rngs) -> Callable[..., layers.Linear]:
    """Returns (name, in, out, axes) -> a projection without bias, with an adapter where `lora` names it."""

    def make(name: str, in_size: int, out_size: int, *, axes: tuple[str, str]) -> layers.Linear:
        return layers.Linear(
            in_size,
            out_size,
            axes=axes,
            bias=False,
            stddev=config.initializer_range,
            precision=precision,
            rngs=rngs,
            lora_rank=lora.rank_of(name) if lora else 0,
            lora_alpha=lora.alpha if lora else 0.0,
            base=lora.base if lora and lora.rank_of(name) else "",
        )

    return make
