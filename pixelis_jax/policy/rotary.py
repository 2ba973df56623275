"""Rotary positions: axial for the vision tower, interleaved MRoPE for the language model, and the ids on the host.

Rotary embedding: Su et al., https://arxiv.org/abs/2104.09864; the interleaved multimodal form: Qwen3-VL technical
report, https://arxiv.org/abs/2511.21631.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from pixelis_jax.policy.config import Qwen3VLConfig, TextConfig, VisionConfig

Grid = tuple[int, int, int]


def inverse_frequencies(dim: int, theta: float) -> np.ndarray:
    """Returns ``theta ** (-2 i / dim)`` for i < dim/2, float32 ``[dim / 2]``."""
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    return np.float32(1.0) / np.power(np.float32(theta), exponents)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotates pairs (i, i + D/2) of the last axis.

    Args:
      x: ``[..., D]``.
      cos: float32, broadcastable to ``[..., D / 2]``.
      sin: float32, broadcastable to ``[..., D / 2]``.

    Returns:
      The rotated array, ``[..., D]`` in the dtype of `x`.
    """
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def vision_angles(rows: jax.Array, columns: jax.Array, config: VisionConfig) -> jax.Array:
    """Angles of the axial embedding: the first half of the frequencies turns with the row, the second with the column.

    Args:
      rows: patch rows, ``[...]``.
      columns: patch columns, ``[...]``.
      config: vision tower.

    Returns:
      float32 ``[..., head_dim / 2]``.
    """
    frequencies = inverse_frequencies(config.head_dim // 2, config.rope_theta)
    return jnp.concatenate([rows[..., None] * frequencies, columns[..., None] * frequencies], axis=-1)


def text_angles(positions: jax.Array, config: TextConfig) -> jax.Array:
    """Angles of interleaved MRoPE: frequency i turns with time, height or width as ``mrope_section`` says.

    Args:
      positions: time, height, width, int32 ``[B, T, 3]``.
      config: language model.

    Returns:
      float32 ``[B, T, head_dim / 2]``.
    """
    frequencies = inverse_frequencies(config.head_dim, config.rope_theta)
    index = np.arange(config.head_dim // 2)
    angles = positions.astype(jnp.float32)[..., None] * frequencies
    height = (index % 3 == 1) & (index < 3 * config.mrope_section[1])
    width = (index % 3 == 2) & (index < 3 * config.mrope_section[2])
    return jnp.where(height, angles[..., 1, :], jnp.where(width, angles[..., 2, :], angles[..., 0, :]))


def mrope_positions(ids: np.ndarray, grids: Sequence[Grid], config: Qwen3VLConfig, *, start: int = 0) -> tuple[np.ndarray, int]:
    """Positions of a token sequence, or of a chunk that continues one.

    Text advances all three coordinates. A visual span at p has ``T = p, H = p + row, W = p + column`` on the merged
    grid and moves p on by the longer side of that grid. Every temporal patch of a video is a span of its own.

    Args:
      ids: token ids with one placeholder a visual token, ``[T]``.
      grids: (t, h, w) in patches of the media in `ids`, in order; t > 1 stands for t spans.
      config: model.
      start: position of the first token: 0, or the `next_position` that the preceding chunk returned.

    Returns:
      Positions, int32 ``[T, 3]``, and the position of the token that would follow.

    Raises:
      ValueError: the placeholders in `ids` and `grids` do not match.
    """
    ids = np.asarray(ids)
    merge = config.vision.spatial_merge_size
    positions = np.zeros((len(ids), 3), np.int32)
    token, position = 0, start
    for offset, (h, w) in _visual_spans(ids, grids, config):
        positions[token:offset] = (position + np.arange(offset - token))[:, None]
        position += offset - token
        rows, columns = np.indices((h // merge, w // merge)).reshape(2, -1)
        token = offset + len(rows)
        positions[offset:token] = position + np.stack([np.zeros_like(rows), rows, columns], axis=-1)
        position += max(h, w) // merge
    positions[token:] = (position + np.arange(len(ids) - token))[:, None]
    return positions, position + len(ids) - token


def visual_index(
    ids: np.ndarray, grids: Sequence[Grid], config: Qwen3VLConfig, *, bucket: int, first_frame: int = 0
) -> np.ndarray:
    """Where each placeholder finds its visual token in `VisualFeatures.tokens`.

    Args:
      ids: token ids with one placeholder a visual token, ``[T]``.
      grids: (t, h, w) in patches of the media in `ids`, in order.
      config: model.
      bucket: S, patches a frame in `VisionInputs`.
      first_frame: frame of `VisionInputs` that holds the first span.

    Returns:
      int32 ``[T]``; -1 for text.

    Raises:
      ValueError: the placeholders in `ids` and `grids` do not match, or a frame does not fit into the bucket.
    """
    ids = np.asarray(ids)
    index = np.full(len(ids), -1, np.int32)
    unit = config.vision.merge_unit
    for frame, (offset, (h, w)) in enumerate(_visual_spans(ids, grids, config), start=first_frame):
        if h * w > bucket:
            raise ValueError(f"a frame of {h} x {w} patches does not fit into a bucket of {bucket}")
        index[offset : offset + h * w // unit] = frame * (bucket // unit) + np.arange(h * w // unit)
    return index


def _visual_spans(ids: np.ndarray, grids: Sequence[Grid], config: Qwen3VLConfig) -> list[tuple[int, tuple[int, int]]]:
    """Returns (first token, (h, w) in patches) of every visual span, one a temporal patch."""
    visual = np.isin(ids, config.visual_token_ids)
    spans: list[tuple[int, tuple[int, int]]] = []
    token = 0
    for h, w in ((h, w) for t, h, w in grids for _ in range(t)):
        ahead = np.flatnonzero(visual[token:])
        first = token + int(ahead[0]) if len(ahead) else len(ids)
        token = first + h * w // config.vision.merge_unit
        if token > len(ids) or not visual[first:token].all():
            raise ValueError(f"no run of {token - first} visual placeholders for a frame of {h} x {w} patches")
        spans.append((first, (h, w)))
    if visual[token:].any():
        raise ValueError(f"{int(visual[token:].sum())} visual placeholders without a medium")
    return spans
