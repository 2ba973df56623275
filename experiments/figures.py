"""Draws the figures from the summaries in experiments/results/ alone, so that anybody can draw them again.

    python experiments/figures.py

`figure_3.svg`, after Figure 3 of the paper at small scale: accuracy, RaPR, RaCPR and mean chain length over the iterations of
CC-RFT, a line a variant (mean over its seeds) in a band from the least to the greatest of them. It is made of
`results/ccrft/VARIANT-SEED.json`, which `summarize_run.py` writes.

`figure_4.svg`, after Figure 4: accuracy over the queries of Pixel TTRL, and divergence over its updates beside the corridor, of
the variants `safe`, `no_safety` and `frozen`, from `results/ttrl/VARIANT-SEED.json`.

`risk_coverage.svg`: risk against coverage of the vote and of hard majorities, from `results/ttrl/risk_coverage.json`, which
`risk_coverage.py` writes.

A figure whose files are not there is left out. The same files give the same bytes. Exit status: 0 drawn, 2 nothing to draw, or a
file that is no summary.
"""

import argparse
import collections
import contextlib
import dataclasses
import itertools
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pixelis_jax.evaluation.corridor import BOTTOM, TOP

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "experiments" / "results"
IMAGES = ROOT / "docs" / "images"

PANELS = {"accuracy": "accuracy", "rapr": "RaPR", "racpr": "RaCPR", "chain": "mean chain length (calls)"}
"""Curves of the summaries and what they are called, in the order of the panels."""

SHARES = ("accuracy", "rapr", "racpr")

ONLINE = ("safe", "no_safety", "frozen")
"""Variants of figure 4, in the order of its colours."""

RUNNING_MEAN = 50
"""Queries of the running mean that a summary's accuracy is (`summarize_run.py`)."""

WAYS = {
    "majority": "hard majority",
    "majority_margin": "hard majority, by its lead in votes",
    "ours": "vote over trajectories, by mass",
    "ours_margin": "vote over trajectories, by its lead in mass",
}
"""Methods of `risk_coverage.json` and what they are called."""

# Fixed ids and no date: the same runs draw the same file. Text stays text, which a reader can search.
STYLE = {"svg.hashsalt": "pixelis", "svg.fonttype": "none", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}


class InputError(Exception):
    """Bad input; the message is one line."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One summary.

    Attributes:
      path: Where it lies.
      variant: What the run is called, whatever its seed.
      seed: Of the run.
      curves: (iterations, values) by name, both `[points]`, without the points that a curve lacks.
      corridor: Shares of the updates of an online run after its warm-up, None if there were none.
    """

    path: Path
    variant: str
    seed: int
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]]
    corridor: Mapping[str, float] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Band:
    """A variant's curve over its seeds, all `[points]`: mean, least and greatest where every seed has been."""

    iterations: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def read_runs(folder: Path) -> list[Run]:
    """Reads all summaries of CC-RFT, in order of variant and seed; none if there are none.

    Raises:
      InputError: One is damaged or lacks something, or two are of the same variant and seed.
    """
    return _each_once(_read_run(path) for path in sorted(folder.glob("*.json")))


def read_online_runs(folder: Path) -> list[Run]:
    """Reads the summaries of the variants in `ONLINE`, in their order and by seed; none if there are none.

    Raises:
      InputError: One is damaged or lacks something, or two are of the same variant and seed.
    """
    paths = sorted(itertools.chain(*(folder.glob(f"{variant}-[0-9]*.json") for variant in ONLINE)))
    return sorted(_each_once(map(_read_online_run, paths)), key=lambda run: (ONLINE.index(run.variant), run.seed))


def _each_once(found: Iterable[Run]) -> list[Run]:
    runs: dict[tuple[str, int], Run] = {}
    for run in found:
        if (run.variant, run.seed) in runs:
            other = runs[run.variant, run.seed].path
            raise InputError(f"{other} and {run.path} are both of variant {run.variant}, seed {run.seed}")
        runs[run.variant, run.seed] = run
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
    figure = Figure(figsize=(12, 3.2), layout="constrained")
    panels = figure.subplots(1, len(PANELS))
    for axes, (name, title) in zip(panels, PANELS.items(), strict=True):
        axes.set(title=title, xlabel="iteration")
        for color, (variant, seeds) in enumerate(_by_variant(runs).items()):
            _draw(axes, name, variant, seeds, f"C{color}", points)
        if name in SHARES:
            axes.set_ylim(0, 1)
        else:
            axes.set_ylim(bottom=0)
    note = "line: mean over seeds, band: least to greatest" + (f"; smoothed over {points} points" if points > 1 else "")
    _finish(figure, note)
    return figure


def figure_4(runs: Sequence[Run]) -> Figure:
    """Draws accuracy over queries and divergence over updates, with the shares in the corridor below.

    Args:
      runs: Of `ONLINE`.
    """
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    accuracy, divergence = figure.subplots(1, 2)
    accuracy.set(title=f"greedy accuracy, running mean over {RUNNING_MEAN} queries", xlabel="query")
    divergence.set(title="token-KL to the mean policy (nats)")
    divergence.set_xlabel("\n".join(["update", *corridor_lines(runs)]), fontsize=7)
    divergence.axhspan(BOTTOM, TOP, color="0.9", zorder=0)
    for variant, seeds in _by_variant(runs).items():
        for axes, name in ((accuracy, "accuracy"), (divergence, "kl")):
            _draw(axes, name, variant, seeds, f"C{ONLINE.index(variant)}", 1)
    divergence.set_ylim(bottom=0)
    _finish(figure, "line: mean over seeds, band: least to greatest; shaded: the corridor; shares: after the warm-up")
    return figure


def corridor_lines(runs: Sequence[Run]) -> list[str]:
    """What figure 4 says of each variant's updates after the warm-up: means over seeds of shares, median and P95."""
    lines = []
    for variant, seeds in _by_variant(runs).items():
        found = [run.corridor for run in seeds if run.corridor is not None]
        if found:
            means = {name: float(np.mean([one[name] for one in found])) for name in ("inside", "below", "above", "median", "p95")}
            shares = ", ".join(f"{100 * means[name]:.0f} % {name}" for name in ("inside", "below", "above"))
            lines.append(f"{variant}: {shares}; median {means['median']:.3f}, P95 {means['p95']:.3f}")
    return lines


def figure_risk_coverage(record: Mapping[str, Any]) -> Figure:
    """Draws risk against coverage.

    Args:
      record: As `risk_coverage.py` writes it.
    """
    curves, seeds = record["curves"], len(record["runs"])
    coverage = np.array(curves["coverage"], float)
    figure = Figure(figsize=(5.5, 5), layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel="coverage (share answered)", ylabel="risk (errors among the answered)", xlim=(0, 1))
    for color, (name, label) in enumerate(WAYS.items()):
        risk, low, high = (np.array(curves[name][part], float) for part in ("risk", "low", "high"))
        if not risk.shape == low.shape == high.shape == coverage.shape:
            raise ValueError(f"{name} has {len(risk)} points for {len(coverage)} coverages")
        axes.plot(coverage, risk, color=f"C{color}", label=label, linewidth=1.3)
        axes.fill_between(coverage, low, high, color=f"C{color}", alpha=0.12, linewidth=0)
    own = record["abstaining"]
    if own["risk"] is not None:
        axes.plot([own["coverage"]], [own["risk"]], "o", color="C2", markersize=4, label="where the vote abstains by itself")
    axes.axvline(record["coverage"], color="0.7", linewidth=0.8, linestyle=":")
    axes.set_ylim(bottom=0)
    _finish(figure, f"{record['queries']} queries, {seeds} seed{'s' if seeds > 1 else ''}; band: 95 % over queries", columns=1)
    return figure


def _by_variant(runs: Sequence[Run]) -> dict[str, list[Run]]:
    by_variant: dict[str, list[Run]] = collections.defaultdict(list)
    for run in runs:
        by_variant[run.variant].append(run)
    return by_variant


def _finish(figure: Figure, note: str, *, columns: int | None = None) -> None:
    handles = {str(line.get_label()): line for axes in figure.axes for line in axes.lines}
    handles = {label: line for label, line in handles.items() if not label.startswith("_")}
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=columns or max(len(handles), 1), frameon=False
    )
    figure.suptitle(note, fontsize=8, color="0.4")


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
    with _summary(path) as summary:
        iterations, curves = _curves(summary, PANELS)
        return Run(
            path=path,
            variant=str(summary["variant"]),
            seed=int(summary["seed"]),
            curves={name: _known(iterations, values) for name, values in curves.items()},
        )


def _read_online_run(path: Path) -> Run:
    with _summary(path) as summary:
        iterations, curves = _curves(summary, ("accuracy", "kl", "updates"))
        variant = str(summary["variant"])
        if variant not in ONLINE:
            raise ValueError(f"its variant {variant!r} is none of {', '.join(ONLINE)}")
        divergence = _known(curves["updates"], curves["kl"])
        if (np.diff(divergence[0]) <= 0).any():
            raise ValueError("its updates do not increase")
        corridor = summary["corridor"] and summary["corridor"]["after_warm_up"]
        return Run(
            path=path,
            variant=variant,
            seed=int(summary["seed"]),
            curves={"accuracy": _whole_means(*_known(iterations, curves["accuracy"])), "kl": divergence},
            corridor=corridor and {name: float(corridor[name]) for name in ("inside", "below", "above", "median", "p95")},
        )


def _whole_means(queries: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A running mean without its first values, which are means over fewer queries, where there are any others."""
    whole = queries >= RUNNING_MEAN
    return (queries[whole], values[whole]) if whole.any() else (queries, values)


def _read_risks(path: Path) -> Figure:
    with _summary(path, "record of risk_coverage.py") as record:
        return figure_risk_coverage(record)


def _curves(summary: Mapping[str, Any], names: Iterable[str]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    iterations = np.array(summary["curves"]["iteration"], float)
    curves = {name: np.array(summary["curves"][name], float) for name in names}  # None becomes NaN
    for name, values in curves.items():
        if values.shape != iterations.shape:
            raise ValueError(f"{name} has {len(values)} points for {len(iterations)} iterations")
    if not len(iterations) or (np.diff(iterations) <= 0).any():
        raise ValueError("its iterations do not increase")
    return iterations, curves


def _known(iterations: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    known = np.isfinite(values) & np.isfinite(iterations)
    return iterations[known], values[known]


@contextlib.contextmanager
def _summary(path: Path, what: str = "summary of a run") -> Iterator[Any]:
    """The JSON of a file; what is wrong with it within the block is one line that names it."""
    try:
        yield json.loads(path.read_bytes())
    except KeyError as error:
        raise InputError(f"{path} is no {what}: it has no {error.args[0]!r}") from error
    except (ValueError, TypeError, IndexError) as error:
        raise InputError(f"{path} is no {what}: {error}") from error


def draw_all(results: Path, *, points: int = 1) -> Iterator[tuple[str, Figure, list[str]]]:
    """Draws each figure whose files are there.

    Args:
      results: Folder of the studies.
      points: Of `figure_3`.

    Yields:
      Name, figure, and lines on what it was made of.
    """
    if runs := read_runs(results / "ccrft"):
        yield "figure_3", figure_3(runs, points=points), _sources(runs)
    if runs := read_online_runs(results / "ttrl"):
        yield "figure_4", figure_4(runs), [*_sources(runs), *corridor_lines(runs)]
    if (path := results / "ttrl" / "risk_coverage.json").exists():
        yield "risk_coverage", _read_risks(path), [str(path)]


def _sources(runs: Sequence[Run]) -> list[str]:
    return [f"{run.path} ({run.variant}, seed {run.seed})" for run in runs]


def main(argv: Sequence[str] | None = None) -> int:
    """Draws the figures; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", metavar="DIR", type=Path, default=RESULTS, help="default: experiments/results")
    parser.add_argument("--out", metavar="DIR", type=Path, default=IMAGES, help="default: docs/images")
    parser.add_argument(
        "--smooth", metavar="POINTS", type=int, default=1, help="figure 3: moving mean over so many points (default: 1)"
    )
    args = parser.parse_args(argv)
    try:
        if args.smooth < 1 or args.smooth % 2 == 0:
            raise InputError(f"--smooth must be odd and at least 1, got {args.smooth}")
        with matplotlib.rc_context(STYLE):
            drawn = list(draw_all(args.results, points=args.smooth))
            if not drawn:
                raise InputError(f"{args.results}: no summaries (experiments/summarize_run.py writes them)")
            args.out.mkdir(parents=True, exist_ok=True)
            for name, figure, _ in drawn:
                figure.savefig(args.out / f"{name}.svg", format="svg", metadata={"Date": None})
    except (InputError, OSError) as error:
        print(f"figures: {error}", file=sys.stderr)
        return 2
    for name, _, lines in drawn:
        print(f"{args.out / name}.svg, from")
        for line in lines:
            print(f"  {line}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
