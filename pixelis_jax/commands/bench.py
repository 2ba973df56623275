"""Measures what the README claims, on this machine.

  pixelis bench tools
  pixelis bench tools --scenes=24 --json=tools.json

`tools`: processor time and correctness of every tool on drawn scenes over real photographs, one thread, models loaded,
nothing remembered. A call's budget is 30 ms in the median and 150 ms at the 95th percentile. Intervals are Wilson's
at 95 %. Exit status: 0 measured, 2 bad input.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import platform
from pathlib import Path
from typing import Any

BENCHMARKS = ("tools",)
MEDIAN_BUDGET_MS = 30.0
P95_BUDGET_MS = 150.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the benchmark's name and the output."""
    parser.add_argument("name", metavar="NAME", choices=BENCHMARKS, help=f"one of: {', '.join(BENCHMARKS)}")
    parser.add_argument("--scenes", metavar="N", type=int, default=12, help="pictures and clips to draw (default: 12)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write every figure there")


def run(args: argparse.Namespace) -> int:
    """Measures and prints a table."""
    from pixelis_jax.commands.errors import UserError

    if args.scenes < 1:
        raise UserError("--scenes must be at least 1")
    # Read when the numerical libraries are imported, so before the benchmark's own imports.
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
    from tools_host.benchmark import measure_tools

    rows = [_with_ratios(dataclasses.asdict(row)) for row in measure_tools(scenes=args.scenes)]
    print(_table(rows))
    if args.json is not None:
        record = {"benchmark": args.name, "machine": platform.processor() or platform.machine(), "rows": rows}
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(record, indent=2) + "\n")
    return 0


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
