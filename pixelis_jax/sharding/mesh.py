"""The device mesh and the start of a multi-process run."""

import math
import os
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh

# What each axis splits.
MESH_AXES: Mapping[str, str] = {
    "data": "the batch; parameters are copied",
    "fsdp": "the batch and the parameters",
    "tensor": "heads and wide layers",
    "context": "the tokens of a sequence",
    "expert": "the batch, and the experts of a mixture",
}


def create_mesh(
    *,
    data: int = -1,
    fsdp: int = 1,
    tensor: int = 1,
    context: int = 1,
    expert: int = 1,
    devices: Sequence[jax.Device] | None = None,
) -> Mesh:
    """Creates a mesh with the axes of `MESH_AXES`.

    Args:
      data: devices along the data axis; -1 takes all that are left.
      fsdp: devices along the fsdp axis.
      tensor: devices along the tensor axis.
      context: devices along the context axis.
      expert: devices along the expert axis.
      devices: what the mesh consists of; all devices of this run by default.

    Returns:
      The mesh. On a TPU its axes follow the torus, so that neighbours on an axis are neighbours in the machine.

    Raises:
      ValueError: the product is not the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    if data == -1:
        data = len(devices) // (fsdp * tensor * context * expert)
    sizes = dict(zip(MESH_AXES, (data, fsdp, tensor, context, expert), strict=True))
    if math.prod(sizes.values()) != len(devices):
        asked = ", ".join(f"{name}={size}" for name, size in sizes.items() if size != 1) or "data=1"
        raise ValueError(f"a mesh of {asked} does not cover {len(devices)} devices")
    shape = tuple(sizes.values())
    if devices[0].platform == "tpu":
        grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    else:
        grid = np.asarray(devices).reshape(shape)
    return Mesh(grid, tuple(MESH_AXES))


def initialize_distributed() -> None:
    """Joins a multi-process run where the environment describes one; does nothing on a single machine.

    A TPU pod describes itself (``TPU_WORKER_HOSTNAMES``). Elsewhere set ``JAX_COORDINATOR_ADDRESS``,
    ``JAX_NUM_PROCESSES`` and ``JAX_PROCESS_ID``. Call it before the first use of a device.
    """
    if "JAX_COORDINATOR_ADDRESS" in os.environ:
        jax.distributed.initialize(
            coordinator_address=os.environ["JAX_COORDINATOR_ADDRESS"],
            num_processes=int(os.environ["JAX_NUM_PROCESSES"]),
            process_id=int(os.environ["JAX_PROCESS_ID"]),
        )
    elif "," in os.environ.get("TPU_WORKER_HOSTNAMES", ""):
        jax.distributed.initialize()
