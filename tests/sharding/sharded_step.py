"""One training step of the tiny policy on several meshes; run in a process of its own with 8 forced host devices."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from pixelis_jax import policy, sharding

BATCH, TOKENS = 8, 24


def _config() -> policy.Qwen3VLConfig:
    """One layer a tower, every width a multiple of eight: what takes time is compiling the step once a mesh."""
    tiny = policy.tiny(vocab_size=96)
    text = dataclasses.replace(
        tiny.text, num_hidden_layers=1, hidden_size=32, intermediate_size=64, num_attention_heads=4, num_key_value_heads=2
    )
    vision = dataclasses.replace(
        tiny.vision, depth=1, hidden_size=32, num_heads=2, intermediate_size=64, out_hidden_size=32, deepstack_visual_indexes=(0,)
    )
    return dataclasses.replace(tiny, text=text, vision=vision)


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
    log_probs = jax.nn.log_softmax(model.unembed(hidden[:, :-1]))
    return -jnp.take_along_axis(log_probs, batch["ids"][:, 1:, None], axis=-1).mean()


def _step(mesh: jax.sharding.Mesh | None) -> tuple[float, dict[str, np.ndarray], int]:
    config = _config()
    model = policy.Qwen3VL(config, rngs=nnx.Rngs(0))
    batch = _inputs(config)
    if mesh is not None:
        sharding.shard_model(model, mesh)
        batch = jax.device_put(batch, sharding.batch_sharding(mesh))
    split = sum(not value.sharding.is_fully_replicated for value in jax.tree.leaves(nnx.state(model)))
    with jax.default_matmul_precision("highest"):
        loss, gradients = nnx.jit(nnx.value_and_grad(_loss))(model, batch)
    flat = {str(path): np.asarray(value) for path, value in jax.tree_util.tree_leaves_with_path(gradients)}
    return float(loss), flat, split


def main() -> None:
    """Prints one JSON line a mesh: largest differences to one device, and how many parameters are split."""
    loss, gradients, _ = _step(None)
    for shape in ({"data": 8}, {"data": 2, "fsdp": 2, "tensor": 2}):
        sharded_loss, sharded, split = _step(sharding.create_mesh(**shape))
        assert gradients.keys() == sharded.keys()
        difference = max(float(np.abs(gradients[path] - sharded[path]).max()) for path in gradients)
        print(
            json.dumps({"mesh": shape, "loss": abs(loss - sharded_loss), "gradients": difference, "split": split}),
            flush=True,
        )


if __name__ == "__main__":
    main()
