"""The vision tower of Qwen3-VL: patches in, visual tokens and DeepStack features out.

Frames are batched, never concatenated: attention inside a temporal patch only, which the published model needs a
segment mask for, is here a matter of shape.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
from flax import nnx, struct

from pixelis_jax.policy import attention as kernels
from pixelis_jax.policy import layers, stack
from pixelis_jax.policy.config import Execution, Precision, VisionConfig
from pixelis_jax.policy.rotary import rotate, vision_angles
from pixelis_jax.sharding import constrain


@struct.dataclass
class VisionInputs:
    """Patches of F frames a row; a frame is one temporal patch (a still image is one frame).

    Attributes:
      patches: flattened patches in merge-block order (block row, block column, row in block, column in block), each
        channel, time, y, x; float ``[B, F, S, P]``. Patches from h * w on are padding.
      grid: height and width in patches, int32 ``[B, F, 2]``; (0, 0) for an absent frame.
    """

    patches: jax.Array
    grid: jax.Array


@struct.dataclass
class VisualFeatures:
    """What the language model takes from the tower; token m of frame f stands at ``f * S/4 + m`` (2 x 2 merge).

    Attributes:
      tokens: ``[B, F * S/4, D]``.
      deepstack: feature k is added after decoder layer k, ``[K, B, F * S/4, D]``.
    """

    tokens: jax.Array
    deepstack: jax.Array


def patch_coordinates(grid: jax.Array, count: int, merge: int) -> tuple[jax.Array, jax.Array]:
    """Row and column of the first `count` patches of each frame, in merge-block order.

    Args:
      grid: ``[N, 2]`` heights and widths in patches.
      count: S.
      merge: side of a merge block.

    Returns:
      Rows and columns, int32 ``[N, S]``; meaningless on padding.
    """
    index = jnp.arange(count, dtype=jnp.int32)
    block, inside = index // merge**2, index % merge**2
    blocks_wide = jnp.maximum(grid[:, 1:] // merge, 1)
    rows = block // blocks_wide * merge + inside // merge
    columns = block % blocks_wide * merge + inside % merge
    return rows, columns


def position_weights(index: jax.Array, size: jax.Array, side: int) -> jax.Array:
    """Weights of linear interpolation with aligned corners from `size` points into a table of `side` points.

    Args:
      index: ``[N, S]`` integer coordinates.
      size: ``[N, 1]`` number of points on this axis.
      side: points of the table.

    Returns:
      float32 ``[N, S, side]``, two non-zero weights a point at most.
    """
    source = index.astype(jnp.float32) * (side - 1) / jnp.maximum(size - 1, 1)
    return jnp.maximum(1.0 - jnp.abs(source[..., None] - jnp.arange(side)), 0.0)


class PositionTable(nnx.Module):
    """Learned square table of positions, interpolated to each frame's grid."""

    def __init__(self, config: VisionConfig, *, precision: Precision, rngs: nnx.Rngs):
        shape = (config.num_position_embeddings, config.hidden_size)
        table = jax.random.normal(rngs.params(), shape, precision.params) * config.initializer_range
        self.table = nnx.Param(table, logical_axes=(None, "vision_embed"))
        self.side = config.position_side

    def __call__(self, rows: jax.Array, columns: jax.Array, grid: jax.Array) -> jax.Array:
        """Returns embeddings, float32 ``[N, S, C]``, of `rows` and `columns` ``[N, S]`` in `grid` ``[N, 2]``."""
        down = position_weights(rows, grid[:, :1], self.side)
        across = position_weights(columns, grid[:, 1:], self.side)
        # One matrix product instead of four gathers: their gradient would be four scatters.
        weights = (down[..., :, None] * across[..., None, :]).reshape(*rows.shape, self.side**2)
        return jnp.dot(weights, self.table[...].astype(jnp.float32), precision=jax.lax.Precision.HIGHEST)


class VisionAttention(nnx.Module):
    """Full attention inside a frame."""

    def __init__(self, config: VisionConfig, *, precision: Precision, attention: str = "xla", rngs: nnx.Rngs):
        size = config.hidden_size
        kernel = jax.random.normal(rngs.params(), (size, 3, size), precision.params) * config.initializer_range
        # Query, key and value have an axis of their own, so that heads can be sharded.
        self.qkv = nnx.Param(kernel, logical_axes=("vision_embed", None, "vision_heads"))
        self.qkv_bias = nnx.Param(jnp.zeros((3, size), precision.params), logical_axes=(None, "vision_heads"))
        self.proj = layers.Linear(
            size,
            size,
            axes=("vision_heads", "vision_embed"),
            bias=True,
            stddev=config.initializer_range,
            precision=precision,
            rngs=rngs,
        )
        self.heads = config.num_heads
        self.compute = precision.compute
        self.attention = attention

    def __call__(self, x: jax.Array, rotary: tuple[jax.Array, jax.Array], bias: jax.Array) -> jax.Array:
        """Attends.

        Args:
          x: ``[N, S, C]``.
          rotary: cosines and sines, each ``[N, S, Dh / 2]``.
          bias: added to the scores, ``[N, 1, 1, S]``: 0 on patches, a large negative number on padding.

        Returns:
          ``[N, S, C]``.
        """
        frames, count, size = x.shape
        x = constrain(x, "frames", None, None)
        kernel = self.qkv[...].astype(self.compute).reshape(size, 3 * size)
        qkv = x @ kernel + self.qkv_bias[...].astype(self.compute).reshape(-1)
        q, k, v = jnp.transpose(qkv.reshape(frames, count, 3, self.heads, -1), (2, 0, 3, 1, 4))
        cos, sin = rotary[0][:, None], rotary[1][:, None]
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        q, k, v = (constrain(array, "frames", "act_heads", None, None) for array in (q, k, v))
        if self.attention == "splash" and kernels.fits(count):
            present = (bias[:, 0, 0] == 0).astype(jnp.int32)
            scaled = q * q.shape[-1] ** -0.5
            mixed = kernels.splash(scaled, k, v, present, causal=False, batch="frames", length=None)
        else:
            scores = jnp.einsum("nhqd,nhkd->nhqk", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
            mixed = jnp.einsum("nhqk,nhkd->nhqd", layers.softmax(scores + bias, self.compute), v)
        return self.proj(jnp.transpose(mixed, (0, 2, 1, 3)).reshape(frames, count, size))


class VisionMLP(nnx.Module):
    """Two layers with the tanh GELU."""

    def __init__(self, config: VisionConfig, *, precision: Precision, rngs: nnx.Rngs):
        size, wide, stddev = config.hidden_size, config.intermediate_size, config.initializer_range
        linear = functools.partial(layers.Linear, bias=True, stddev=stddev, precision=precision, rngs=rngs)
        self.fc1 = linear(size, wide, axes=("vision_embed", "vision_mlp"))
        self.fc2 = linear(wide, size, axes=("vision_mlp", "vision_embed"))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.fc2(layers.gelu_tanh(self.fc1(x)))


class VisionBlock(nnx.Module):
    """Pre-norm transformer block."""

    def __init__(self, config: VisionConfig, *, precision: Precision, attention: str = "xla", rngs: nnx.Rngs):
        self.norm1 = layers.LayerNorm(config.hidden_size, precision=precision)
        self.attn = VisionAttention(config, precision=precision, attention=attention, rngs=rngs)
        self.norm2 = layers.LayerNorm(config.hidden_size, precision=precision)
        self.mlp = VisionMLP(config, precision=precision, rngs=rngs)

    def __call__(self, x: jax.Array, rotary: tuple[jax.Array, jax.Array], bias: jax.Array) -> jax.Array:
        """Maps ``[N, S, C]`` to ``[N, S, C]``; other arguments as in `VisionAttention`."""
        x = x + self.attn(self.norm1(x), rotary, bias)
        return x + self.mlp(self.norm2(x))


class PatchMerger(nnx.Module):
    """Folds each merge block into one token of the language model's width.

    The last merger normalises patches before the fold, the DeepStack mergers normalise the folded vector.
    """

    def __init__(self, config: VisionConfig, *, norm_after_fold: bool, precision: Precision, rngs: nnx.Rngs):
        folded = config.hidden_size * config.merge_unit
        linear = functools.partial(layers.Linear, bias=True, stddev=config.initializer_range, precision=precision, rngs=rngs)
        self.norm = layers.LayerNorm(folded if norm_after_fold else config.hidden_size, precision=precision)
        self.fc1 = linear(folded, folded, axes=("vision_embed", "vision_mlp"))
        self.fc2 = linear(folded, config.out_hidden_size, axes=("vision_mlp", "embed"))
        self.norm_after_fold = norm_after_fold
        self.unit = config.merge_unit

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps ``[N, S, C]`` to ``[N, S / 4, D]``."""
        frames, count, size = x.shape
        folded = (frames, count // self.unit, size * self.unit)
        x = self.norm(x.reshape(folded)) if self.norm_after_fold else self.norm(x).reshape(folded)
        return self.fc2(layers.gelu_exact(self.fc1(x)))


class VisionTower(nnx.Module):
    """Patch embedding, blocks, mergers."""

    def __init__(self, config: VisionConfig, *, precision: Precision, execution: Execution, rngs: nnx.Rngs):
        self.patch_embed = layers.Linear(
            config.patch_dim,
            config.hidden_size,
            axes=(None, "vision_embed"),
            bias=True,
            stddev=config.initializer_range,
            precision=precision,
            rngs=rngs,
        )
        self.positions = PositionTable(config, precision=precision, rngs=rngs)
        blocks = [VisionBlock(config, precision=precision, attention=execution.attention, rngs=rngs) for _ in range(config.depth)]
        self.blocks = nnx.List([] if execution.scan_layers else blocks)
        self.stacked = stack.stack(blocks) if execution.scan_layers else None
        self.merger = PatchMerger(config, norm_after_fold=False, precision=precision, rngs=rngs)
        self.deepstack_mergers = nnx.List(
            [PatchMerger(config, norm_after_fold=True, precision=precision, rngs=rngs) for _ in config.deepstack_visual_indexes]
        )
        self.config = config
        self.execution = execution

    def __call__(self, inputs: VisionInputs) -> VisualFeatures:
        """Encodes frames.

        Args:
          inputs: B rows of F frames in buckets of S patches.

        Returns:
          Tokens ``[B, F * S/4, D]`` and K DeepStack features of the same shape; padding holds finite noise.
        """
        rows_in_batch, frames, count, _ = inputs.patches.shape
        if count % self.config.merge_unit:
            raise ValueError(f"a bucket of {count} patches is no multiple of {self.config.merge_unit}")
        grid = inputs.grid.reshape(-1, 2)
        rows, columns = patch_coordinates(grid, count, self.config.spatial_merge_size)
        angles = vision_angles(rows, columns, self.config)
        present = jnp.arange(count) < grid[:, :1] * grid[:, 1:]
        bias = jnp.where(present, 0.0, layers.HIDDEN)[:, None, None, :]
        # Without the barrier XLA computes these again inside every block's fusions.
        rotary, bias = jax.lax.optimization_barrier(((jnp.cos(angles), jnp.sin(angles)), bias))

        x = self.patch_embed(inputs.patches.reshape(-1, count, self.config.patch_dim))
        x = constrain(x + self.positions(rows, columns, grid).astype(x.dtype), "frames", None, None)

        def call(block: VisionBlock, x: jax.Array, _: None) -> tuple[jax.Array, None]:
            return block(x, rotary, bias), None

        remat = self.execution.remat
        taps: list[jax.Array] = []
        if self.stacked is not None:
            # One scan from tap to tap: taps inside a scan would be kept once a layer for the backward pass.
            edges = [0, *(tap + 1 for tap in self.config.deepstack_visual_indexes), self.config.depth]
            for start, stop in itertools.pairwise(edges):
                if start < stop:
                    x, _ = stack.scan(self.stacked, call, x, remat=remat, start=start, stop=stop)
                if len(taps) < len(self.deepstack_mergers):
                    taps.append(self.deepstack_mergers[len(taps)](x))
        for depth, block in enumerate(self.blocks):
            x, _ = stack.run(block, call, x, remat=remat)
            if depth in self.config.deepstack_visual_indexes:
                taps.append(self.deepstack_mergers[len(taps)](x))
        tokens = self.merger(x)
        shape = (rows_in_batch, frames * tokens.shape[1], tokens.shape[2])
        deepstack = jnp.stack(taps) if taps else jnp.zeros((0, *tokens.shape), tokens.dtype)
        return VisualFeatures(tokens=tokens.reshape(shape), deepstack=deepstack.reshape(-1, *shape))
