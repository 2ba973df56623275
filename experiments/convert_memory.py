"""Host memory of `pixelis convert` on a model of random numbers in the published format.

    python experiments/convert_memory.py --out=runs/convert --json=experiments/results/policy/convert_2b.json

Writes a model (bfloat16, shards of at most `--shard_mb` but for a tensor that is larger), converts it in a process of its own to
an Orbax checkpoint, and compares the most memory that was resident, libraries included, with the parameters and the largest
shard. Takes 9 GB of disk for a 2B. Exit status: 0 at most 1.5 x the largest shard above the parameters, 1 more, 2 the conversion
failed.
"""

import argparse
import json
import math
import resource
import subprocess
import sys
import time
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from pixelis_jax import policy
from pixelis_jax.policy.weights import plan_shards, published_names
from pixelis_jax.workdir import describe_environment
from pixelis_jax.workdir.atomic import write_json

MOST = 1.5
"""Times the largest shard, above the parameters."""
GIB = 2**30


def main() -> int:
    """Writes, converts and compares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="2b", choices=("2b", "4b", "8b"))
    parser.add_argument("--out", type=Path, required=True, help="where both models go; must not exist")
    parser.add_argument("--json", type=Path, required=True, help="where the record goes")
    parser.add_argument("--shard_mb", type=int, default=500)
    args = parser.parse_args()
    source, target = args.out / "hf", args.out / "orbax"
    source.mkdir(parents=True)
    write_model(getattr(policy, f"qwen3_vl_{args.model}")(), source, args.shard_mb * 10**6)
    began = time.monotonic()
    command = [sys.executable, "-m", "pixelis_jax", "convert", str(source), str(target), "--to=orbax"]
    if subprocess.run(command, check=False).returncode:
        return 2
    seconds = time.monotonic() - began
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    shards = [path.stat().st_size for path in source.glob("*.safetensors")]
    over = (peak - sum(shards)) / max(shards)
    environment = describe_environment(seed=0)
    record = {
        "study": "policy",
        "run": f"convert_{args.model}",
        "command": f"python experiments/convert_memory.py --model={args.model} --shard_mb={args.shard_mb}",
        **{key: environment[key] for key in ("commit", "machine")},
        "wall_time_s": round(seconds),
        "results": {
            "parameters_gib": round(sum(shards) / GIB, 2),
            "shards": len(shards),
            "largest_shard_gib": round(max(shards) / GIB, 2),
            "peak_gib": round(peak / GIB, 2),
            "over_largest_shard": round(over, 2),
        },
    }
    write_json(args.json, record)
    print(json.dumps(record["results"]))
    return int(over > MOST)


def write_model(config: policy.Qwen3VLConfig, directory: Path, most: int) -> None:
    """Writes random numbers under the published names, shard by shard."""
    rng = np.random.default_rng(0)
    names = published_names(config)
    shards = plan_shards({name: 2 * math.prod(shape) for name, shape in names.items()}, most)
    files: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        numbers = {name: rng.standard_normal(names[name], np.float32) * np.float32(0.02) for name in shard}
        save_file({name: x.astype(ml_dtypes.bfloat16) for name, x in numbers.items()}, str(directory / file), {"format": "pt"})
        files |= dict.fromkeys(shard, file)
    write_json(directory / "model.safetensors.index.json", {"metadata": {}, "weight_map": files})
    write_json(directory / "config.json", config.to_json() | {"dtype": "bfloat16"})


if __name__ == "__main__":
    sys.exit(main())
