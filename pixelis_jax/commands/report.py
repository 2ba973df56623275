"""Writes one self-contained HTML page: curves, tables, votes, and every trace with its regions drawn on the original pixels.

  pixelis report runs/sft runs/eval
  pixelis report trace.jsonl --out=trace.html

The page needs no network and no files beside it. Without --out it is written as report.html into the first directory
given (or beside the first trace). Exit status: 0 written, 2 bad input.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares what to read and where to write."""
    parser.add_argument("sources", metavar="WORKDIR", type=Path, nargs="+", help="work directories, or trace files (.jsonl)")
    parser.add_argument("--out", metavar="FILE", type=Path, help="the page (default: report.html in the first WORKDIR)")
    parser.add_argument("--media_root", metavar="DIR", type=Path, help="what media paths are relative to, if files were moved")
    parser.add_argument(
        "--max_traces",
        metavar="N",
        type=int,
        default=200,
        help="most trajectories on the page, wrong ones first (default: 200)",
    )
    parser.add_argument(
        "--max_votes",
        metavar="N",
        type=int,
        default=40,
        help="most votes on the page, those that tell most first (default: 40)",
    )


def run(args: argparse.Namespace) -> int:
    """Writes the page."""
    from pixelis_jax.commands.checks import check_directory, check_output_file
    from pixelis_jax.commands.errors import UserError
    from pixelis_jax.report import write_report

    for name in ("max_traces", "max_votes"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} must be at least 1, got {getattr(args, name)}")
    if args.media_root is not None:
        check_directory("--media_root", args.media_root)
    first = args.sources[0]
    out = args.out or (first if first.is_dir() else first.parent) / "report.html"
    check_output_file("--out", out)
    summary = write_report(args.sources, out, media_root=args.media_root, max_traces=args.max_traces, max_votes=args.max_votes)
    print(f"{out}: {summary}")
    return 0
