"""Runs every combination of a sweep's variants, one after the other; started again, the same command goes on.

  pixelis sweep --config=configs/sweeps/tiny_sft.py --workdir=runs/tower
  pixelis sweep --config=configs/sweeps/tiny_sft.py --workdir=runs/tower --only=seed=0 --max_minutes=60
  pixelis sweep --config=configs/sweeps/tiny_sft.py --workdir=runs/tower --list
  pixelis sweep --config=configs/sweeps/tiny_sft.py --workdir=runs/tower --print

A sweep's config has four fields. `command` is `train` or `eval`; `base` is the config file that every run starts from, as for
--config; `fixed` holds changes that all runs share; `axes` holds, by axis and by label, the changes of each variant:

  config = ConfigDict(convert_dict=False)  # keeps the order, and takes names with dots
  config.command = "train"
  config.base = "configs/tiny_sft.py"
  config.fixed = {"total_steps": 500}
  config.axes = {
      "rate": {"low": {"optimizer.learning_rate": 5e-4}, "high": {"optimizer.learning_rate": 1e-3}},
      "seed": {str(seed): {"seed": seed} for seed in range(3)},
  }

These are six runs, `rate=low,seed=0` to `rate=high,seed=2`; of `eval`, `model` among the changes names the model. All runs are
checked, as their command would, before any starts. A run works in DIR/NAME and its output goes to DIR/NAME.log. What is finished
is skipped; what was stopped or has failed is run again, and training goes on from its checkpoint. A run that fails does not keep
the others from running. DIR/sweep.json records the runs and DIR/states.json how they ended: runs can be added to a sweep, but a
directory whose runs are others is refused. SIGTERM, Ctrl-C and --max_minutes stop the current run with its checkpoint, and then
the sweep; a second Ctrl-C ends it at once.

Exit status: 0 all finished, 1 a run failed, 2 bad input (nothing has run), 3 stopped early, or a run was: the same command goes
on.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import math
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pixelis_jax.commands.errors import UserError
from tools_host.registry import did_you_mean

if TYPE_CHECKING:
    from pixelis_jax.commands.jobs import End, Job
    from pixelis_jax.commands.sweep_config import Sweep

FAILED, STOPPED_EARLY = 1, 3
PROGRAM = (sys.executable, "-m", "pixelis_jax")
FINISHED = {"train": "model/config.json", "eval": "report.html"}
"""What a command writes last into its work directory."""

_RECORD, _STATES, _LOCK = "sweep.json", "states.json", ".lock"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the config, the directory, which runs, and what to do with them."""
    from pixelis_jax.commands.configs import add_config

    add_config(parser)
    parser.add_argument(
        "--workdir", metavar="DIR", type=Path, help="holds the runs' work directories; default: runs/ and the config's name"
    )
    parser.add_argument(
        "--only",
        metavar="TEXT",
        action="append",
        help="only runs with these labels (else: whose name holds this text); repeated: any of them",
    )
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--print", action="store_true", help="print the commands of what is not finished; run nothing")
    instead.add_argument("--list", action="store_true", help="print the runs and how far they are; run nothing")
    parser.add_argument("--jobs", metavar="N", type=int, default=1, help="runs at a time (default: 1)")
    parser.add_argument("--max_minutes", metavar="N", type=float, help="stop after this time; the same command goes on")


def run(args: argparse.Namespace) -> int:
    """Checks all runs, and runs those that were asked for and are not finished."""
    from pixelis_jax.commands.jobs import Job, run_jobs
    from pixelis_jax.commands.sweep_config import check_runs, read_sweep
    from pixelis_jax.workdir import write_json

    if args.jobs < 1:
        raise UserError(f"--jobs must be at least 1, got {args.jobs}")
    if args.max_minutes is not None and not 0 <= args.max_minutes < math.inf:
        raise UserError(f"--max_minutes must be at least 0, got {args.max_minutes:g}")
    directory = args.workdir or Path("runs") / args.config.stem
    sweep = read_sweep(args.config, args.overrides)
    names = _selected(sweep, args.only)
    check_runs(args.config, sweep)
    _check_directory(directory, sweep)
    if args.list:
        print(table(directory, sweep, names))
        return 0
    left = [name for name in names if not _is_finished(directory, sweep, name)]
    if args.print:
        for name in left:
            print(shlex.join(("pixelis", *sweep.arguments(name, directory))))
        return 0
    with _locked(directory) as lock:
        write_json(directory / _RECORD, _record(sweep))
        progress = _Progress(directory, sweep, left)
        run_jobs(
            [Job(name=name, arguments=sweep.arguments(name, directory), log=directory / f"{name}.log") for name in left],
            program=PROGRAM,
            at_once=args.jobs,
            seconds=None if args.max_minutes is None else 60 * args.max_minutes,
            keep_open=lock,
            began=progress.began,
            ended=progress.ended,
        )
    print(table(directory, sweep, names))
    return _conclude(directory, sweep, names)


def table(directory: Path, sweep: Sweep, names: Sequence[str]) -> str:
    """A line a run: its name, its state, and of one that failed the last line of its output."""
    found = states(directory, sweep)
    rows = [("run", "state", "")] + [
        (name, found[name], _last_line(directory / f"{name}.log") if found[name] == "failed" else "") for name in names
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    return "\n".join(f"{name.ljust(widths[0])}  {state.ljust(widths[1])}  {why}".rstrip() for name, state, why in rows)


def states(directory: Path, sweep: Sweep) -> dict[str, str]:
    """The state of each run: waiting, running, stopped, failed or done.

    A run that something else started (the commands of --print) is stopped from when its directory is there until it is done.
    """
    recorded, alive = _recorded_states(directory), _is_locked(directory)

    def state(name: str) -> str:
        if _is_finished(directory, sweep, name):
            return "done"
        last = recorded.get(name, {}).get("state")
        if last == "failed" or (last == "running" and alive):
            return str(last)
        return "stopped" if (directory / name).exists() else "waiting"

    return {name: state(name) for name in sweep.runs}


class _Progress:
    """Says how runs begin and end, and keeps it in `states.json`."""

    def __init__(self, directory: Path, sweep: Sweep, left: Sequence[str]) -> None:
        self._directory, self._sweep = directory, sweep
        self._numbers = {name: f"[{number}/{len(left)}] {name}" for number, name in enumerate(left, start=1)}

    def began(self, job: Job) -> None:
        self._keep(job.name, {"state": "running"})
        print(f"{self._numbers[job.name]}: its output goes to {job.log}", flush=True)

    def ended(self, job: Job, end: End) -> None:
        done = end.status == 0 and _is_finished(self._directory, self._sweep, job.name)
        state = "done" if done else "stopped" if end.stopped else "failed"
        self._keep(job.name, {"state": state, "status": end.status, "seconds": round(end.seconds, 1)})
        print(f"{self._numbers[job.name]}: {state} after {end.seconds / 60:.1f} minutes", flush=True)

    def _keep(self, name: str, state: Mapping[str, Any]) -> None:
        from pixelis_jax.workdir import write_json

        write_json(self._directory / _STATES, {**_recorded_states(self._directory), name: state})


def _selected(sweep: Sweep, texts: Sequence[str] | None) -> list[str]:
    if not texts:
        return list(sweep.runs)
    chosen: set[str] = set()
    for text in texts:
        # Whole labels first: `variant=coherence` is not `variant=coherence_penalty`.
        found = [name for name in sweep.runs if set(text.split(",")) <= set(name.split(","))]
        found = found or [name for name in sweep.runs if text in name]
        chosen.update(found)
        if not found:
            parts = {part for name in sweep.runs for part in name.split(",")}
            raise UserError(f"--only={text}: no run has this in its name{did_you_mean(text, [*sweep.runs, *sorted(parts)])}")
    return [name for name in sweep.runs if name in chosen]


def _conclude(directory: Path, sweep: Sweep, names: Sequence[str]) -> int:
    found = states(directory, sweep)
    failed = [name for name in names if found[name] == "failed"]
    left = [name for name in names if found[name] not in ("failed", "done")]
    if failed:
        print(f"pixelis: {len(failed)} of {len(names)} runs failed: {'; '.join(failed)}", file=sys.stderr)
    if left:
        print(f"pixelis: {len(left)} of {len(names)} runs are not finished; the same command goes on", file=sys.stderr)
        return STOPPED_EARLY
    return FAILED if failed else 0


def _record(sweep: Sweep) -> dict[str, Any]:
    return {"command": sweep.command, "base": sweep.base, "runs": {name: dict(run) for name, run in sweep.runs.items()}}


def _check_directory(directory: Path, sweep: Sweep) -> None:
    """Raises UserError for a directory of another sweep or of something else; a sweep with more runs than before is the same."""
    if directory.exists() and not directory.is_dir():
        raise UserError(f"--workdir: {directory} is a file; give a directory")
    path = directory / _RECORD
    if not path.exists():
        if directory.is_dir() and any(not item.name.startswith(".") for item in directory.iterdir()):
            raise UserError(f"--workdir: {directory} holds files but no {_RECORD}; give a new or empty directory")
        return
    before, now = _read_json(path), _record(sweep)
    for name in ("command", "base"):
        if before.get(name) != now[name]:
            raise UserError(f"{directory} is of another sweep: its {name} is {before.get(name)}, not {now[name]}")
    for name, changes in before.get("runs", {}).items():
        if name not in now["runs"]:
            raise UserError(f"{directory} is of another sweep: it has a run {name}; give another directory")
        if changes != now["runs"][name]:
            raise UserError(
                f"{directory} is of another sweep: {name} has {_changed(changes, now['runs'][name])}; give another directory"
            )


def _changed(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    fields = sorted(field for field in before.keys() | now.keys() if before.get(field) != now.get(field))
    return ", ".join(f"{field} ({before.get(field, 'absent')} -> {now.get(field, 'absent')})" for field in fields)


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[int]:
    """Keeps other sweeps out of a directory until this one and all processes that it started are gone."""
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / _LOCK, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{directory}: a sweep, or a run that one left behind, is at work there") from error
        yield file.fileno()


def _is_locked(directory: Path) -> bool:
    try:
        descriptor = os.open(directory / _LOCK, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(descriptor)


def _is_finished(directory: Path, sweep: Sweep, name: str) -> bool:
    return (directory / name / FINISHED[sweep.command]).exists()


def _recorded_states(directory: Path) -> dict[str, Any]:
    path = directory / _STATES
    return _read_json(path) if path.exists() else {}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error})") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} does not hold a JSON object")
    return value


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").split("\n") if log.exists() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
