"""Logical axes of parameters and activations, and the mesh axes they are placed on."""

from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

# One line a logical axis; None is never split. Parameters first, then activations.
RULES: Mapping[str, str | tuple[str, ...] | None] = {
    "layers": None,
    "vocab": "tensor",
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "expert": "expert",
    "lora": None,
    "vision_embed": "fsdp",
    "vision_heads": "tensor",
    "vision_mlp": "tensor",
    "batch": ("data", "fsdp", "expert"),
    "lookup_batch": ("data", "expert"),
    "length": "context",
    "act_embed": None,
    "act_heads": "tensor",
    "act_kv_heads": "tensor",
    "act_mlp": "tensor",
    "act_vocab": "tensor",
    "frames": ("data", "fsdp", "expert", "context"),
    "cache_length": None,
}


def partition_spec(axes: tuple[str | None, ...], shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> PartitionSpec:
    """Places an array's logical axes on a mesh.

    A dimension that its mesh axes do not divide stays whole, and so does one whose mesh axis an earlier dimension took:
    small models then run on any mesh, with less of them split.

    Args:
      axes: one logical name, or None, a dimension.
      shape: sizes.
      mesh: the mesh.

    Returns:
      The partition.

    Raises:
      ValueError: a name without a rule, or another number of names than of dimensions.
    """
    if len(axes) != len(shape):
        raise ValueError(f"{len(axes)} logical axes {axes} for an array of shape {shape}")
    unknown = [name for name in axes if name is not None and name not in RULES]
    if unknown:
        raise ValueError(f"no sharding rule for logical axes {unknown}; known are {sorted(RULES)}")
    taken: set[str] = set()
    parts: list[tuple[str, ...] | None] = []
    for name, size in zip(axes, shape, strict=True):
        mesh_axes = tuple(axis for axis in mesh_axes_of(name) if mesh.shape.get(axis, 1) > 1)
        ways = 1
        for axis in mesh_axes:
            ways *= mesh.shape[axis]
        if not mesh_axes or size % ways or taken & set(mesh_axes):
            parts.append(None)
        else:
            taken |= set(mesh_axes)
            parts.append(mesh_axes)
    return PartitionSpec(*parts)


def mesh_axes_of(name: str | None) -> tuple[str, ...]:
    """Returns the mesh axes that may split a logical axis."""
    rule = RULES[name] if name else None
    return () if rule is None else (rule,) if isinstance(rule, str) else rule


def only_axis(axes: tuple[str, ...] | str | None) -> str | None:
    """Returns the one mesh axis that splits a dimension of a `PartitionSpec`, or None."""
    return axes if axes is None or isinstance(axes, str) else axes[0]


def distributed() -> bool:
    """Whether the mesh of the context (``jax.set_mesh``) has more than one device."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and mesh.size > 1


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Places an activation by its logical axes on the mesh of the context (``jax.set_mesh``).

    Args:
      x: the array.
      *axes: one logical name, or None, a dimension.

    Returns:
      The array; as it is without a mesh, or on a mesh of one device.
    """
    if not distributed():
        return x
    mesh = jax.sharding.get_abstract_mesh()
    return jax.lax.with_sharding_constraint(x, partition_spec(axes, x.shape, mesh))


def parameter_sharding(variable: nnx.Variable, mesh: Mesh) -> NamedSharding:
    """Returns the placement of one variable, by its ``logical_axes``; without that metadata it is replicated."""
    axes = variable.get_metadata().get("logical_axes")
    spec = PartitionSpec() if axes is None else partition_spec(axes, variable.shape, mesh)
    return NamedSharding(mesh, spec)


def state_shardings(state: Any, mesh: Mesh) -> Any:
    """Returns the placement of every variable of an NNX state, in the shape of the state (for ``jax.jit`` and Orbax).

    Args:
      state: `nnx.state` of a model or an optimiser.
      mesh: the mesh.

    Returns:
      The same tree with a `NamedSharding` in place of each array.
    """

    def place(variable: nnx.Variable) -> nnx.Variable:
        return variable.replace(parameter_sharding(variable, mesh))

    return jax.tree.map(place, state, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))


def shard_model(model: nnx.Module, mesh: Mesh) -> None:
    """Moves a module's variables, in place, to where the rules want them.

    Args:
      model: a model or an optimiser.
      mesh: the mesh.
    """
    state = nnx.state(model)
    nnx.update(model, jax.device_put(state, state_shardings(state, mesh)))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the placement of an array whose first axis is the batch."""
    return NamedSharding(mesh, PartitionSpec(mesh_axes_of("batch")))
