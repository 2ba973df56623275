"""How fast XLA and torch multiply matrices on this processor, in the shapes of the train steps of `pixelis bench policy`.

    .venv-oracle/bin/python experiments/matrix_products.py --json=experiments/results/bench/products.json

Of each layer's products with parameters there are three: `x W` on the way forward, `g W^T` and `x^T g` on the way back. Float32,
one thread a processor; the two take turns, and a ratio is taken turn by turn. A step spends most of its time in such products, so
their ratio bounds what a step can reach (docs/speed.md). Needs torch, as `make oracle` installs it. Exit status: 0, and 2 without
torch.
"""

import argparse
import importlib.util
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pixelis_jax.evaluation.statistics import median_interval
from pixelis_jax.speed.duel import ALLOCATOR
from pixelis_jax.speed.work import WORKS
from pixelis_jax.workdir import describe_environment
from pixelis_jax.workdir.atomic import write_json

MODELS = ("train_10m", "train_100m")
KINDS = ("x W", "g W^T", "x^T g")
_WARM_UP = 3  # turns that do not count


def shapes(work: str) -> list[tuple[int, int, int]]:
    """Tokens, and numbers a token on both sides, of the products of a layer of a benchmark's decoder."""
    text, tokens = WORKS[work].model.text, sum(WORKS[work].lengths)
    wide = [(text.hidden_size, text.num_attention_heads * text.head_dim), (text.hidden_size, text.intermediate_size)]
    return [(tokens, *pair) for pair in dict.fromkeys((*wide, *(pair[::-1] for pair in wide)))]


def compare(kind: str, size: tuple[int, int, int], repetitions: int) -> dict[str, Any]:
    """Times one product on both sides."""
    import jax
    import jax.numpy as jnp
    import torch

    tokens, before, behind = size
    rng = np.random.default_rng(0)
    x, w, g = (rng.normal(size=pair).astype(np.float32) for pair in ((tokens, before), (before, behind), (tokens, behind)))
    products: dict[str, tuple[Callable[[Any, Any], Any], tuple[np.ndarray, np.ndarray]]] = {
        "x W": (lambda a, b: a @ b, (x, w)),
        "g W^T": (lambda a, b: a @ b.T, (g, w)),
        "x^T g": (lambda a, b: a.T @ b, (x, g)),
    }
    product, pair = products[kind]
    compiled, ours, theirs = jax.jit(product), [jnp.asarray(a) for a in pair], [torch.from_numpy(a) for a in pair]
    np.testing.assert_allclose(np.asarray(compiled(*ours)), product(*theirs).numpy(), rtol=1e-3, atol=1e-2)
    sides = (lambda: jax.block_until_ready(compiled(*ours)), lambda: product(*theirs))
    seconds = np.empty((_WARM_UP + repetitions, 2))
    for turn in range(len(seconds)):
        for side in (0, 1) if turn % 2 else (1, 0):
            began = time.perf_counter()
            for _ in range(5):
                sides[side]()
            seconds[turn, side] = (time.perf_counter() - began) / 5
    seconds = seconds[_WARM_UP:]
    ratios, rates = seconds[:, 1] / seconds[:, 0], 2 * tokens * before * behind / np.median(seconds, axis=0) / 1e9
    return {
        "kind": kind,
        "shape": list(size),
        "gflops": dict(zip(("ours", "theirs"), rates.round(1).tolist(), strict=True)),
        "ratio": float(np.median(ratios)),
        "interval": median_interval(ratios.tolist()),
    }


def main() -> int:
    """Measures all and writes them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="where the record goes")
    parser.add_argument("--repetitions", type=int, default=21, help="turns of each side (default: 21)")
    args = parser.parse_args()
    if importlib.util.find_spec("torch") is None:
        parser.error("needs torch: run it in the environment that `make oracle` sets up")
    if not os.environ.keys() >= ALLOCATOR.keys():  # read when a process starts
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | ALLOCATOR)
    rows = [{"work": work, **compare(kind, size, args.repetitions)} for work in MODELS for size in shapes(work) for kind in KINDS]
    for row in rows:
        print(f"{row['work']:12}{row['kind']:8}{row['shape']!s:22}{row['ratio']:6.2f}")
    about = {
        name: value for name, value in describe_environment(0).items() if name in ("commit", "machine", "python", "versions")
    }
    command = "python experiments/matrix_products.py --json=products.json"
    write_json(args.json, {"study": "bench", "command": command, **about, "repetitions": args.repetitions, "rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
