"""The engine on eight forced devices against one: run by test_rollout_mesh.py in a process of its own."""

import dataclasses
import json
import os
import sys

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"

import numpy as np  # noqa: E402
from flax import nnx  # noqa: E402

from pixelis_jax import policy, sharding  # noqa: E402
from pixelis_jax.encoding import Chunk  # noqa: E402
from pixelis_jax.rollout.engine import Engine, SlotOptions  # noqa: E402

tiny = policy.tiny(vocab_size=64)
text = dataclasses.replace(tiny.text, num_hidden_layers=2, hidden_size=32, intermediate_size=64)
CONFIG = dataclasses.replace(tiny, text=text, vision=dataclasses.replace(tiny.vision, out_hidden_size=32))


def chunk(random: np.random.Generator, tokens: int) -> Chunk:
    return Chunk.of_text(random.integers(8, 50, tokens).astype(np.int32), CONFIG, patch_bucket=16)


def run(mesh, slots: int) -> list[list[int]]:
    model = nnx.jit(lambda: policy.Qwen3VL(CONFIG, rngs=nnx.Rngs(0)))()
    model.decoder.embedding[...] = model.decoder.embedding[...] * 8
    if mesh is not None:
        sharding.shard_model(model, mesh)
    engine = Engine(
        model, slots=slots, capacity=96, stop=[[5]], banned_ids=[60], tool_open_id=6, patch_bucket=16, block=8,
        prefill_rows=4, buckets=((32, 0), (32, 1)), mesh=mesh,
    )  # fmt: skip
    engine.warm_up()
    random = np.random.default_rng(0)
    prompts = [chunk(random, 12) for _ in range(4)]
    ids = {}
    for number, prompt in enumerate(prompts * 2):
        slot = engine.submit(prompt, SlotOptions(key=np.asarray([0, number], np.uint32), max_turn_tokens=12))
        while slot not in ids and engine.busy:
            for result in engine.step():
                ids[result.slot] = result.ids.tolist()
        engine.extend([(slot, chunk(random, 5))])
        first = ids.pop(slot)
        while slot not in ids:
            for result in engine.step():
                ids[result.slot] = result.ids.tolist()
        engine.release(slot)
        ids[("done", number)] = first + ids.pop(slot)
    assert engine.counters.shared_tokens > 0
    return [ids["done", number] for number in range(8)]


if __name__ == "__main__":
    meshes = {"data 4 x tensor 2": {"data": 4, "tensor": 2}, "data 2 x fsdp 2 x tensor 2": {"data": 2, "fsdp": 2, "tensor": 2}}
    found = {"one": run(None, 8)} | {name: run(sharding.create_mesh(**axes), 8) for name, axes in meshes.items()}
    json.dump(found, sys.stdout)
