"""Measures what the README claims, on this machine.

  pixelis bench tools
  pixelis bench tools --json=tools.json

`tools`: time of one call on 512 x 384 scenes and a two-second clip, one thread, models loaded, nothing remembered; a call's budget is
30 ms in the median and 150 ms at the 95th percentile. Intervals are 95 % bootstrap intervals.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from pathlib import Path
from typing import Any

BENCHMARKS = ("tools",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the benchmark's name and the output."""
    parser.add_argument("name", metavar="NAME", choices=BENCHMARKS, help=f"one of: {', '.join(BENCHMARKS)}")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write every figure there")
    parser.add_argument("--calls", metavar="N", type=int, default=40, help="distinct calls of each tool (default: 40)")


def run(args: argparse.Namespace) -> int:
    """Measures and prints a table."""
    from pixelis_jax.commands.errors import UserError

    if args.calls < 2:
        raise UserError("--calls must be at least 2")
    # Read when the numerical libraries are imported, so before the benchmark's own imports.
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
    from pixelis_jax.commands.bench_tools import measure_tools

    rows = measure_tools(args.calls)
    print(_table(rows))
    if args.json is not None:
        record = {"benchmark": args.name, "machine": platform.processor() or platform.machine(), "rows": rows}
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(record, indent=2) + "\n")
    return 0


def _table(rows: list[dict[str, Any]]) -> str:
    lines = [f"{'tool':12}{'calls':>6}{'median ms':>11}{'interval':>16}{'P95 ms':>9}{'median/budget':>15}{'P95/budget':>12}"]
    for row in rows:
        low, high = row["median_interval_ms"]
        lines.append(
            f"{row['tool']:12}{row['calls']:>6}{row['median_ms']:>11.1f}{f'{low:.1f}-{high:.1f}':>16}"
            f"{row['p95_ms']:>9.1f}{row['median_ratio']:>15.2f}{row['p95_ratio']:>12.2f}"
        )
    return "\n".join(lines)
