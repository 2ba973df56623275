"""Makes and checks data sets of scenes.

  pixelis data build --out=scenes --split=train --count=100     examples, media and oracle traces
  pixelis data audit scenes                                      near-duplicates between its splits

Building again adds what is missing. Exit status: 0 done, 1 the audit found something that two splits share, 2 bad input.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pixelis_jax.commands.checks import check_directory, check_seed
from pixelis_jax.commands.errors import UserError
from tools_host.registry import did_you_mean

if TYPE_CHECKING:
    from tools_host.config import ToolsConfig

SPLITS: tuple[Literal["train", "val", "test", "shift"], ...] = ("train", "val", "test", "shift")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares `build` and `audit`."""
    actions = parser.add_subparsers(dest="action", metavar="{build,audit}", required=True)
    build = actions.add_parser("build", help="scenes with known answers, and for train the traces made by running the tools")
    build.add_argument("--out", metavar="DIR", type=Path, required=True, help="where the data set goes")
    build.add_argument("--split", action="append", choices=SPLITS, help="a split to build, may be repeated (default: all)")
    build.add_argument("--count", metavar="N", type=int, default=100, help="scenes of each family (default: 100)")
    build.add_argument("--family", action="append", metavar="NAME", help="a family, may be repeated (default: all)")
    build.add_argument("--seed", metavar="N", type=int, default=0, help="of the generator (default: 0)")
    build.add_argument("--workers", metavar="N", type=int, default=2, help="processes (default: 2)")
    audit = actions.add_parser("audit", help="near-duplicates between splits, by perceptual hash, and shared strings")
    audit.add_argument("directory", metavar="DIR", type=Path, help="a built data set")


def run(args: argparse.Namespace) -> int:
    """Builds or audits."""
    return _build(args) if args.action == "build" else _audit(args.directory)


def build_split(
    out: Path,
    split: str,
    counts: Mapping[str, int],
    workers: int,
    *,
    seed: int = 0,
    styles: Mapping[str, float] | None = None,
    reframed: float = 0.0,
    config: ToolsConfig | None = None,
) -> None:
    """`data.build.build` with a progress bar; what a user can get wrong is a UserError before anything is written."""
    from pixelis_jax.data.build import SHARD, build
    from pixelis_jax.training.progress import Progress

    check_counts(counts, workers)
    if split not in SPLITS:
        raise UserError(f"no split {split!r}{did_you_mean(split, SPLITS)} (known: {', '.join(SPLITS)})")
    shards = build(out, split, counts, workers, seed=seed, styles=styles, reframed=reframed, config=config)  # type: ignore[arg-type]
    with Progress(split, start=0, total=sum(-(-count // SHARD) for count in counts.values())) as progress:
        for number, _ in enumerate(shards, start=1):
            progress.advance(number)


def check_counts(counts: Mapping[str, int], workers: int) -> None:
    """Raises UserError for what no set of scenes can be made of, UnknownNameError for a family that does not exist."""
    from pixelis_jax.data.scenes import FAMILIES

    for family, count in counts.items():
        _ = FAMILIES[family]
        if not isinstance(count, int) or count < 0:
            raise UserError(f"{family}: cannot make {count!r} scenes")
    if sum(counts.values()) < 1:
        raise UserError("there must be at least one scene")
    if workers < 0:
        raise UserError(f"workers must be 0 or more, got {workers}")


def _build(args: argparse.Namespace) -> int:
    from pixelis_jax.data.scenes import FAMILIES

    counts = dict.fromkeys(args.family or FAMILIES, args.count)
    check_counts(counts, args.workers)
    check_seed("--seed", args.seed)
    _open_data_set(args.out, args.seed)
    for split in args.split or SPLITS:
        build_split(args.out, split, counts, args.workers, seed=args.seed)
    print(args.out)
    return 0


def _open_data_set(out: Path, seed: int) -> None:
    """Shards that are there already are kept, so they must be of the same seed; the first build notes it."""
    from pixelis_jax.workdir.atomic import write_json

    if out.exists():
        check_directory("--out", out)
    note = out / "build.json"
    if not note.exists():
        # What an interrupted write left is no obstacle.
        if out.exists() and any(not path.name.startswith(".") for path in out.iterdir()):
            raise UserError(f"--out: {out} holds files but no {note.name}: not a data set; give a new or empty directory")
        out.mkdir(parents=True, exist_ok=True)
        write_json(note, {"seed": seed})
        return
    try:
        noted = json.loads(note.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{note} cannot be read: {error}; give another directory") from error
    if noted != {"seed": seed}:
        raise UserError(f"{out} was built with another --seed, see {note}; give another directory or the same seed")


def _audit(directory: Path) -> int:
    from pixelis_jax.data.audit import audit

    if not directory.is_dir():
        raise UserError(f"no such directory: {directory}")
    built = [split for split in SPLITS if any((directory / split).glob("examples-*.jsonl"))]
    if len(built) < 2:
        raise UserError(f"{directory}: an audit compares splits, and needs at least two; built are: {', '.join(built) or 'none'}")
    report = audit(directory)
    print(json.dumps(report, indent=2))
    return 0 if report["clean"] else 1
