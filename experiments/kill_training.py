"""Kills a training run again and again, and compares where it ends with an undisturbed one.

    python experiments/kill_training.py --config=configs/tiny_ccrft.py --out=runs/kills --kills=10 \\
      --json=experiments/results/rewards/kills.json --config.total_steps=6 --config.checkpoint_every_steps=1

Both runs share compiled programs and are of one machine. A kill is SIGKILL, `--least` to `--most` seconds after the start. Exit
status: 0 the same parameters to the bit, 1 others, 2 a run failed by itself.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from pixelis_jax.commands import models
from pixelis_jax.workdir import Workdir, describe_environment
from pixelis_jax.workdir.atomic import write_json


def main() -> int:
    """Runs both and compares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--out", type=Path, required=True, help="where both runs go; must not exist")
    parser.add_argument("--json", type=Path, required=True, help="where the record goes")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--least", type=float, default=10.0, help="seconds (default: 10)")
    parser.add_argument("--most", type=float, default=40.0, help="seconds (default: 40)")
    parser.add_argument("--seed", type=int, default=0)
    args, overrides = parser.parse_known_args()
    began, rng = time.monotonic(), random.Random(args.seed)
    args.out.mkdir(parents=True)
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str((args.out / "compiled").resolve())}

    def command(name: str) -> list[str]:
        words = [sys.executable, "-m", "pixelis_jax", "train", f"--config={args.config}", f"--workdir={args.out / name}"]
        return [*words, *overrides]

    if subprocess.run(command("undisturbed"), env=environment, check=False).returncode:
        return 2
    kills: list[dict[str, float | int]] = []
    while len(kills) < args.kills:
        started, after = time.monotonic(), rng.uniform(args.least, args.most)
        process = subprocess.Popen(command("killed"), env=environment)
        try:
            status = process.wait(after)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills.append({"after_s": round(after, 1), "checkpoint": _latest(args.out / "killed")})
            continue
        if status:
            return 2
        print(f"ended by itself after {time.monotonic() - started:.0f} s, behind {len(kills)} kills", flush=True)
        break
    if subprocess.run(command("killed"), env=environment, check=False).returncode:
        return 2
    first, second = (jax.tree.leaves(nnx.state(models.load(str(args.out / name)).model)) for name in ("undisturbed", "killed"))
    differing = sum(not np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    steps = [[row["step"] for row in Workdir(args.out / name).metrics()] for name in ("undisturbed", "killed")]
    kept = {key: describe_environment(args.seed)[key] for key in ("commit", "machine")}
    record = {"study": "kills", "command": " ".join(["python", *sys.argv]), "seed": args.seed, **kept, "kills": kills}
    record |= {"arrays": len(first), "arrays_that_differ": differing, "rows_of_metrics_are_the_same": steps[0] == steps[1]}
    args.json.parent.mkdir(parents=True, exist_ok=True)
    write_json(args.json, record | {"wall_time_s": round(time.monotonic() - began)})
    print(json.dumps(record, indent=2))
    return int(differing > 0)


def _latest(path: Path) -> int:
    """The latest complete checkpoint, 0 without one."""
    folder = path / "checkpoints"
    return max((int(step.name) for step in folder.glob("*") if step.name.isdigit()), default=0)


if __name__ == "__main__":
    sys.exit(main())
