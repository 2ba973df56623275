"""Runs every call of a trace again and compares all that came back but the times.

  pixelis replay runs/ask/trace.jsonl
  pixelis replay trace.jsonl --tolerance=numeric --media_root=/data/moved

Exit status: 0 every trajectory is identical, 1 something differs, 2 bad input. Tools whose versions changed are named.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from pixelis_jax.commands.tools import add_imports, parse_imports

SHOWN = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the trace and how to compare."""
    parser.add_argument("trace", metavar="TRACE", type=Path, help="a .jsonl file of trajectories")
    parser.add_argument(
        "--tolerance",
        choices=("exact", "numeric"),
        default="exact",
        help="numeric: numbers and masks may differ a little, as they do on another CPU (default: exact)",
    )
    parser.add_argument(
        "--media_root",
        metavar="DIR",
        type=Path,
        help="what media paths are relative to (default: the trace's directory)",
    )
    add_imports(parser)


def run(args: argparse.Namespace) -> int:
    """Replays every trajectory of the trace."""
    from pixelis_jax.commands.checks import check_directory
    from pixelis_jax.commands.errors import UserError
    from pixelis_jax.rollout.replay import replay, tools_config
    from pixelis_jax.trajectory import read_trajectories
    from tools_host.config import ToolsConfig
    from tools_host.pool import WorkerPool

    imports = parse_imports(args.imports)
    root = args.trace.parent if args.media_root is None else args.media_root
    check_directory("--media_root", root)
    # All of the trace is read before anything runs: a damaged line is bad input, not half an audit.
    trajectories = list(read_trajectories(args.trace, consistent=False))
    if not trajectories:
        raise UserError(f"{args.trace}: holds no trajectory")
    configs = [tools_config(trajectory, imports) for trajectory in trajectories]
    pools: dict[ToolsConfig, WorkerPool] = {}
    different, versions = 0, set()
    try:
        for trajectory, config in zip(trajectories, configs, strict=True):
            if config not in pools:
                # Workers, even for a single trajectory: they fix the thread counts that a call's answer depends on.
                pools[config] = WorkerPool(config, workers=min(2, os.cpu_count() or 1), memo_bytes=0)
            report = replay(trajectory, pools[config], config, media_root=root, tolerance=args.tolerance)
            versions |= set(report.versions)
            different += not report.identical
            print(f"{report.id}: {'identical' if report.identical else 'DIFFERENT'} ({_count(report.calls, 'call')})")
            for difference in report.differences[:SHOWN]:
                print(f"  {difference}")
            if len(report.differences) > SHOWN:
                print(f"  and {len(report.differences) - SHOWN} more")
    finally:
        for pool in pools.values():
            pool.close()
    for change in sorted(versions):
        print(f"changed since the trace was made: {change}", file=sys.stderr)
    print(f"{_count(len(trajectories), 'trajectory', 'trajectories')}, {different} different")
    return 1 if different else 0


def _count(number: int, singular: str, plural: str = "") -> str:
    return f"{number} {singular if number == 1 else plural or singular + 's'}"
