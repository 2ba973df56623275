"""What a training step changes."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import NamedSharding, PartitionSpec

PyTree = Any


@struct.dataclass
class TrainState:
    """Everything that a run carries from step to step, besides the place in the data.

    Attributes:
      step: updates taken, int32.
      params: the policy's parameters, a nested dict.
      heads: parameters of the auxiliary heads, a nested dict.
      opt_state: of the optimiser over ``{"params": ..., "heads": ...}``.
      rng: the run's key; step k draws from ``fold_in(rng, k)``.
    """

    step: jax.Array
    params: PyTree
    heads: PyTree
    opt_state: optax.OptState
    rng: jax.Array

    @property
    def trainable(self) -> dict[str, PyTree]:
        """What the optimiser updates."""
        return {"params": self.params, "heads": self.heads}

    def items(self) -> dict[str, PyTree]:
        """Returns the parts that a checkpoint names, as trees of plain arrays."""
        return {
            "params": self.params,
            "heads": self.heads,
            "opt_state": self.opt_state,
            "rng": {"key": jax.random.key_data(self.rng), "step": self.step},
        }

    @classmethod
    def from_items(cls, items: dict[str, PyTree]) -> "TrainState":
        """Inverts `items`."""
        rng = items["rng"]
        return cls(
            step=rng["step"],
            params=items["params"],
            heads=items["heads"],
            opt_state=items["opt_state"],
            rng=jax.random.wrap_key_data(rng["key"]),
        )


def create_state(
    params: PyTree, heads: PyTree, optimizer: optax.GradientTransformation, rng: jax.Array, shardings: dict[str, PyTree]
) -> TrainState:
    """Creates the state of step 0, placed on a mesh.

    Args:
      params: initial parameters of the policy; copied.
      heads: initial parameters of the heads; copied.
      optimizer: the optimiser.
      rng: the run's key.
      shardings: ``params`` and ``heads``, a `NamedSharding` in place of each array.

    Returns:
      The state; the optimiser's moments lie where their parameters lie.
    """
    replicated = NamedSharding(jax.tree.leaves(shardings)[0].mesh, PartitionSpec())
    # A copy, because the steps donate the state and the caller keeps its model.
    trainable = jax.tree.map(jnp.copy, {"params": params, "heads": heads})
    trainable = jax.device_put(trainable, shardings)
    opt_shardings = optax.tree_utils.tree_map_params(
        optimizer,
        lambda _, sharding: sharding,
        jax.eval_shape(optimizer.init, trainable),
        shardings,
        transform_non_params=lambda _: replicated,
    )
    return TrainState(
        step=jax.device_put(jnp.zeros((), jnp.int32), replicated),
        params=trainable["params"],
        heads=trainable["heads"],
        opt_state=jax.jit(optimizer.init, out_shardings=opt_shardings)(trainable),
        rng=jax.device_put(rng, replicated),
    )
