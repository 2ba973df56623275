"""Measures what the README claims, on this machine.

  pixelis bench tools
  pixelis bench tools --scenes=24 --json=tools.json
  pixelis bench scenes --split=test --first=100000 --scenes=60
  pixelis bench policy --work=train_10m --work=useful --stages
  pixelis bench rollout --work=decode_1m_16 --work=constant --trace=rollout.trace.json

`tools`: processor time and correctness of every tool on drawn scenes over real photographs, one thread, models loaded,
nothing remembered. A call's budget is 30 ms in the median and 150 ms at the 95th percentile. Intervals are Wilson's
at 95 %.

`scenes`: how often the chain of each family of scenes comes out right: with its boxes where they belong, with boxes of the
same size anywhere, and with boxes around the whole medium. `--scenes` are per family.

`policy`: train steps and prefill against transformers + torch, which must be installed (`make oracle` has both): same
weights, same work, same threads, taking turns in processes of their own. Ratios of their time to ours, medians over
`--repetitions` with 95 % bootstrap intervals, and peak memory above what weights and libraries take. `--stages` says where a
step's time goes.

`rollout`: decoding against `generate` of transformers, in the same way; and the agent's loop over a simulated device and
simulated tools, which says what share of the time is lost to waiting. `--trace` writes the spans of the simulations for
https://ui.perfetto.dev.

Exit status: 0 measured, 1 a measurement failed, 2 bad input.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import math
import os
import platform
import shlex
import sys
import time
from pathlib import Path
from typing import Any

BENCHMARKS = ("tools", "scenes", "policy", "rollout")
MEDIAN_BUDGET_MS = 30.0
P95_BUDGET_MS = 150.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the benchmark's name and the output."""
    parser.add_argument("name", metavar="NAME", choices=BENCHMARKS, help=f"one of: {', '.join(BENCHMARKS)}")
    parser.add_argument("--scenes", metavar="N", type=int, default=12, help="pictures and clips to draw (default: 12)")
    parser.add_argument("--split", metavar="SPLIT", default="test", help="`scenes`: of the scenes (default: test)")
    parser.add_argument("--first", metavar="N", type=int, default=0, help="`scenes`: index of the first scene (default: 0)")
    parser.add_argument("--chain", metavar="NAME", action="append", help="`scenes`: only this chain, may be repeated")
    parser.add_argument("--workers", metavar="N", type=int, default=2, help="`scenes`: processes (default: 2)")
    parser.add_argument("--work", metavar="NAME", action="append", help="`policy`, `rollout`: only this work, may be repeated")
    parser.add_argument("--repetitions", metavar="N", type=int, default=9, help="turns of each side (default: 9)")
    parser.add_argument("--threads", metavar="N", type=int, help="of each side (default: one a processor)")
    parser.add_argument("--stages", action="store_true", help="`policy`: also time the parts of a train step")
    parser.add_argument("--trace", metavar="FILE", type=Path, help="`rollout`: write the spans of the simulations there")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write every figure there")


def run(args: argparse.Namespace) -> int:
    """Measures and prints a table."""
    from pixelis_jax.commands.checks import check_output_file
    from pixelis_jax.commands.errors import UserError

    if args.scenes < 1:
        raise UserError("--scenes must be at least 1")
    if args.json is not None:
        check_output_file("--json", args.json)
    if args.trace is not None:
        check_output_file("--trace", args.trace)
    if args.name in ("policy", "rollout"):
        return _compare(args)
    rows, text = _measure_tools(args) if args.name == "tools" else _measure_scenes(args)
    print(text)
    settings = {"scenes": args.scenes} | ({"split": args.split, "first": args.first} if args.name == "scenes" else {})
    _write(args, {"machine": platform.processor() or platform.machine(), **settings, "rows": rows})
    return 0


def _write(args: argparse.Namespace, record: dict[str, Any]) -> None:
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({"benchmark": args.name, **record}, indent=2) + "\n")


def _measure_tools(args: argparse.Namespace) -> tuple[list[dict[str, Any]], str]:
    # Read when the numerical libraries are imported, so before the benchmark's own imports.
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
    from tools_host.benchmark import measure_tools

    rows = [_with_ratios(dataclasses.asdict(row)) for row in measure_tools(scenes=args.scenes)]
    return rows, _table(rows)


def _measure_scenes(args: argparse.Namespace) -> tuple[list[dict[str, Any]], str]:
    from pixelis_jax.commands.data import SPLITS
    from pixelis_jax.commands.errors import UserError
    from pixelis_jax.evaluation.honesty import CHAINS, chain_scores
    from tools_host.registry import did_you_mean

    if args.split not in SPLITS:
        raise UserError(f"--split: no split {args.split!r}{did_you_mean(args.split, SPLITS)} (known: {', '.join(SPLITS)})")
    if args.first < 0 or args.workers < 1:
        raise UserError("--first must not be negative, --workers must be at least 1")
    chains = args.chain or CHAINS
    if unknown := set(chains) - set(CHAINS):
        name = sorted(unknown)[0]
        raise UserError(f"--chain: no chain {name!r}{did_you_mean(name, CHAINS)} (known: {', '.join(CHAINS)})")
    rows: list[dict[str, Any]] = []
    for family, chain, scores in chain_scores(args.split, args.first, args.scenes, chains=chains, workers=args.workers):
        share = sum(scores) / len(scores)
        rows.append({"family": family, "chain": chain, "n": len(scores), "right": share, "interval": wilson(share, len(scores))})
        print(f"{family:14}{chain:14}{share:6.3f}", file=sys.stderr, flush=True)
    shares = {(row["family"], row["chain"]): row["right"] for row in rows}
    families = list(dict.fromkeys(row["family"] for row in rows))
    lines = [f"{'family':14}" + "".join(f"{chain:>14}" for chain in chains)]
    lines += [f"{family:14}" + "".join(f"{shares[family, chain]:>14.3f}" for chain in chains) for family in families]
    means = [sum(shares[family, chain] for family in families) / len(families) for chain in chains]
    lines.append(f"{'mean':14}" + "".join(f"{mean:>14.3f}" for mean in means))
    return rows, "\n".join(lines)


def _compare(args: argparse.Namespace) -> int:
    from pixelis_jax.commands.errors import UserError
    from pixelis_jax.speed.duel import ContestantError, allocator, compare
    from pixelis_jax.speed.results import make_row, stage_table, table
    from pixelis_jax.speed.work import DECODING, WORKS, count_parameters
    from pixelis_jax.workdir import describe_environment
    from tools_host.registry import did_you_mean

    works, simulations = (WORKS, []) if args.name == "policy" else (DECODING, _simulation_names())
    known = [*works, *simulations]
    if unknown := set(args.work or ()) - set(known):
        name = sorted(unknown)[0]
        raise UserError(f"--work: no work {name!r}{did_you_mean(name, known)} (known: {', '.join(known)})")
    names = args.work or known
    missing = [package for package in ("torch", "transformers") if importlib.util.find_spec(package) is None]
    if missing and set(names) & works.keys():
        raise UserError(
            f"bench {args.name} measures against transformers and torch, and {' and '.join(missing)} is not installed here; "
            f"`make .venv-oracle/.installed` makes an environment that has both: .venv-oracle/bin/pixelis bench {args.name}"
        )
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = processors if args.threads is None else args.threads
    if args.repetitions < 2 or not 1 <= threads <= processors:
        raise UserError(f"--repetitions must be at least 2, --threads from 1 to {processors}")

    started = time.monotonic()
    rows: list[dict[str, Any]] = []
    versions: dict[str, str] = {}
    for name in (name for name in names if name in works):
        print(f"measuring {name} ({args.repetitions} turns each)", file=sys.stderr, flush=True)
        stages = args.stages and works[name].task == "train"
        try:
            comparison = compare(works[name], repetitions=args.repetitions, threads=threads, stages=stages)
        except ContestantError as error:
            print(f"pixelis: {error}", file=sys.stderr)
            return 1
        rows.append(make_row(name, works[name], comparison, count_parameters(works[name].model)))
        versions |= comparison.versions
    if rows:
        print(table(rows))
    if args.stages:
        print(stage_table(rows))
    simulated = _simulate(args, [name for name in names if name in simulations])
    environment = describe_environment(seed=0)
    kept = {name: environment[name] for name in ("seed", "commit", "machine", "python")}
    settings = {"repetitions": args.repetitions, "threads": threads, "processors": processors, "allocator": allocator()}
    record = {
        "study": "bench",
        "command": shlex.join(["pixelis", *sys.argv[1:]]),
        "config_diff": {},
        **kept,
        "versions": versions,
        **settings,
    }
    _write(args, record | {"wall_time_s": round(time.monotonic() - started), "rows": rows, "simulated": simulated})
    return 0


def _simulation_names() -> list[str]:
    from pixelis_jax.speed.simulated import SIMULATIONS

    return list(SIMULATIONS)


def _simulate(args: argparse.Namespace, names: list[str]) -> list[dict[str, Any]]:
    from pixelis_jax.commands.models import SHIPPED
    from pixelis_jax.encoding import Encoder
    from pixelis_jax.rollout.tracing import Tracer
    from pixelis_jax.speed import simulated

    rows = []
    for name in names:
        print(f"simulating {name}", file=sys.stderr, flush=True)
        tracer = Tracer(on=True)
        setting = simulated.SIMULATIONS[name]
        rows.append({"name": name, **simulated.simulate(setting, Encoder.load(SHIPPED / "tiny_base"), tracer)})
        if args.trace is not None:
            tracer.save(args.trace if len(names) == 1 else args.trace.with_stem(f"{args.trace.stem}-{name}"))
    if rows:
        print(simulated.table(rows))
    return rows


def wilson(share: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share that was seen in `count` trials."""
    z = 1.959964
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2)) / (1 + z**2 / count)
    return max(centre - half, 0.0), min(centre + half, 1.0)


def _with_ratios(row: dict[str, Any]) -> dict[str, Any]:
    return {
        **row,
        "right_interval": [round(edge, 4) for edge in wilson(row["right"], row["calls"])],
        "median_ratio": round(row["median_ms"] / MEDIAN_BUDGET_MS, 3),
        "p95_ratio": round(row["p95_ms"] / P95_BUDGET_MS, 3),
    }


def _table(rows: list[dict[str, Any]]) -> str:
    lines = [f"{'tool':12}{'calls':>6}{'right':>7}{'interval':>14}{'median ms':>11}{'/budget':>9}{'P95 ms':>9}{'/budget':>9}"]
    for row in rows:
        low, high = row["right_interval"]
        lines.append(
            f"{row['tool']:12}{row['calls']:>6}{row['right']:>7.2f}{f'{low:.2f}-{high:.2f}':>14}"
            f"{row['median_ms']:>11.1f}{row['median_ratio']:>9.2f}{row['p95_ms']:>9.1f}{row['p95_ratio']:>9.2f}"
        )
    return "\n".join(lines)
