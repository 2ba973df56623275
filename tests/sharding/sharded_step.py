"""One training step on several meshes against one device: loss and gradients. Run in a process of its own (forced host devices).

    XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m tests.sharding.sharded_step [--few]

Prints a JSON line for each family and mesh. With JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID set, the mesh
spans the processes, and each compares with a device of its own.
"""

import dataclasses
import json
import sys

import jax
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils

from pixelis_jax import policy, sharding
from pixelis_jax.training import loop
from pixelis_jax.training.log_probs import token_log_probs

BATCH, TOKENS = 8, 24
MESHES = (
    {"data": 8},
    {"data": 2, "fsdp": 2, "tensor": 2},
    {"fsdp": 2, "tensor": 2, "expert": 2},
    {"fsdp": 2, "context": 2, "expert": 2},
)
EXECUTION = policy.Execution(scan_layers=True, remat="full")


def _config(*, experts: bool) -> policy.Qwen3VLConfig:
    """An unrolled and a stack of scanned layers in each tower, every width a multiple of eight: compiling takes the time."""
    tiny = policy.tiny(vocab_size=96)
    mixture = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16} if experts else {}
    text = dataclasses.replace(
        tiny.text,
        num_hidden_layers=3,
        hidden_size=32,
        intermediate_size=64,
        num_attention_heads=4,
        num_key_value_heads=2,
        **mixture,
    )
    vision = dataclasses.replace(
        tiny.vision, depth=2, hidden_size=32, num_heads=2, intermediate_size=64, out_hidden_size=32, deepstack_visual_indexes=(0,)
    )
    return dataclasses.replace(tiny, text=text, vision=vision, tie_word_embeddings=not experts)


def _inputs(config: policy.Qwen3VLConfig) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    ids = random.integers(0, 90, (BATCH, TOKENS)).astype(np.int32)
    ids[:, 3:7] = config.image_token_id
    positions, index = policy.mrope_positions(ids[0], [(1, 4, 4)], config)[0], np.full(TOKENS, -1, np.int32)
    index[3:7] = np.arange(4)
    return {
        "ids": ids,
        "positions": np.stack([positions] * BATCH),
        "index": np.stack([index] * BATCH),
        "patches": random.normal(size=(BATCH, 1, 16, config.vision.patch_dim)).astype(np.float32),
        "grid": np.full((BATCH, 1, 2), 4, np.int32),
    }


def _loss(model: policy.Qwen3VL, batch: dict[str, jax.Array]) -> jax.Array:
    visual = model.encode_vision(policy.VisionInputs(patches=batch["patches"], grid=batch["grid"]))
    hidden, _ = model(batch["ids"], batch["positions"], visual=visual, visual_index=batch["index"])
    banned = np.arange(96) == 95
    log_probs = token_log_probs(model, hidden[:, :-1], batch["ids"][:, 1:], banned, chunk=8, vocab_chunk=24)
    return -log_probs.mean()


def _step(config: policy.Qwen3VLConfig, mesh: jax.sharding.Mesh | None) -> tuple[float, dict[str, np.ndarray], int]:
    model = policy.Qwen3VL(config, execution=EXECUTION, rngs=nnx.Rngs(0))
    batch = _inputs(config)
    if mesh is None:
        gather = np.asarray
    else:
        sharding.shard_model(model, mesh)
        place = sharding.batch_sharding(mesh)
        batch = {name: jax.make_array_from_callback(x.shape, place, x.__getitem__) for name, x in batch.items()}

        def gather(x: jax.Array) -> np.ndarray:
            return multihost_utils.process_allgather(x, tiled=True)

    split = sum(not value.sharding.is_fully_replicated for value in jax.tree.leaves(nnx.state(model)))
    step = nnx.jit(nnx.value_and_grad(_loss))
    with jax.default_matmul_precision("highest"):
        if mesh is None:
            loss, gradients = step(model, batch)
        else:
            with loop.on_mesh(mesh):
                loss, gradients = step(model, batch)
    flat = {str(path): gather(value) for path, value in jax.tree_util.tree_leaves_with_path(gradients)}
    return float(gather(loss)), flat, split


def main() -> None:
    """Prints one JSON line a family and mesh: largest differences to one device, and how many parameters are split."""
    sharding.initialize_distributed()
    few = "--few" in sys.argv
    for experts, meshes in ((False, MESHES[1:2] if few else MESHES), (True, MESHES[2:3] if few else MESHES)):
        config = _config(experts=experts)
        loss, gradients, _ = _step(config, None)
        for shape in meshes:
            sharded_loss, sharded, split = _step(config, sharding.create_mesh(**({"data": 1} | shape)))
            assert gradients.keys() == sharded.keys()
            row = {
                "family": "mixture" if experts else "dense",
                "mesh": shape,
                "processes": jax.process_count(),
                "loss": abs(loss - sharded_loss),
                "gradients": max(float(np.abs(gradients[path] - sharded[path]).max()) for path in gradients),
                "split": split,
            }
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
