"""What a training step changes."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.traverse_util
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
      params: the policy's parameters that are trained, a nested dict.
      frozen: those that are not; a nested dict, in no checkpoint, since the run's initial weights have them.
      heads: parameters of the auxiliary heads, a nested dict.
      opt_state: of the optimiser over ``{"params": ..., "heads": ...}``.
      rng: the run's key; step k draws from ``fold_in(rng, k)``.
    """

    step: jax.Array
    params: PyTree
    frozen: PyTree
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

    def with_items(self, items: dict[str, PyTree]) -> "TrainState":
        """Takes the parts of a checkpoint; what `items` does not name stays."""
        rng = items["rng"]
        parts = {name: items[name] for name in ("params", "heads", "opt_state") if name in items}
        return dataclasses.replace(self, step=rng["step"], rng=jax.random.wrap_key_data(rng["key"]), **parts)


def split_parameters(params: PyTree, trained: Callable[[tuple[Any, ...]], bool]) -> tuple[PyTree, PyTree]:
    """Splits a nested dict by the paths of its leaves.

    Args:
      params: a nested dict.
      trained: path of keys -> whether the leaf is trained.

    Returns:
      Two nested dicts: what is trained, and the rest. `join_parameters` inverts it.
    """
    flat = flax.traverse_util.flatten_dict(params)
    parts = ({path: leaf for path, leaf in flat.items() if trained(path) is wanted} for wanted in (True, False))
    first, second = map(flax.traverse_util.unflatten_dict, parts)
    return first, second


def join_parameters(first: PyTree, second: PyTree) -> PyTree:
    """Joins two nested dicts without a common leaf."""
    if not second:
        return first
    flat = flax.traverse_util.flatten_dict
    return flax.traverse_util.unflatten_dict(flat(first) | flat(second))


def create_state(
    params: PyTree,
    heads: PyTree,
    optimizer: optax.GradientTransformation,
    rng: jax.Array,
    shardings: dict[str, PyTree],
    frozen: PyTree | None = None,
) -> TrainState:
    """Creates the state of step 0, placed on a mesh.

    Args:
      params: initial parameters that are trained; copied.
      heads: initial parameters of the heads; copied.
      optimizer: the optimiser.
      rng: the run's key.
      shardings: ``params``, ``heads`` and, where there is any, ``frozen``: a `NamedSharding` in place of each array.
      frozen: parameters that are not trained; copied.

    Returns:
      The state; the optimiser's moments lie where their parameters lie.
    """
    replicated = NamedSharding(jax.tree.leaves(shardings)[0].mesh, PartitionSpec())
    # A copy, because the steps donate the state and the caller keeps its model.
    parts = {"params": params, "heads": heads, "frozen": frozen or {}}
    parts = jax.device_put(jax.tree.map(jnp.copy, parts), {"frozen": {}, **shardings})
    frozen = parts.pop("frozen")
    trainable, shardings = parts, {name: shardings[name] for name in parts}
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
        frozen=frozen,
        heads=trainable["heads"],
        opt_state=jax.jit(optimizer.init, out_shardings=opt_shardings)(trainable),
        # As plain numbers: JAX does not place a key on the devices of other processes.
        rng=jax.random.wrap_key_data(jax.device_put(jax.random.key_data(rng), replicated)),
    )
