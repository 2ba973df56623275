"""Draws the figures from the summaries in experiments/results/ alone, so that anybody can draw them again.

    python experiments/figures.py

`figure_3.svg`, after Figure 3 of the paper at small scale: accuracy, RaPR, RaCPR and mean chain length over the iterations of
CC-RFT, a line a variant (mean over its seeds) in a band from the least to the greatest of them. It is made of
`results/ccrft/VARIANT-SEED.json`, which `summarize_run.py` writes. The same files give the same bytes. Exit status: 0 drawn, 2
nothing to draw, or a file that is no summary.
"""

import argparse
import collections
import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "experiments" / "results"
IMAGES = ROOT / "docs" / "images"

PANELS = {"accuracy": "accuracy", "rapr": "RaPR", "racpr": "RaCPR", "chain": "mean chain length (calls)"}
"""Curves of the summaries and what they are called, in the order of the panels."""

SHARES = ("accuracy", "rapr", "racpr")
# Fixed ids and no date: the same runs draw the same file. Text stays text, which a reader can search.
STYLE = {"svg.hashsalt": "pixelis", "svg.fonttype": "none", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}


class InputError(Exception):
    """Bad input; the message is one line."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One summary: variant, seed, and each curve as (iterations, values), both `[points]`, without the points that it lacks."""

    path: Path
    variant: str
    seed: int
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Band:
    """A variant's curve over its seeds, all `[points]`: mean, least and greatest where every seed has been."""

    iterations: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def read_runs(folder: Path) -> list[Run]:
    """Reads all summaries of a study, in order of variant and seed.

    Raises:
      InputError: There are none, one is damaged or lacks something, or two are of the same variant and seed.
    """
    runs: dict[tuple[str, int], Run] = {}
    for path in sorted(folder.glob("*.json")):
        run = _read_run(path)
        if (run.variant, run.seed) in runs:
            other = runs[run.variant, run.seed].path
            raise InputError(f"{other} and {path} are both of variant {run.variant}, seed {run.seed}")
        runs[run.variant, run.seed] = run
    if not runs:
        raise InputError(f"{folder}: no summaries (experiments/summarize_run.py writes them)")
    return [runs[key] for key in sorted(runs)]


def over_seeds(curves: Sequence[tuple[np.ndarray, np.ndarray]]) -> Band:
    """Mean and range of several curves on the iterations of all of them, drawn straight between the points of each.

    Only the stretch that every curve covers is kept: beyond it the mean would be of other seeds.

    Args:
      curves: (iterations, values) of each seed; at least one, of at least one point each.

    Raises:
      ValueError: They cover no common stretch.
    """
    first, last = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
    grid = np.unique(np.concatenate([x for x, _ in curves]))
    grid = grid[(grid >= first) & (grid <= last)]
    if not len(grid):
        raise ValueError("its seeds have no iterations in common")
    values = np.stack([np.interp(grid, x, y) for x, y in curves])
    return Band(iterations=grid, mean=values.mean(axis=0), low=values.min(axis=0), high=values.max(axis=0))


def smoothed(values: np.ndarray, points: int) -> np.ndarray:
    """Centred moving mean of at most `points` (odd) neighbours, fewer on both sides near the ends so that nothing shifts."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    reach = np.minimum(points // 2, np.minimum(index, len(values) - 1 - index))
    return (sums[index + reach + 1] - sums[index - reach]) / (2 * reach + 1)


def figure_3(runs: Sequence[Run], *, points: int = 1) -> Figure:
    """Draws the panels.

    Args:
      runs: Of one study.
      points: Each seed's curve is first smoothed over so many points; 1: as it is.
    """
    by_variant: dict[str, list[Run]] = collections.defaultdict(list)
    for run in runs:
        by_variant[run.variant].append(run)
    figure = Figure(figsize=(12, 3.2), layout="constrained")
    panels = figure.subplots(1, len(PANELS))
    for axes, (name, title) in zip(panels, PANELS.items(), strict=True):
        axes.set(title=title, xlabel="iteration")
        for color, (variant, seeds) in enumerate(by_variant.items()):
            _draw(axes, name, variant, seeds, f"C{color}", points)
        if name in SHARES:
            axes.set_ylim(0, 1)
        else:
            axes.set_ylim(bottom=0)
    handles = {str(line.get_label()): line for axes in panels for line in axes.lines}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=max(len(handles), 1), frameon=False)
    note = "line: mean over seeds, band: least to greatest" + (f"; smoothed over {points} points" if points > 1 else "")
    figure.suptitle(note, fontsize=8, color="0.4")
    return figure


def _draw(axes: Axes, name: str, variant: str, seeds: Sequence[Run], color: str, points: int) -> None:
    curves = [(x, smoothed(y, points)) for run in seeds for x, y in [run.curves[name]] if len(x)]
    if not curves:
        return
    try:
        band = over_seeds(curves)
    except ValueError as error:
        raise InputError(f"{variant}, {name}: {error} ({', '.join(str(run.path) for run in seeds)})") from error
    label = f"{variant} ({len(curves)} seed{'s' if len(curves) > 1 else ''})"
    axes.plot(band.iterations, band.mean, color=color, label=label, linewidth=1.3)
    axes.fill_between(band.iterations, band.low, band.high, color=color, alpha=0.2, linewidth=0)


def _read_run(path: Path) -> Run:
    try:
        summary = json.loads(path.read_bytes())
        iterations = np.array(summary["curves"]["iteration"], float)
        curves = {}
        for name in PANELS:
            values = np.array(summary["curves"][name], float)  # None becomes NaN
            known = np.isfinite(values)
            curves[name] = iterations[known], values[known]
        if not len(iterations) or (np.diff(iterations) <= 0).any():
            raise ValueError("its iterations do not increase")
        return Run(path=path, variant=str(summary["variant"]), seed=int(summary["seed"]), curves=curves)
    except KeyError as error:
        raise InputError(f"{path} is no summary of a run: it has no {error.args[0]!r}") from error
    except (ValueError, TypeError, IndexError) as error:
        raise InputError(f"{path} is no summary of a run: {error}") from error


def main(argv: Sequence[str] | None = None) -> int:
    """Draws the figures; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", metavar="DIR", type=Path, default=RESULTS, help="default: experiments/results")
    parser.add_argument("--out", metavar="DIR", type=Path, default=IMAGES, help="default: docs/images")
    parser.add_argument("--smooth", metavar="POINTS", type=int, default=1, help="moving mean over so many points (default: 1)")
    args = parser.parse_args(argv)
    try:
        if args.smooth < 1 or args.smooth % 2 == 0:
            raise InputError(f"--smooth must be odd and at least 1, got {args.smooth}")
        runs = read_runs(args.results / "ccrft")
        path = args.out / "figure_3.svg"
        with matplotlib.rc_context(STYLE):
            figure = figure_3(runs, points=args.smooth)
            args.out.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, format="svg", metadata={"Date": None})
    except (InputError, OSError) as error:
        print(f"figures: {error}", file=sys.stderr)
        return 2
    print(f"{path}, from")
    for run in runs:
        print(f"  {run.path} ({run.variant}, seed {run.seed})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
