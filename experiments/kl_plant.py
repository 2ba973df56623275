"""The KL controller against fixed weights on simulated plants (docs/algorithms.md, section 4).

    python experiments/kl_plant.py --json=experiments/results/ttrl/kl_plant.json

A plant stands for a policy: random pushes drive its divergence up, and a penalty of weight beta pulls it back, at once or late.
18 plants (three drifts, three pulls, with and without lag) times --seeds runs; the controller, which sees the divergence with the
noise of a probe set, and every fixed beta meet the same pushes. Counted is the true divergence after the warm-up. Exit status: 0
written, 2 bad input.
"""

import argparse
import dataclasses
import itertools
import math
import platform
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from pixelis_jax.evaluation.corridor import BOTTOM, TOP, in_corridor
from pixelis_jax.evaluation.statistics import paired_interval
from pixelis_jax.losses import ControlSettings, ControlState, update_control
from pixelis_jax.workdir import describe_environment, without_machine, write_json

WARM_UP = 0.1
"""Share of the updates, as in training."""

START = 0.4
"""Beta to begin with; it suits the plant in the middle."""

NOISE = 0.15
"""Standard deviation of log (measured / true divergence) on a probe set."""

FIXED = tuple(float(f"{beta:.3g}") for beta in np.geomspace(0.01, 10, 25))
SHOWN = (0.1, START, 1.0)
"""Fixed betas that stand in the table besides the best ones."""

WINDOW = 40
LEAST_UPDATES = 5 * WINDOW
LATE = 0.25
"""Share of the run that a controller has after the warm-up to undo what that left, before `late` overshoot counts."""


ByPlant = Sequence[Sequence[Mapping[str, Any]]]
"""Outcomes of the runs on each plant."""


class InputError(Exception):
    """Bad input; the message is one line."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plant:
    """A simulated policy.

    Attributes:
      push: Mean rise of the divergence an update; each rise is exponentially distributed.
      pull: The divergence shrinks by `exp(-pull beta)` an update, at most by `exp(-1.5)`.
      lag: Share of the beta that was felt before which is felt again, as through an optimiser's momentum; 0: it acts at once.
    """

    push: float
    pull: float
    lag: float


PLANTS = tuple(
    Plant(push=push, pull=pull, lag=lag)
    for push, pull, lag in itertools.product((0.003, 0.01, 0.03), (0.05, 0.2, 0.5), (0.0, 0.8))
)


def simulate(
    plant: Plant, settings: ControlSettings | None, seed: int, *, updates: int, start: float = START, noise: float = NOISE
) -> list[float]:
    """The true divergence after each update.

    Args:
      plant: What is driven.
      settings: Of the controller; None keeps beta at `start`.
      seed: Of pushes and measurements. The pushes of a seed are the same whatever the control.
      updates: How many.
      start: Beta to begin with.
      noise: Standard deviation of the logarithm of a measurement's error.
    """
    pushes = np.random.default_rng([seed, 0]).exponential(plant.push, updates).tolist()
    errors = np.random.default_rng([seed, 1]).normal(0.0, noise, updates).tolist()
    state, felt, kl, history = ControlState(beta=start), start, 0.0, []
    for push, error in zip(pushes, errors, strict=True):
        felt += (1 - plant.lag) * (state.beta - felt)
        kl = (kl + push) * math.exp(-min(plant.pull * felt, 1.5))
        history.append(kl)
        if settings is not None:
            state = update_control(state, settings, kl * math.exp(error))
    return history


def settled_after(history: Sequence[float], *, window: int = WINDOW) -> int | None:
    """Updates until the mean of `window` successive ones stays in the corridor to the end; None if it does not."""
    means = np.convolve(history, np.full(window, 1 / window), mode="valid")
    outside = np.flatnonzero((means < BOTTOM) | (means > TOP))
    first = int(outside[-1]) + 1 if len(outside) else 0
    return first if first < len(means) else None


def outcome(history: Sequence[float], warm_up: int) -> dict[str, Any]:
    """What is counted of a run: the corridor after the warm-up, overshoot over its top, and time to settle."""
    late = history[warm_up + round(LATE * len(history)) :]
    counted = dataclasses.asdict(in_corridor(history[warm_up:]))
    overshoot = max(counted.pop("greatest") - TOP, 0.0)
    return counted | {"overshoot": overshoot, "late_overshoot": max(max(late) - TOP, 0.0), "settled": settled_after(history)}


def over_runs(outcomes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over runs; of overshoots also the greatest, and of the time to settle the median, None where most never do."""
    found: dict[str, Any] = {
        name: _short(np.mean([one[name] for one in outcomes])) for name in ("inside", "below", "above", "median", "p95")
    }
    for name in ("overshoot", "late_overshoot"):
        values = [one[name] for one in outcomes]
        found |= {name: {"mean": _short(np.mean(values)), "greatest": _short(max(values))}}
    times = [math.inf if one["settled"] is None else one["settled"] for one in outcomes]
    median = float(np.median(times))
    found["settled"] = {"share": _short(np.mean(np.isfinite(times))), "median": median if math.isfinite(median) else None}
    return found


def compare(*, updates: int, seeds: int, start: float = START, noise: float = NOISE) -> dict[str, Any]:
    """Runs the controller and all fixed betas on all plants.

    Returns:
      `settings` of the controller, `plants`, and `ways` by name: the controller, some fixed betas, the one that is inside most on
      average over the plants, and for each plant the one that is inside most there. The last two are picked with these very runs
      in hand, which favours them. Each way has its means over all runs, `by_plant`, and the least share inside of a plant
      (`least_inside`); each but the controller has by how much the controller is inside more often (`lead`, with its interval
      over runs).
    """
    warm_up = round(WARM_UP * updates)
    settings = ControlSettings(warm_up=warm_up)

    def runs(plant: Plant, control: ControlSettings | None, beta: float) -> list[dict[str, Any]]:
        histories = (simulate(plant, control, seed, updates=updates, start=beta, noise=noise) for seed in range(seeds))
        return [outcome(history, warm_up) for history in histories]

    controlled = [runs(plant, settings, start) for plant in PLANTS]
    fixed = {beta: [runs(plant, None, beta) for plant in PLANTS] for beta in sorted({*FIXED, *SHOWN, start})}
    inside = {beta: [float(np.mean([one["inside"] for one in found])) for found in by_plant] for beta, by_plant in fixed.items()}
    best = max(fixed, key=lambda beta: float(np.mean(inside[beta])))
    best_of = [max(fixed, key=lambda beta: inside[beta][number]) for number in range(len(PLANTS))]
    shown = {f"fixed {beta:g}": fixed[beta] for beta in sorted({*SHOWN, start})}
    ways = {
        "controller": controlled,
        **shown,
        "best fixed on average": fixed[best],
        "best fixed for each plant": [fixed[beta][number] for number, beta in enumerate(best_of)],
    }
    return {
        "settings": dataclasses.asdict(settings),
        "plants": [dataclasses.asdict(plant) | {"best_fixed": beta} for plant, beta in zip(PLANTS, best_of, strict=True)],
        "best_fixed": best,
        "ways": {name: _way(found, None if name == "controller" else controlled) for name, found in ways.items()},
    }


def _way(
    by_plant: Sequence[Sequence[Mapping[str, Any]]], controlled: Sequence[Sequence[Mapping[str, Any]]] | None
) -> dict[str, Any]:
    plants = [over_runs(found) for found in by_plant]
    way = over_runs(list(itertools.chain(*by_plant)))
    way |= {"least_inside": min(plant["inside"] for plant in plants), "by_plant": plants}
    if controlled is not None:
        ours, theirs = ([one["inside"] for one in itertools.chain(*found)] for found in (controlled, by_plant))
        low, high = paired_interval(ours, theirs)
        difference = float(np.mean(ours) - np.mean(theirs))
        way["lead"] = {"difference": _short(difference), "interval": [_short(low), _short(high)]}
    return way


def _short(value: float | np.floating[Any]) -> float:
    return float(f"{value:.5g}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the simulation, writes the record and prints what is counted; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="where the record goes")
    parser.add_argument("--updates", type=int, default=400, help="of a run (default: 400)")
    parser.add_argument("--seeds", type=int, default=20, help="runs on each plant (default: 20)")
    parser.add_argument("--start", type=float, default=START, help=f"beta to begin with (default: {START})")
    parser.add_argument("--noise", type=float, default=NOISE, help=f"of a measurement's logarithm (default: {NOISE})")
    args = parser.parse_args(argv)
    began = time.monotonic()
    try:
        if args.updates < LEAST_UPDATES or args.seeds < 1:
            raise InputError(f"--updates must be at least {LEAST_UPDATES} and --seeds 1, got {args.updates} and {args.seeds}")
        if not ControlSettings.least <= args.start <= ControlSettings.most or not 0 <= args.noise < math.inf:
            limits = f"from {ControlSettings.least} to {ControlSettings.most}"
            raise InputError(
                f"--start must lie {limits} and --noise be finite and not negative, got {args.start} and {args.noise}"
            )
        found = compare(updates=args.updates, seeds=args.seeds, start=args.start, noise=args.noise)
        environment = describe_environment(seed=0)
        record = {
            "study": "ttrl",
            "run": "kl_plant",
            "command": shlex.join(["python", *map(without_machine, sys.argv)]),
            "commit": environment["commit"],
            "machine": f"{platform.machine()}, {jax.device_count()} x {jax.devices()[0].device_kind}",
            "seeds": args.seeds,
            "updates": args.updates,
            "warm_up": found["settings"]["warm_up"],
            "start": args.start,
            "noise": args.noise,
            "corridor": [BOTTOM, TOP],
            "fixed_tried": sorted({*FIXED, *SHOWN, args.start}),
            **found,
            "wall_time_s": round(time.monotonic() - began),
        }
        args.json.parent.mkdir(parents=True, exist_ok=True)
        write_json(args.json, record)
    except (InputError, OSError) as error:
        print(f"kl_plant: {error}", file=sys.stderr)
        return 2
    for name, way in record["ways"].items():
        print(f"{name:28s} inside {way['inside']:.3f}, above {way['above']:.3f}, least inside {way['least_inside']:.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
