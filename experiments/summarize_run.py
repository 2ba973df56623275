"""Makes the summary of a training run, from which figures are drawn, out of its work directory.

    python experiments/summarize_run.py runs/ccrft/variant=full,seed=0 --study=ccrft --variant=full --seed=0 \\
      --eval=runs/eval_full_0/results.json

Writes experiments/results/STUDY/VARIANT-SEED.json: command, the fields that it changed, commit, machine, wall time, curves of at
most 500 points (each the mean of a stretch where there are more) and, with --eval, what `pixelis eval` found. Of a run that
answers a stream of queries there are also the shares of its updates inside, below and above the corridor of the divergence, and
of each query whether the greedy answer and the vote's were right, so that runs can be compared query by query. Paths of this
machine are cut down to what lies below the checkout. Exit status: 0 written, 2 bad input.
"""

import argparse
import dataclasses
import itertools
import json
import math
import re
import shlex
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pixelis_jax.evaluation.corridor import BOTTOM, TOP, in_corridor
from pixelis_jax.workdir import Workdir, WorkdirError, without_machine, write_bytes

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "experiments" / "results"

METRICS = {
    "accuracy": "rollout/accuracy",
    "rapr": "rollout/rapr",
    "racpr": "rollout/racpr",
    "chain": "rollout/chain",
    "valid_calls": "rollout/valid_calls",
    "kl": "kl",
}
"""Names of the curves, and of the metrics that they are made of."""

ONLINE = {
    "accuracy": "accuracy/greedy",
    "vote": "accuracy/vote",
    "kl": "kl",
    "beta": "beta",
    "rolled_back": "rolled_back",
    "learnt": "learnt",
    "abstained": "abstained",
}
"""The same for a run that answers a stream of queries, a step a query; one curve more, `updates`, counts those with a `kl`."""

RUNNING = ("accuracy", "vote")
RUNNING_MEAN = 50
"""Of an online run these curves are means over the last queries, up to so many."""

MOST_POINTS = 500
PAUSE_S = 600
"""A gap between two rows is a pause between two starts if it is this long, and ten times as long as others."""


class InputError(Exception):
    """Bad input; the message is one line."""


def summarize(workdir: Path, *, study: str, variant: str, seed: int, results: Path | None = None) -> dict[str, Any]:
    """The summary of a run.

    Args:
      workdir: Of the run, finished or not.
      study: The folder of its kind.
      variant: What the run is called, whatever its seed.
      seed: Of the run; checked against its config.
      results: `results.json` of an evaluation of its model.

    Raises:
      InputError: The config has another seed, no row has one of the metrics, or `results` is no such file.
      WorkdirError: Not a work directory, or a file in it is damaged.
    """
    run = Workdir(workdir)
    environment = run.environment
    if run.config.get("seed", seed) != seed:
        raise InputError(f"--seed={seed}, but {workdir / 'config.json'} has seed {run.config['seed']}")
    rows = run.metrics()
    arguments = [str(word) for word in environment.get("command", [])][1:]
    devices = environment.get("devices", {})
    online = any(ONLINE["accuracy"] in row for row in rows)
    warm_up = int((run.config.get("kl") or {}).get("warm_up", 0))
    return {
        "study": study,
        "variant": variant,
        "seed": seed,
        "command": shlex.join(["pixelis", *map(without_machine, arguments)]),
        "config_diff": changed_fields(arguments, run.config),
        "commit": environment.get("commit"),
        "machine": f"{environment.get('machine')}, {devices.get('count')} x {devices.get('kind')}",
        "wall_time_s": round(wall_time([row["time"] for row in rows])),
        "curves": curves(rows, workdir, online=online),
        **({"corridor": corridor(rows, warm_up), "items": items(rows, workdir)} if online else {}),
        "eval": {} if results is None else evaluation(results),
    }


def curves(rows: Sequence[Mapping[str, Any]], workdir: Path, *, online: bool = False) -> dict[str, list[float | None]]:
    """Each metric by iteration, None where it was not written or not finite.

    Rows of one step (several processes, or several parts of a step) are averaged, and so are neighbours where there are more than
    `MOST_POINTS` steps.

    Args:
      rows: Metrics in any order.
      workdir: For the message.
      online: Whether the run answered a stream of queries, which has other curves.

    Raises:
      InputError: No row has one of the metrics.
    """
    metrics = ONLINE if online else METRICS
    steps = sorted({row["step"] for row in rows if any(name in row for name in metrics.values())})
    if not steps:
        known = ", ".join(sorted({name for row in rows for name in row} - {"step", "time"})) or "none"
        raise InputError(f"{workdir}: no row has {', '.join(metrics.values())}; its metrics are {known}")
    table: list[dict[str, list[float]]] = [{name: [] for name in metrics} for _ in steps]
    places = {step: place for place, step in enumerate(steps)}
    for row in rows:
        for name, metric in metrics.items():
            if metric in row and math.isfinite(float(row[metric])):
                table[places[row["step"]]][name].append(float(row[metric]))
    # First over the rows of a step: a step with more rows does not count more.
    by_step = {name: [_mean(values[name]) for values in table] for name in metrics}
    if online:
        by_step |= {name: _running_mean(by_step[name]) for name in RUNNING}
        updates = itertools.accumulate(kl is not None for kl in by_step["kl"])
        by_step["updates"] = [None if kl is None else float(count) for kl, count in zip(by_step["kl"], updates, strict=True)]
    parts = np.array_split(np.arange(len(steps)), min(len(steps), MOST_POINTS))
    found: dict[str, list[float | None]] = {"iteration": [_mean([steps[place] for place in part]) for part in parts]}
    for name, values in by_step.items():
        found[name] = [_mean([value for place in part if (value := values[place]) is not None]) for part in parts]
    return found


def corridor(rows: Sequence[Mapping[str, Any]], warm_up: int) -> dict[str, Any] | None:
    """Where the divergence lay after each update, also after those that the guard took back; None if nothing was updated.

    Args:
      rows: Metrics in any order.
      warm_up: Updates at the beginning which `after_warm_up` leaves out.

    Returns:
      The edges, and the shares of `all` updates and of those `after_warm_up` (None if there are none).
    """
    metric = ONLINE["kl"]
    measured = [float(row[metric]) for row in sorted(rows, key=lambda row: row["step"]) if metric in row]
    finite, later = ([kl for kl in part if math.isfinite(kl)] for part in (measured, measured[warm_up:]))
    if not finite:
        return None
    return {
        "bottom": BOTTOM,
        "top": TOP,
        "warm_up": warm_up,
        "all": dataclasses.asdict(in_corridor(finite)),
        "after_warm_up": dataclasses.asdict(in_corridor(later)) if later else None,
        "not_finite": len(measured) - len(finite),
    }


def items(rows: Sequence[Mapping[str, Any]], workdir: Path) -> dict[str, Any]:
    """Which queries of a stream were answered rightly.

    Args:
      rows: Metrics in any order; those of query n stand at step n + 1.
      workdir: Of the run, for the names of its queries.

    Returns:
      `queries`, their names in the order of the stream, and a digit each, 0 or 1, in `accuracy` (greedy) and `vote`.

    Raises:
      InputError: `answers.jsonl` does not hold these queries.
    """
    path = workdir / "answers.jsonl"
    try:
        names = {answer["number"]: answer["query"] for answer in map(json.loads, path.read_text().splitlines())}
        judged = {int(row["step"]): row for row in rows if all(ONLINE[name] in row for name in RUNNING)}
        found: dict[str, Any] = {"queries": [names[step - 1] for step in sorted(judged)]}
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} does not hold the queries that the metrics are of") from error
    for name in RUNNING:
        found[name] = "".join(str(int(judged[step][ONLINE[name]])) for step in sorted(judged))
    return found


def _running_mean(values: Sequence[float | None]) -> list[float | None]:
    """Mean of each value and those before it, up to `RUNNING_MEAN`, without those that are missing."""
    stretches = (values[max(end - RUNNING_MEAN, 0) : end] for end in range(1, len(values) + 1))
    return [_mean([value for value in stretch if value is not None]) for stretch in stretches]


def wall_time(times: Sequence[float]) -> float:
    """Seconds from the first row to the last without pauses between two starts; what came before the first row is not in it."""
    gaps = np.diff(sorted(times)).tolist()
    if not gaps:
        return 0.0
    pause = max(PAUSE_S, 10 * statistics.median(gaps))
    return sum(gap for gap in gaps if gap < pause)


def changed_fields(arguments: Sequence[str], config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that the command line changed, by dotted name, as `config.json` has them."""
    found = {}
    for word in arguments:
        match = re.match(r"--config\.([\w.]+)", word)
        if match:
            value: Any = config
            for part in match[1].split("."):
                value = value.get(part) if isinstance(value, Mapping) else None
            found[match[1]] = without_machine(value) if isinstance(value, str) else value
    return found


def evaluation(path: Path) -> dict[str, Any]:
    """Config and results of an evaluation.

    Raises:
      InputError: The file is none that `pixelis eval` wrote.
    """
    try:
        found = json.loads(path.read_bytes())
        return {"config": found["config"], "results": found["results"]}
    except OSError as error:
        raise InputError(f"--eval: {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"--eval: {path} is no results.json of `pixelis eval`") from error


def as_text(summary: Mapping[str, Any]) -> str:
    """JSON with a line a field and a line a curve: short, and differences can be read."""
    fields = []
    for name, value in summary.items():
        text = json.dumps(value, allow_nan=False)
        if name == "curves":
            text = "{\n" + ",\n".join(f"  {json.dumps(curve)}: {json.dumps(points)}" for curve, points in value.items()) + "\n }"
        fields.append(f" {json.dumps(name)}: {text}")
    return "{\n" + ",\n".join(fields) + "\n}\n"


def _mean(values: Sequence[float]) -> float | None:
    return float(f"{sum(values) / len(values):.6g}") if values else None


def main(argv: Sequence[str] | None = None) -> int:
    """Writes a summary; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdir", metavar="WORKDIR", type=Path, help="of the run")
    parser.add_argument("--study", required=True, help="folder of experiments/results/")
    parser.add_argument("--variant", required=True, help="what the run is called, whatever its seed")
    parser.add_argument("--seed", type=int, required=True, help="of the run")
    parser.add_argument("--eval", metavar="RESULTS_JSON", type=Path, help="results.json of an evaluation of its model")
    parser.add_argument("--results", metavar="DIR", type=Path, default=RESULTS, help="default: experiments/results")
    args = parser.parse_args(argv)
    try:
        for option, name in (("--study", args.study), ("--variant", args.variant)):
            if not re.fullmatch(r"\w[\w.+-]*", name):
                raise InputError(f"{option}: {name!r} cannot be part of a file's name")
        summary = summarize(args.workdir, study=args.study, variant=args.variant, seed=args.seed, results=args.eval)
        path = args.results / args.study / f"{args.variant}-{args.seed}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, as_text(summary).encode())
    except (InputError, WorkdirError, OSError) as error:
        print(f"summarize_run: {error}", file=sys.stderr)
        return 2
    print(f"{path}: {len(summary['curves']['iteration'])} points a curve")
    return 0


if __name__ == "__main__":
    sys.exit(main())
