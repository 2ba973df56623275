"""Compiles one program for a slice and says what it needs.

`python -m pixelis_jax.plan.compiling` does so in a process of its own: a task on standard input, the answer in a file.
"""

import dataclasses
import json
import math
import os
import re
import sys
import threading
import time
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import Mesh
from ml_collections import ConfigDict

from pixelis_jax.plan import costs, hlo, programs
from pixelis_jax.plan.estimate import Memory, advice, roofline
from pixelis_jax.plan.flops import step_flops
from pixelis_jax.plan.topologies import GIB, PlanError, Topology, topology
from pixelis_jax.policy import ConfigError
from pixelis_jax.training.loop import on_mesh

# The wordings in which the compiler refuses a program that is too large; each names what it needs.
_REFUSALS = (
    re.compile(r"total memory required for HLO temporaries \(([\d.]+)([KMGT]?)\)"),
    re.compile(r"Ran out of memory in memory space hbm\. Used ([\d.]+)([KMGT]?) of"),
    re.compile(r"unlikely to have enough device memory\. Requires ([\d.]+)([KMGT]?)"),
)
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": GIB, "T": 2**40}


def make_mesh(config: ConfigDict, slice_: Topology) -> Mesh:
    """Lays a mesh over a slice that is not there.

    Args:
      config: ``mesh``, sizes by axis.
      slice_: the slice.

    Raises:
      PlanError: the mesh does not cover the slice, or its axes cannot follow the torus.
    """
    name, options = slice_.libtpu_name, slice_.libtpu_options
    description = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
    try:
        return programs.make_mesh(config, list(description.devices))
    except (NotImplementedError, ValueError) as error:
        raise PlanError(f"mesh on {slice_.name}: {error}") from error


def describe(name: str, config: ConfigDict, mesh: Mesh, slice_: Topology) -> dict[str, Any]:
    """Compiles a program and describes it.

    Args:
      name: one of `programs.PROGRAMS`.
      config: see `configs/plan_8b.py`.
      mesh: the devices.
      slice_: what their chips can do.

    Returns:
      A record that JSON can hold; docs/plan.md says what its fields mean.

    Raises:
      PlanError: the config asks for something that does not exist.
    """
    program = programs.build(name, config, mesh)
    started = time.monotonic()
    executable, needed = None, 0
    with on_mesh(mesh):
        lowered = program.lower()
        lowered_at = time.monotonic()
        try:
            executable = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            needed = needed_bytes(str(error))
            if not needed:
                raise
    compiled_at = time.monotonic()

    arguments = {kind: _bytes_a_chip(tree) for kind, tree in program.arguments.items()}
    compiled = None
    if executable is not None:
        compiled = dataclasses.asdict(costs.measure(hlo.parse(executable.as_text() or ""), program.loops))
        memory = _memory(arguments, executable.memory_analysis())
    else:
        rest = max(needed - sum(arguments.values()), 0)
        memory = Memory(arguments=arguments, padding=0, temporaries=rest, outputs=0, aliased=0, code=0)
    flops = step_flops(programs.model_config(config), program.work, programs.adapters(config))
    total = sum(flops.values())
    bounds = roofline(slice_, flops=total, compiled=compiled)
    fits = compiled is not None and memory.total <= slice_.chip.hbm
    return {
        "name": name,
        "step": program.step,
        "fits": fits,
        "lower_s": round(lowered_at - started, 2),
        "compile_s": round(compiled_at - lowered_at, 2),
        "memory": {**dataclasses.asdict(memory), "total": memory.total, "hbm": slice_.chip.hbm},
        "flops": {**flops, "total": total},
        "compiled": compiled,
        "intensity": total / slice_.chips / compiled["hbm_bytes"] if compiled else None,
        "roofline": {
            "compute_s": bounds.compute,
            "hbm_s": bounds.hbm,
            "ici_s": bounds.ici,
            "step_s": bounds.step,
            "limited_by": bounds.limited_by,
            "mfu": total / slice_.chips / slice_.chip.flops / bounds.step if compiled else None,
        },
        "advice": [] if fits else advice(slice_, memory, _facts(name, config, mesh, program)),
    }


def needed_bytes(message: str) -> int:
    """Reads from the compiler's refusal how much memory a program needs; 0 if the message is about something else."""
    for pattern in _REFUSALS:
        if found := pattern.search(message):
            return int(float(found[1]) * _UNITS[found[2]])
    return 0


def _memory(arguments: dict[str, int], stats: Any) -> Memory:
    return Memory(
        arguments=arguments,
        # Arguments that the program does not use are not passed to it, but they stay where they are.
        padding=max(stats.argument_size_in_bytes - sum(arguments.values()), 0),
        temporaries=stats.temp_size_in_bytes,
        outputs=stats.output_size_in_bytes,
        aliased=stats.alias_size_in_bytes,
        code=stats.generated_code_size_in_bytes,
    )


def _bytes_a_chip(tree: Any) -> int:
    leaves = jax.tree.leaves(tree)
    # In bits: NumPy gives a byte to four bits, a TPU packs them.
    bits = (math.prod(leaf.sharding.shard_shape(leaf.shape)) * jax.dtypes.itemsize_bits(leaf.dtype) for leaf in leaves)
    return sum(-(-count // 8) for count in bits)


def _facts(name: str, config: ConfigDict, mesh: Mesh, program: programs.Program) -> dict[str, Any]:
    options = {**config.execution.to_dict(), "params": config.precision.params, "lora": config.lora.rank}
    options["base"] = config.lora.base
    return {"name": name, "mesh": dict(mesh.shape), "rows": program.work.rows, "options": options}


def main() -> None:
    """Reads ``{"config", "topology", "program"}`` from standard input, and writes the record, or an error, to the file named."""
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    task = json.load(sys.stdin)
    config, slice_ = ConfigDict(task["config"]), topology(task["topology"])
    try:
        result = describe(task["program"], config, make_mesh(config, slice_), slice_)
    except (PlanError, ConfigError) as error:
        result = {"error": str(error)}
    Path(sys.argv[1]).write_text(json.dumps(result))


def _end_with(parent: int) -> None:
    """Ends this process soon after its parent has: a compilation that nobody waits for takes minutes."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


if __name__ == "__main__":
    main()
