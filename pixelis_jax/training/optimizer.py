"""The optimiser of all phases."""

from typing import Any

import jax
import optax
from ml_collections import ConfigDict


def learning_rate(config: ConfigDict, total_steps: int) -> optax.Schedule:
    """Linear warm-up from 0, then a cosine down to ``learning_rate * final_ratio`` at the last step.

    Args:
      config: ``learning_rate``, ``warmup_steps``, ``final_ratio``.
      total_steps: length of the run.

    Returns:
      The schedule.
    """
    peak = config.learning_rate
    return optax.warmup_cosine_decay_schedule(0.0, peak, config.warmup_steps, total_steps, peak * config.final_ratio)


def create_optimizer(config: ConfigDict, total_steps: int) -> optax.GradientTransformation:
    """AdamW (https://arxiv.org/abs/1711.05101) behind clipping by global norm.

    Args:
      config: as `learning_rate`, and ``b1``, ``b2``, ``eps``, ``weight_decay``, ``clip_norm``.
      total_steps: length of the run.

    Returns:
      The optimiser.
    """
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            learning_rate(config, total_steps),
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            mask=decayed,
        ),
    )


def decayed(params: Any) -> Any:
    """Marks what weight decay shrinks: everything but biases and the scales of norms.

    Args:
      params: a nested dict of arrays.

    Returns:
      The tree with a bool in place of each array.
    """
    # By name, because the bias of a fused qkv has two dimensions.
    return jax.tree_util.tree_map_with_path(lambda path, _: not str(path[-1].key).endswith(("bias", "scale")), params)
