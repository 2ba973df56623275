"""A training step of adapters beside a base in few bits, on two devices against one. Run in a process of its own.

    XLA_FLAGS=--xla_force_host_platform_device_count=2 python tests/policy/quantized_mesh.py MODEL BASE

Prints a JSON line for each mesh: largest differences, and how many quantised kernels are split.
"""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from pixelis_jax import policy, sharding
from pixelis_jax.policy import adapters, weights
from pixelis_jax.training import loop
from pixelis_jax.training.state import join_parameters, split_parameters

IDS = np.random.default_rng(0).integers(0, 50, (2, 8)).astype(np.int32)
POSITIONS = np.broadcast_to(np.arange(8, dtype=np.int32)[:, None], (2, 8, 3))
LORA = {"rank": 4, "alpha": 8.0, "targets": ("q_proj", "down_proj")}
EXECUTION = policy.Execution(scan_layers=True, remat="full")


def _step(directory: str, base: str, mesh: jax.sharding.Mesh | None) -> tuple[float, list[np.ndarray], int]:
    model = weights.load(directory, mesh=mesh, execution=EXECUTION, lora=policy.Lora(**LORA, base=base))
    kernels = [node.kernel for _, node in nnx.iter_graph(model) if getattr(node, "kernel_scale", None) is not None]
    split = sum(not kernel[...].sharding.is_fully_replicated for kernel in kernels)
    graph, state = nnx.split(model)
    trained, frozen = split_parameters(nnx.to_pure_dict(state), adapters.is_adapter)

    @jax.jit
    def step(trained, frozen, ids, positions):
        def loss(trained):
            model = nnx.merge(graph, nnx.State(join_parameters(trained, frozen)))
            log_probs = jax.nn.log_softmax(model.unembed(model(ids, positions)[0]))
            return -jnp.take_along_axis(log_probs, ids[..., None], axis=-1).mean()

        return jax.value_and_grad(loss)(trained)

    if mesh is None:
        loss, gradients = step(trained, frozen, IDS, POSITIONS)
    else:
        place = sharding.batch_sharding(mesh)
        with loop.on_mesh(mesh):
            loss, gradients = step(trained, frozen, *(jax.device_put(array, place) for array in (IDS, POSITIONS)))
    return float(loss), [np.asarray(leaf) for leaf in jax.tree.leaves(gradients)], split


def main() -> None:
    directory, base = sys.argv[1:]
    loss, gradients, _ = _step(directory, base, None)
    for mesh in ({"fsdp": 2}, {"tensor": 2}):
        other, sharded, split = _step(directory, base, sharding.create_mesh(**({"data": 1} | mesh)))
        worst = max(float(np.abs(a - b).max()) for a, b in zip(gradients, sharded, strict=True))
        print(json.dumps({"mesh": mesh, "loss": abs(loss - other), "gradients": worst, "split": split}))


if __name__ == "__main__":
    main()
