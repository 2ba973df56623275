"""Where a decoding step spends its time on a CPU, in the works of `pixelis bench rollout`.

    python experiments/decode_profile.py --json=experiments/results/bench/decode_profile.json

One block is decoded under JAX's profiler, and what each of XLA's kernels took is added up by what it computes, which the compiled
program says: `products` with parameters, `scores` of queries on keys, `mixture` of values (with the projection behind it, where
XLA joins the two), `writes` into the window, `rest`. Kernels may run side by side, so a step takes less than their sum. `step` is
measured without the profiler, the median of 9 blocks. Exit status: 0 measured, 2 bad input.
"""

import argparse
import collections
import gzip
import json
import os
import re
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pixelis_jax.speed.duel import ALLOCATOR
from pixelis_jax.speed.work import DECODING, Work, make_examples
from pixelis_jax.workdir import describe_environment
from pixelis_jax.workdir.atomic import write_json

WORKS = ("decode_1m_16", "decode_1m_64", "decode_6m_16", "decode_6m_64")
KINDS = ("products", "scores", "mixture", "writes", "rest")
_BLOCKS = 9


def kinds(program: str) -> dict[str, str]:
    """What each kernel of a compiled decoding loop computes, one of `KINDS`.

    Args:
      program: optimised HLO.
    """
    found = {}
    for name, shape, rest in re.findall(r"^ *(?:ROOT )?%?([\w.-]+) = \(?\w+\[([\d,]*)\](.*)$", program, re.MULTILINE):
        operation = (re.findall(r'op_name="jit\(decode\)/while/body/([^"]*)"', rest) or [""])[0]
        if operation.endswith("dot_general"):
            # Of a chunk of one token a row, which attention alone leaves a dimension of its own.
            found[name] = "mixture" if re.fullmatch(r"\d+,1,\d+", shape) else "products"
        elif operation.endswith("dynamic_update_slice"):
            found[name] = "writes"
        elif operation.endswith(("reduce_max", "reduce_sum")) and shape.count(",") == 3:  # [B, Hkv, G, N] and [B, Hkv, G, Dh]
            found[name] = "scores" if operation.endswith("reduce_max") else "mixture"
        elif "fusion(" in rest or "copy(" in rest or "conditional(" in rest or "reduce" in rest:
            found[name] = "rest"
    return found


def profile(work: Work, dumped: Path) -> dict[str, float]:
    """Decodes blocks of a work; milliseconds of a step, and of each kind of kernel in it.

    Args:
      work: one of `DECODING`.
      dumped: where XLA writes the programs that it compiles.
    """
    import jax
    from flax import nnx

    from pixelis_jax.policy import Qwen3VL, weights
    from pixelis_jax.speed.ours_decoding import Contestant

    with tempfile.TemporaryDirectory() as folder:
        weights.save(Qwen3VL(work.model, rngs=nnx.Rngs(0)), folder)
        contestant = Contestant(work, folder, 0)
        contestant.prepare(make_examples(work))
        contestant.step()
        seconds = [contestant.step()[0] for _ in range(_BLOCKS)]
        with jax.profiler.trace(folder, create_perfetto_trace=True):
            contestant.step()
        (trace,) = Path(folder).rglob("perfetto_trace.json.gz")
        events = json.loads(gzip.decompress(trace.read_bytes()))
    programs = sorted(dumped.glob("*jit_decode*after_optimizations.txt"), key=lambda path: path.stat().st_mtime)
    known = kinds(programs[0].read_text())
    spent: dict[str, float] = collections.Counter()
    for name, duration in _kernels(events if isinstance(events, list) else events["traceEvents"]):
        if name in known:
            spent[known[name]] += duration / work.new_tokens
    return {"step": 1e3 * statistics.median(seconds), **{kind: spent[kind] for kind in KINDS}}


def _kernels(events: list[dict[str, object]]) -> Iterator[tuple[str, float]]:
    """Name of each complete event, and its milliseconds."""
    for event in events:
        if event.get("ph") == "X":
            yield str(event["name"]), float(str(event["dur"])) / 1e3


def main() -> int:
    """Profiles all and writes them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="where the record goes")
    parser.add_argument("--work", action="append", choices=tuple(DECODING), help="only this one, may be repeated")
    args = parser.parse_args()
    if not os.environ.keys() >= ALLOCATOR.keys():  # read when a process starts
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | ALLOCATOR)
    os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)  # a program that is not compiled is not written down
    rows = {}
    for name in args.work or WORKS:
        rows[name] = _alone(name)
        print(name, *(f"{kind} {value:.2f}" for kind, value in rows[name].items()), flush=True)
    about = {key: value for key, value in describe_environment(0).items() if key in ("commit", "machine", "python", "versions")}
    command = "python experiments/decode_profile.py --json=experiments/results/bench/decode_profile.json"
    write_json(args.json, {"study": "bench", "command": command, **about, "milliseconds": rows})
    return 0


def _alone(name: str) -> dict[str, float]:
    """A process of its own, which XLA's flags are read by."""
    import multiprocessing

    with tempfile.TemporaryDirectory() as folder:
        os.environ["XLA_FLAGS"] = f"--xla_dump_to={folder} --xla_dump_hlo_as_text --xla_dump_hlo_module_re=jit_decode"
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            return pool.apply(profile, (DECODING[name], Path(folder)))


if __name__ == "__main__":
    sys.exit(main())
