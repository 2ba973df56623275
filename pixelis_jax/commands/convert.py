"""Converts weights between the published layout (safetensors + config.json) and an Orbax checkpoint.

  pixelis convert Qwen3-VL-2B-Instruct qwen3_vl_2b --to=orbax
  pixelis convert qwen3_vl_2b exported --to=hf
  pixelis convert runs/tiny_sft small --to=hf --dtype=bfloat16
  pixelis convert runs/tiny_sft/checkpoints/500 half_way --to=hf

SRC is a MODEL, as everywhere: a shipped name, a work directory, a checkpoint or a directory in the published layout. Without
--dtype nothing is rounded: a conversion there and back gives the same bytes. An Orbax directory made here holds config.json and
the other small files of the source, and the parameters under checkpoints/0; it is a MODEL too. Exit status: 0 done, 2 bad input.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pixelis_jax.policy import Qwen3VL

# Options of glibc's mallopt(3).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8

WRITE_LIMIT = 1 << 28
"""Bytes that are copied for writing at a time, if no array is larger: host memory must not hold a model twice."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares both ends."""
    parser.add_argument("source", metavar="SRC", help="a shipped name, a work directory, a checkpoint or a published model")
    parser.add_argument("destination", metavar="DST", type=Path, help="a new or empty directory")
    parser.add_argument("--to", choices=("hf", "orbax"), required=True, help="the layout to write")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="number format to write (default: as stored)")


def run(args: argparse.Namespace) -> int:
    """Reads, checks every tensor against config.json, and writes."""
    import jax.numpy as jnp

    from pixelis_jax.commands import models
    from pixelis_jax.commands.errors import UserError

    _give_memory_back()
    place, destination = models.locate(args.source), args.destination.resolve()
    if destination == Path.cwd():
        raise UserError(f"{args.destination}: the current directory cannot be replaced; name a new one")
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise UserError(f"{destination}: exists and is not empty")
    model = models.read(place, args.dtype and getattr(jnp, args.dtype))
    # Tokenizer, generation settings and the like belong to the model; weights and their index are written anew.
    extra = [file for file in sorted(place.files.iterdir()) if file.is_file() and not _is_weights(file)]
    if args.to == "hf":
        from pixelis_jax.policy import weights

        weights.save(model, destination, extra_files=[file for file in extra if file.name != "config.json"])
    else:
        _write_orbax(model, destination, extra)
    print(f"{destination}: {_count(model):,} parameters")
    return 0


def _give_memory_back() -> None:
    """Makes glibc return large blocks when they are freed; it keeps hundreds of megabytes of them otherwise, beside the model."""
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:  # absent from other C libraries
        for option, value in ((_M_ARENA_MAX, 1), (_M_TRIM_THRESHOLD, 1 << 16), (_M_MMAP_THRESHOLD, 1 << 16)):
            mallopt(option, value)


def _write_orbax(model: Qwen3VL, destination: Path, extra: list[Path]) -> None:
    """Writes into a directory beside `destination`, which appears when it is complete."""
    import os
    import shutil

    import jax
    from flax import nnx

    from pixelis_jax.workdir import Checkpoints

    partial = destination.with_name(f".{destination.name}.partial-{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
        largest = max(array.nbytes for array in jax.tree.leaves(params))
        checkpoints = Checkpoints(partial.resolve() / "checkpoints", write_limits={"params": max(largest, WRITE_LIMIT) + 1})
        checkpoints.save(0, arrays={"params": params})
        checkpoints.close()
        for file in extra:
            shutil.copy(file, partial / file.name)
        fields = json.loads((partial / "config.json").read_bytes()) | {"dtype": _dtype_name(model)}
        (partial / "config.json").write_text(json.dumps(fields, indent=2) + "\n")
        if destination.exists():
            destination.rmdir()
        partial.rename(destination)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _is_weights(file: Path) -> bool:
    return file.suffix in (".safetensors", ".bin", ".pt") or file.name.endswith(".index.json")


def _dtype_name(model: Qwen3VL) -> str:
    import jax
    from flax import nnx

    return str(jax.tree.leaves(nnx.state(model, nnx.Param))[0].dtype)


def _count(model: Qwen3VL) -> int:
    import jax
    from flax import nnx

    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
