"""Initial weights for a policy that is trained from nothing."""

import math

import jax
from flax import nnx

from pixelis_jax.policy.model import Qwen3VL

RESIDUAL = ("o_proj", "down_proj", "proj", "fc2")
"""Last layers of attention and feed-forward blocks, by name."""

POSITION_STD = 0.5
"""Of the table of patch positions: about that of an embedded patch, so that places can be told from the first step."""


def scale_by_fan_in(model: Qwen3VL) -> None:
    """Rescales freshly drawn weights in place, so that each layer keeps the scale of its input (LeCun et al. 1998).

    The published initialisation, a standard deviation of 0.02 everywhere, is meant for widths of thousands. At a width of
    about 100 it shrinks the signal fivefold in every layer: see `docs/training.md` for what that does to the tiny policy.

    Args:
      model: A model as its constructor leaves it. Biases and norms stay as they are, kernels get a standard deviation of
        1/sqrt(fan-in), the token embedding 1/sqrt(hidden size), the table of patch positions `POSITION_STD`. What a block
        adds to its input starts at zero: of the scale of its input, it would drown the embedding of the token.
    """
    for path, parameter in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        value = parameter[...]
        std = float(value.std())
        if value.ndim < 2 or std == 0:
            continue
        parameter.set_value(value * (_std(path, value) / std))


def _std(path: tuple[object, ...], value: jax.Array) -> float:
    if ("blocks" in path or "layers" in path) and any(name in path for name in RESIDUAL):
        return 0.0
    if "positions" in path:
        return POSITION_STD
    if "embedding" in path:
        return 1 / math.sqrt(value.shape[1])
    return 1 / math.sqrt(value.shape[0])
