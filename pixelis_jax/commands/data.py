"""Makes and checks data sets of scenes.

  pixelis data build --out=scenes --split=train --count=100     examples, media and oracle traces
  pixelis data audit scenes                                      near-duplicates between its splits

Building again adds what is missing. Exit status of the audit: 0 no near-duplicates, 1 some.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Literal

from pixelis_jax.commands.errors import UserError

SPLITS: tuple[Literal["train", "val", "test", "shift"], ...] = ("train", "val", "test", "shift")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares `build` and `audit`."""
    actions = parser.add_subparsers(dest="action", metavar="{build,audit}", required=True)
    build = actions.add_parser("build", help="scenes with known answers, and for train the traces made by running the tools")
    build.add_argument("--out", metavar="DIR", type=Path, required=True, help="where the data set goes")
    build.add_argument("--split", action="append", choices=SPLITS, help="a split to build, may be repeated (default: all)")
    build.add_argument("--count", type=int, default=100, help="scenes of each family (default: 100)")
    build.add_argument("--family", action="append", metavar="NAME", help="a family, may be repeated (default: all)")
    build.add_argument("--seed", type=int, default=0, help="of the generator (default: 0)")
    build.add_argument("--workers", type=int, default=2, help="processes (default: 2)")
    audit = actions.add_parser("audit", help="near-duplicates between splits, by perceptual hash, and shared strings")
    audit.add_argument("directory", metavar="DIR", type=Path, help="a built data set")


def run(args: argparse.Namespace) -> int:
    """Builds or audits."""
    return _build(args) if args.action == "build" else _audit(args.directory)


def _build(args: argparse.Namespace) -> int:
    from pixelis_jax.data.build import SHARD, build
    from pixelis_jax.data.scenes import FAMILIES
    from pixelis_jax.training.progress import Progress

    if args.count < 1 or args.workers < 0:
        raise UserError("--count must be at least 1 and --workers at least 0")
    families = args.family or list(FAMILIES)
    for family in families:
        _ = FAMILIES[family]
    for split in args.split or SPLITS:
        shards = build(args.out, split, dict.fromkeys(families, args.count), args.workers, seed=args.seed)
        with Progress(split, start=0, total=len(families) * -(-args.count // SHARD)) as progress:
            for number, _ in enumerate(shards, start=1):
                progress.advance(number)
    print(args.out)
    return 0


def _audit(directory: Path) -> int:
    from pixelis_jax.data.audit import audit

    if not directory.is_dir():
        raise UserError(f"no such directory: {directory}")
    report = audit(directory)
    print(json.dumps(report, indent=2))
    return 0 if report["clean"] else 1
