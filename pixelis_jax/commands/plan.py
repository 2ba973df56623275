"""Compiles a run's steps for a TPU slice, on a machine without one, and says what they need of each chip.

  pixelis plan --config=configs/plan_8b.py --topology=v5e-256
  pixelis plan --config=configs/plan_8b_lora.py --topology=v5p-128 --json=plan.json --config.train.rows=64
  pixelis plan --config=configs/plan_8b_sampling.py --topology=v6e-256

Memory by kind against the chip's HBM, operations, bytes between chips, and the shortest time that a step can take. The compiler
is the TPU's own, libtpu (`pip install 'pixelis-jax[tpu]'`); it runs in a process of its own. Topologies by their common names, or
with the shape of the torus: v5p:4x4x8.

Exit status: 0 everything fits, 1 something does not, 2 bad input.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from pixelis_jax.plan.topologies import Topology

DOES_NOT_FIT = 1

# Read when libtpu is loaded. Without a TPU it would ask the cloud's metadata server what machine this is, log, and take a lock.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "JAX_ENABLE_COMPILATION_CACHE": "false",
    "JAX_TRACEBACK_FILTERING": "off",  # else the last line of an error is advice about tracebacks
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-256",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_LOG_DIR": "disabled",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the config, the topology and the output."""
    from pixelis_jax.commands.configs import add_config

    add_config(parser)
    parser.add_argument("--topology", metavar="NAME", required=True, help="a slice: v5e-256, v5p-128, v6e-256, v5p:4x4x8, ...")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write every figure there")


def run(args: argparse.Namespace) -> int:
    """Compiles each program and prints the table."""
    from configs import plan_8b
    from pixelis_jax.commands.checks import check_output_file
    from pixelis_jax.commands.configs import check_fields, load_config
    from pixelis_jax.plan.tables import render
    from pixelis_jax.plan.topologies import PlanError, mesh_sizes, topology

    config = load_config(args.config, args.overrides)
    check_fields(args.config, config, plan_8b.get_config())
    slice_ = topology(args.topology)
    mesh = mesh_sizes(config.mesh, slice_.chips)
    if args.json is not None:
        check_output_file("--json", args.json)
    if not config.programs:
        raise PlanError(f"{args.config}: programs names none")
    if importlib.util.find_spec("libtpu") is None:
        raise PlanError("the TPU compiler is not installed: pip install 'pixelis-jax[tpu]'")
    programs = []
    for name in config.programs:
        print(f"compiling {name} for {slice_.name}", file=sys.stderr, flush=True)
        programs.append(compile_apart(name, config, slice_))
    plan = {
        "schema": "pixelis.plan/1",
        "config": config.to_dict(),
        "topology": {
            "name": slice_.name,
            "shape": slice_.shape,
            "chips": slice_.chips,
            "hbm": slice_.chip.hbm,
            "flops": slice_.chip.flops,
            "hbm_bandwidth": slice_.chip.hbm_bandwidth,
            "ici_bandwidth": slice_.chip.ici_bandwidth,
        },
        "mesh": mesh,
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "libtpu")},
        "programs": programs,
    }
    print(render(plan))
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(plan, indent=2) + "\n")
    return 0 if all(program["fits"] for program in programs) else DOES_NOT_FIT


def compile_apart(name: str, config: ConfigDict, slice_: Topology) -> dict[str, Any]:
    """Compiles one program in a process of its own, whose libtpu neither speaks nor locks here.

    Args:
      name: of the program.
      config: the plan's.
      slice_: where it would run.

    Returns:
      What `pixelis_jax.plan.compiling.describe` says.

    Raises:
      PlanError: the config asks for something that does not exist, or the compiler failed.
    """
    from pixelis_jax.plan.topologies import PlanError

    task = json.dumps({"config": config.to_dict(), "topology": slice_.name, "program": name})
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        command = [sys.executable, "-m", "pixelis_jax.plan.compiling", str(answer)]
        done = subprocess.run(command, input=task, env=os.environ | ENVIRONMENT, capture_output=True, text=True, check=False)
        if not answer.exists():
            said = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit status {done.returncode}"]
            killed = f"the compiler was ended by signal {-done.returncode}; large programs take 8 GiB of this machine's memory"
            raise PlanError(f"{name} was not compiled: {killed if done.returncode < 0 else said[-1]}")
        record = json.loads(answer.read_text())
    if "error" in record:
        raise PlanError(record["error"])
    return record
