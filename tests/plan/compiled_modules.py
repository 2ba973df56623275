"""Compiled for 8 forced host devices, in a process of its own: `loops`, known collectives in one, or `plan`, its programs.

Prints one JSON object.
"""

import dataclasses
import json
import re
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import shard_map
from jax.sharding import Mesh, PartitionSpec

from configs import plan_8b
from pixelis_jax.plan import compiling, costs, hlo, programs
from pixelis_jax.plan.topologies import topology

TURNS, ROWS, WIDTH = 5, 64, 32


def loop(*, unroll: bool, backward: bool = False) -> tuple[costs.Costs, costs.Costs, float]:
    """Costs of five layers with one collective of each kind: as compiled, without what the compiler says of trip counts, and the
    operations that XLA counts."""
    mesh = Mesh(np.asarray(jax.devices()), ("x",))

    def layer(x, weight):
        whole = jax.lax.all_gather(weight, "x", tiled=True)
        y = jnp.tanh(x @ whole)
        y = jax.lax.ppermute(y, "x", [(i, (i + 1) % 8) for i in range(8)])
        y = jax.lax.all_to_all(y.reshape(8, ROWS // 8, WIDTH), "x", 0, 0).reshape(ROWS, WIDTH)
        part = jax.lax.psum_scatter(y, "x", tiled=True)
        return y + jax.lax.psum(part.sum(), "x"), None

    def forward(x, weights):
        return jax.lax.scan(layer, x, weights, unroll=TURNS if unroll else 1)[0]

    spec = PartitionSpec("x")
    mapped = shard_map(forward, mesh=mesh, in_specs=(spec, PartitionSpec(None, "x")), out_specs=spec, check_vma=False)
    function = jax.grad(lambda x, weights: mapped(x, weights).sum(), argnums=1) if backward else mapped
    shapes = jax.ShapeDtypeStruct((8 * ROWS, WIDTH), jnp.float32), jax.ShapeDtypeStruct((TURNS, WIDTH, WIDTH), jnp.float32)
    compiled = jax.jit(function).lower(*shapes).compile()
    text = compiled.as_text()
    plain = re.sub(r'"known_trip_count":\{"n":"\d+"\},?', "", text)
    assert unroll or plain != text
    return costs.measure(hlo.parse(text)), costs.measure(hlo.parse(plain)), compiled.cost_analysis()["flops"]


def tiny_plan() -> dict[str, dict]:
    """Every program of the tiny policy on a mesh of 2 x 2 x 2, described as if the chips were v5e."""
    config = plan_8b.get_config()
    config.model, config.layers, config.patches, config.execution.attention = "tiny", 3, 16, "xla"
    config.train.update({"rows": 8, "tokens": 64, "weighted": 16, "frames": 1, "calls": 2})
    config.sample.update({"slots": 8, "capacity": 64, "prefill_rows": 4, "prefill_tokens": 16, "prefill_frames": 1})
    config.mesh.update({"data": 2, "fsdp": 2, "tensor": 2})
    slice_ = topology("v5e-8")
    mesh = programs.make_mesh(config, jax.devices())
    plan = {name: compiling.describe(name, config, mesh, slice_) for name in programs.PROGRAMS}
    config.trainable, config.lora.rank, config.precision.params = "adapters", 4, "bfloat16"
    return plan | {"adapters": compiling.describe("sft", config, mesh, slice_)}


def traffic() -> tuple[int, float]:
    """Bytes of memory that the gradient of six layers moves without a loop, as counted and as XLA does."""

    def loss(x, weights):
        for weight in weights:
            x = jnp.tanh(x @ weight) + 1
        return x.sum()

    shapes = jax.ShapeDtypeStruct((64, 128), jnp.float32), jax.ShapeDtypeStruct((6, 128, 128), jnp.float32)
    compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*shapes).compile()
    return costs.measure(hlo.parse(compiled.as_text())).hbm_bytes, compiled.cost_analysis()["bytes accessed"]


def loops() -> dict[str, Any]:
    """Costs of the layers in a loop, without one, and of their gradient."""
    result = {}
    for name, options in {"scan": {}, "unrolled": {"unroll": True}, "backward": {"backward": True}}.items():
        known, derived, xla = loop(**{"unroll": False} | options)
        result[name] = {"known": dataclasses.asdict(known), "derived": dataclasses.asdict(derived), "xla_flops": xla}
    return result | {"traffic": traffic()}


if __name__ == "__main__":
    print(json.dumps({"loops": loops, "plan": tiny_plan}[sys.argv[1]]()))
