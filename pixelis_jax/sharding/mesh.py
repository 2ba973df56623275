"""The device mesh and the start of a multi-process run."""

import math
import os
from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import Mesh

# What each axis splits. `sequence` and `expert` are kept at size 1 until something is placed on them.
MESH_AXES: Mapping[str, str] = {
    "data": "the batch; parameters are copied",
    "fsdp": "the batch and the parameters",
    "tensor": "heads and wide layers",
    "sequence": "tokens",
    "expert": "experts",
}


def create_mesh(*, data: int = -1, fsdp: int = 1, tensor: int = 1) -> Mesh:
    """Creates a mesh over all devices with the axes of `MESH_AXES`.

    Args:
      data: devices along the data axis; -1 takes all that are left.
      fsdp: devices along the fsdp axis.
      tensor: devices along the tensor axis.

    Returns:
      The mesh.

    Raises:
      ValueError: the product is not the number of devices.
    """
    devices = jax.devices()
    if data == -1:
        data = len(devices) // (fsdp * tensor)
    shape = (data, fsdp, tensor, 1, 1)
    if math.prod(shape) != len(devices):
        raise ValueError(f"a mesh of data={data}, fsdp={fsdp}, tensor={tensor} does not cover {len(devices)} devices")
    return Mesh(np.asarray(devices).reshape(shape), tuple(MESH_AXES))


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
