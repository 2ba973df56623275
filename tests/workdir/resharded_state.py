"""Saves a training state on one mesh or restores it on another; run in a process of its own, whose devices are the mesh.

    resharded_state.py save DIRECTORY STEP '{"data": 2, "fsdp": 2, "tensor": 2}'
    resharded_state.py restore DIRECTORY STEP '{"fsdp": 8}'

Prints one JSON object: of each array a digest of its bits and where it lies, and how wrong templates are refused. What was
restored is saved again as STEP + 1.
"""

import dataclasses
import hashlib
import json
import sys
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from configs import tiny_sft
from pixelis_jax import policy, sharding
from pixelis_jax.training.optimizer import create_optimizer
from pixelis_jax.training.state import TrainState, create_state
from pixelis_jax.workdir import Checkpoints, WorkdirError

OPTIMIZER = tiny_sft.get_config().optimizer


def make_state(mesh: jax.sharding.Mesh) -> TrainState:
    """The state of step 0 of the tiny policy, one layer a tower, with bfloat16 parameters and float32 heads."""
    tiny = policy.tiny(vocab_size=96)
    text = dataclasses.replace(tiny.text, num_hidden_layers=1)
    vision = dataclasses.replace(tiny.vision, depth=1, deepstack_visual_indexes=(0,))
    config = dataclasses.replace(tiny, text=text, vision=vision)
    model = policy.Qwen3VL(config, precision=policy.Precision(params=jnp.bfloat16), rngs=nnx.Rngs(0))
    heads = policy.AuxiliaryHeads(config.text.hidden_size, rngs=nnx.Rngs(1))
    states = {"params": nnx.state(model), "heads": nnx.state(heads)}
    return create_state(
        nnx.to_pure_dict(states["params"]),
        nnx.to_pure_dict(states["heads"]),
        create_optimizer(OPTIMIZER, total_steps=1000),
        jax.random.key(0),
        {name: nnx.to_pure_dict(sharding.state_shardings(state, mesh)) for name, state in states.items()},
    )


def random_bits(items: Any) -> Any:
    """The same arrays in the same places, filled with random bits: every kind of NaN, infinity and subnormal number."""
    random = np.random.default_rng(0)

    def fill(array: jax.Array) -> jax.Array:
        bits = np.frombuffer(random.bytes(array.nbytes), array.dtype).reshape(array.shape)
        return jax.device_put(bits, array.sharding)

    return jax.tree.map(fill, items)


def describe(items: Any) -> dict[str, dict[str, Any]]:
    """By path: digest of the bits, format, the shape of one device's part, and the number of devices that hold a part."""
    arrays = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(items)
    }
    return {
        name: {
            "bits": hashlib.sha256(np.asarray(array).tobytes()).hexdigest(),
            "dtype": str(array.dtype),
            "shape": list(array.shape),
            "part": list(array.addressable_shards[0].data.shape),
            "devices": len({shard.device for shard in array.addressable_shards}),
        }
        for name, array in arrays.items()
    }


def wrong_templates(asked: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Of a policy twice as wide, of one with a layer more, and one that forgets the heads."""

    def widen(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        shape = tuple(256 if size == 128 else size for size in leaf.shape)
        return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=leaf.sharding)

    params = asked["params"]
    layers = params["decoder"]["layers"]
    deeper = params | {"decoder": params["decoder"] | {"layers": layers | {1: layers[0]}}}
    return {"wider": {"params": jax.tree.map(widen, params)}, "deeper": {"params": deeper}, "without heads": {"heads": {}}}


def refusal(checkpoints: Checkpoints, step: int, template: Mapping[str, Any]) -> str:
    """What a restore that must fail says."""
    try:
        checkpoints.restore(step, arrays=template)
    except WorkdirError as error:
        return str(error)
    raise AssertionError("a wrong template was accepted")


def main(action: str, directory: str, step: int, shape: dict[str, int]) -> None:
    """See the module."""
    template = make_state(sharding.create_mesh(**{"data": 1} | shape)).items()
    checkpoints = Checkpoints(directory)
    if action == "save":
        items = random_bits(template)
        checkpoints.save(step, arrays=items)
        print(json.dumps({"arrays": describe(items)}))
        return
    asked = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), template)
    items, _ = checkpoints.restore(step, arrays=asked)
    as_asked = jax.tree.map(lambda a, b: a.sharding.is_equivalent_to(b.sharding, a.ndim), items, template)
    checkpoints.save(step + 1, arrays=items)
    refused = {name: refusal(checkpoints, step, tree) for name, tree in wrong_templates(asked).items()}
    print(json.dumps({"arrays": describe(items), "as_asked": jax.tree.all(as_asked), "refused": refused}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), json.loads(sys.argv[4]))
