"""Where arrays live: the mesh, logical-axis rules, and the start of a multi-process run."""

from pixelis_jax.sharding.mesh import MESH_AXES, create_mesh, initialize_distributed
from pixelis_jax.sharding.rules import (
    RULES,
    batch_sharding,
    constrain,
    distributed,
    mesh_axes_of,
    only_axis,
    parameter_sharding,
    partition_spec,
    shard_model,
    state_shardings,
)

__all__ = [
    "MESH_AXES",
    "RULES",
    "batch_sharding",
    "constrain",
    "create_mesh",
    "distributed",
    "initialize_distributed",
    "mesh_axes_of",
    "only_axis",
    "parameter_sharding",
    "partition_spec",
    "shard_model",
    "state_shardings",
]
