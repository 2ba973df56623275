"""Keys: where a query lies, by its pixels and its text, in the eyes of the frozen policy.

The policy that makes keys never changes, so keys never go stale (`docs/algorithms.md`, section 3).
"""

from __future__ import annotations

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from pixelis_jax.policy import Qwen3VL, VisionInputs

_TINY = 1e-12  # below it there is nothing whose direction could be taken


def masked_mean(features: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean over the tokens that are there.

    Args:
      features: `[B, N, D]`; what the mask hides may hold anything finite.
      mask: bool `[B, N]`.

    Returns:
      float32 `[B, D]`; zeros for a row without tokens.
    """
    chex.assert_rank([features, mask], [3, 2])
    chex.assert_equal_shape_prefix([features, mask], 2)
    weights = mask.astype(jnp.float32)
    total = jnp.einsum("bnd,bn->bd", features.astype(jnp.float32), weights, precision="highest")
    return total / jnp.maximum(weights.sum(axis=1), 1)[:, None]


def join(visual: jax.Array, text: jax.Array, share: float = 0.5) -> jax.Array:
    """`g = normalise([sqrt(a) v ; sqrt(1 - a) u])`.

    v and u are brought to length 1 first. So the cosine of two keys is `a cos(v, v') + (1 - a) cos(u, u')`, and a is the weight
    that its name says, whatever the norms of the two spaces.

    Args:
      visual: v, pooled merger output, `[B, V]`; zeros for a query without pixels, whose key is its text's alone.
      text: u, pooled token embeddings, `[B, U]`; zeros likewise.
      share: a, in [0, 1].

    Returns:
      float32 `[B, V + U]`, of length 1; zeros where there is neither.
    """
    chex.assert_rank([visual, text], 2)
    chex.assert_equal_shape_prefix([visual, text], 1)
    return _unit(jnp.concatenate([jnp.sqrt(share) * _unit(visual), jnp.sqrt(1 - share) * _unit(text)], axis=1))


def _unit(x: jax.Array) -> jax.Array:
    x = x.astype(jnp.float32)
    length = jnp.linalg.norm(x, axis=1, keepdims=True)
    return jnp.where(length > _TINY, x / jnp.maximum(length, _TINY), 0)


@functools.partial(jax.jit, static_argnums=0, static_argnames="share")
def _keys(
    graph: nnx.GraphDef[Qwen3VL],
    params: nnx.State,
    ids: jax.Array,
    mask: jax.Array,
    patches: jax.Array,
    grid: jax.Array,
    *,
    share: float,
) -> jax.Array:
    model = nnx.merge(graph, params)
    text = masked_mean(model.decoder.embed(ids), mask)
    if not grid.shape[1]:
        return join(jnp.zeros_like(text), text, share)
    tokens = model.encode_vision(VisionInputs(patches=patches, grid=grid)).tokens
    a_frame = patches.shape[2] // model.config.vision.merge_unit
    held = grid[..., 0] * grid[..., 1] // model.config.vision.merge_unit
    present = jnp.arange(a_frame) < held[..., None]
    return join(masked_mean(tokens, present.reshape(len(ids), -1)), text, share)


class KeyMaker:
    """The frozen policy as a maker of keys; compiles once a shape."""

    def __init__(self, model: Qwen3VL, *, share: float = 0.5) -> None:
        """Keeps a policy as it is now; later updates of `model` change no key.

        Args:
          model: The SFT policy. Its arrays are shared, not copied: an update that donates them needs a copy here.
          share: a, the weight of the pixels, in [0, 1].
        """
        if not 0 <= share <= 1:
            raise ValueError(f"share is {share}, expected a number in [0, 1]")
        self._graph, params = nnx.split(model)
        self._params = jax.tree.map(lambda leaf: leaf, params)  # else it would share the model's variables
        self._share = share
        self.dim = 2 * model.config.text.hidden_size  # the merger gives the decoder's width

    def __call__(self, ids: np.ndarray, mask: np.ndarray, patches: np.ndarray, grid: np.ndarray) -> np.ndarray:
        """Makes the keys of B queries.

        Args:
          ids: Tokens, int32 `[B, T]`.
          mask: Those of the question itself, bool `[B, T]`: the template and the tools are the same in all, and vision tokens are
            placeholders.
          patches: float32 `[B, F, S, P]`, as in `encoding.Chunk`; F may be 0.
          grid: int32 `[B, F, 2]`; (0, 0) for an absent frame.

        Returns:
          float32 `[B, D]`, of length 1.

        Raises:
          ValueError: A query has neither text nor pixels.
        """
        keys = np.asarray(_keys(self._graph, self._params, ids, mask, patches, grid, share=self._share))
        if not keys.any(axis=1).all():
            raise ValueError("a query has neither text nor pixels, so it has no key")
        return keys
